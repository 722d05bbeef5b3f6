"""`shared-context ask`: one question, one answer, its sources."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from shared_context.cli import output, session
from shared_context.cli.options import (
    AdapterOption,
    BudgetOption,
    DeviceOption,
    DtypeOption,
    FilterOption,
    FineOption,
    JsonOption,
    KvLimitOption,
    MaxNewTokensOption,
    ModelOption,
    NamespaceOption,
    PlaceArgument,
    PolicyOption,
    PrefilterOption,
    QuestionArgument,
    parse_bytes,
    parse_filters,
    read_question,
)

if TYPE_CHECKING:
    from shared_context import Completion, SelectedNode, Selection
    from shared_context.model.generation import CompletionStream

SOURCES_SHOWN = 10
EXCERPT = 80
"""Characters of a source that are shown."""


def ask(
    path: PlaceArgument,
    question: QuestionArgument,
    model: ModelOption = None,
    namespace: NamespaceOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    budget: BudgetOption = 1024,
    fine: FineOption = None,
    policy: PolicyOption = None,
    filters: FilterOption = None,
    prefilter: PrefilterOption = None,
    max_new_tokens: MaxNewTokensOption = 256,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print the answer as it comes.")] = True,
    sources: Annotated[bool, typer.Option("--sources/--no-sources", help="Print where the context is from.")] = True,
    kv_limit: KvLimitOption = None,
    no_context: Annotated[
        bool, typer.Option("--no-context", help="Show the model nothing of the store: what does it answer anyway?")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from the documents of a store.

    The answer and its sources go to stdout, what it took to stderr.
    """
    question = read_question(question)
    wanted = parse_filters(filters)
    limit = parse_bytes(kv_limit, "--kv-limit")
    loading: session.Loading = {"adapter": adapter, "dtype": dtype, "device": device}
    with session.open_store(path, model, limit, namespace=namespace, **loading) as store:
        started = time.perf_counter()
        selection = None
        if not no_context:
            selection = store.select(
                question, budget=budget, fine=fine, policy=policy, filters=wanted, prefilter=prefilter
            )
            if not selection:
                output.nothing_found(path, wanted)
        select_seconds = time.perf_counter() - started
        if stream and not as_json:
            pieces = store.model.stream(question, context=selection, max_new_tokens=max_new_tokens)
            completion = print_stream(pieces)
        else:
            completion = store.model.complete(question, context=selection, max_new_tokens=max_new_tokens)
            if not as_json:
                print(output.printable(completion.text))
        disk = store.stats()["kv_cache"]["disk"]
    if as_json:
        output.print_json({**as_dict(question, completion, selection, select_seconds), "kv_kept": disk})
        return
    if sources and selection is not None:
        _print_sources(selection)
    print_figures(completion, budget, select_seconds)
    output.messages().print(f"{output.kept(disk)} (--kv-limit)", style="dim", soft_wrap=True)


def print_stream(pieces: CompletionStream) -> Completion:
    """Print an answer while it comes, on stdout; interrupted, the generation ends as well."""
    with closing(pieces):
        for piece in pieces:
            print(output.printable(piece), end="", flush=True)
    print()
    assert pieces.completion is not None  # it was closed
    return pieces.completion


def print_figures(completion: Completion, budget: int, select_seconds: float) -> None:
    """Print on stderr what an answer took."""
    cut_off = ", cut off by --max-new-tokens" if completion.finish_reason == "length" else ""
    output.messages().print(
        f"{completion.context_entries:,} of {budget:,} KV entries, selected in {select_seconds:.2f} s; first token "
        f"after {completion.time_to_first_token:.2f} s, {completion.completion_tokens} tokens in "
        f"{completion.seconds:.2f} s{cut_off}",
        style="dim",
        soft_wrap=True,
    )


def as_dict(
    question: str, completion: Completion, selection: Selection | None, select_seconds: float
) -> dict[str, Any]:
    """An answer with its sources and what it took, as JSON values."""
    return {
        "question": question,
        "answer": completion.text,
        "finish_reason": completion.finish_reason,
        "sources": [node_as_dict(node) for node in best_first(selection)] if selection is not None else [],
        "policy": selection.policy if selection is not None else None,
        "budget": selection.budget if selection is not None else None,
        "kv_entries": completion.context_entries,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "select_seconds": select_seconds,
        "time_to_first_token": completion.time_to_first_token,
        "seconds": completion.seconds,
    }


def node_as_dict(node: SelectedNode) -> dict[str, Any]:
    """A node as JSON values; characters count from 0, the end is not included."""
    return {
        "doc_id": node.doc_id,
        "start": node.start,
        "end": node.end,
        "level": node.level,
        "ratio": node.ratio,
        "score": node.score,
        "kv_entries": node.kv_entries,
        "also_in": list(node.also_in),
        "text": node.text,
        "metadata": dict(node.metadata),
    }


def also_in(node: SelectedNode) -> str:
    """What is printed behind a source where other documents say the same; empty where none does."""
    return f"  also in {', '.join(map(output.printable, node.also_in))}" if node.also_in else ""


def best_first(selection: Selection) -> list[SelectedNode]:
    """The nodes of a selection, best score first."""
    return sorted(selection.nodes, key=lambda node: -node.score)


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}..."


def _print_sources(selection: Selection) -> None:
    console = output.results()
    console.print("\nSources", style="bold")
    sources = sorted(selection.sources, key=lambda passage: -passage.score)
    for passage in sources[:SOURCES_SHOWN]:
        line = Text.assemble(
            "  ",
            (output.printable(passage.doc_id), "cyan"),
            f"  characters {passage.start}-{passage.end}  score {passage.score:.2f}{also_in(passage)}",
        )
        line.append(f"\n    {output.printable(excerpt(passage.text))}", style="dim")
        console.print(line, soft_wrap=True)
    if len(sources) > SOURCES_SHOWN:
        console.print(f"  and {len(sources) - SOURCES_SHOWN} more (--json lists all)", style="dim")
