"""`shared-context search`: the passages that a question finds, without an answer."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from shared_context.cli import output, session
from shared_context.cli.ask import also_in, excerpt, node_as_dict
from shared_context.cli.options import (
    DeviceOption,
    DtypeOption,
    FilterOption,
    JsonOption,
    ModelOption,
    NamespaceOption,
    PlaceArgument,
    PolicyOption,
    PrefilterOption,
    QuestionArgument,
    parse_filters,
    read_question,
)


def search(
    path: PlaceArgument,
    question: QuestionArgument,
    model: ModelOption = None,
    namespace: NamespaceOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Passages.")] = 5,
    policy: PolicyOption = None,
    filters: FilterOption = None,
    prefilter: PrefilterOption = None,
    full: Annotated[bool, typer.Option("--full", help="Print whole passages.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find the best passages of a store, as text, without answering."""
    question = read_question(question)
    wanted = parse_filters(filters)
    with session.open_store(path, model, dtype=dtype, device=device, namespace=namespace) as store:
        nodes = store.retrieve(question, k, policy=policy, filters=wanted, prefilter=prefilter)
    if not nodes:
        output.nothing_found(path, wanted)
    if as_json:
        output.print_json({"question": question, "passages": [node_as_dict(node) for node in nodes]})
        return
    console = output.results()
    for node in nodes:
        console.print(
            Text.assemble(
                (output.printable(node.doc_id), "cyan"),
                f"  characters {node.start}-{node.end}  score {node.score:.2f}{also_in(node)}",
                f"\n    {output.printable(node.text if full else excerpt(node.text))}",
            ),
            soft_wrap=True,
        )
