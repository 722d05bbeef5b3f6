"""`shared-context bench`: what the library takes in time, on the machine and the documents of who asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from shared_context.cli import output
from shared_context.cli.evaluate import (
    DataArgument,
    EvalModelOption,
    HtmlFileOption,
    JsonFileOption,
)
from shared_context.cli.measuring import finish, load
from shared_context.cli.options import AdapterOption, DeviceOption, DtypeOption

if TYPE_CHECKING:
    from shared_context import SharedLLMModel
    from shared_context.evaluation.questions import QuestionSet
    from shared_context.evaluation.report import Report

app = typer.Typer(
    cls=output.Commands,
    help="Measure time against the frameworks, on this machine.",
    epilog=output.EXIT_CODES,
    no_args_is_help=True,
)


class Figure(StrEnum):
    """What can be measured."""

    first_token = "first-token"
    decoding = "decoding"
    ingest = "ingest"


@app.callback()
def bench() -> None:
    """Measure time against the frameworks, on this machine."""


@app.command(epilog=output.EXIT_CODES)
def latency(
    data: DataArgument,
    only: Annotated[
        list[Figure] | None, typer.Option("--only", help="Only this; may be given several times. By default all.")
    ] = None,
    model: EvalModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    context_tokens: Annotated[
        list[int] | None,
        typer.Option("--context-tokens", help="Of first-token and decoding; several. [1024, 4096 and 7800]"),
    ] = None,
    runs: Annotated[
        int,
        typer.Option(
            "--runs",
            help="Questions counted in each place, and how often ingest takes its document in; medians are over these.",
        ),
    ] = 5,
    tokens: Annotated[int, typer.Option("--tokens", help="Of the long document of ingest.")] = 131_072,
    windows: Annotated[
        int | None,
        typer.Option("--windows", help="Of ingest: prefill so many windows only; the rest is extrapolated."),
    ] = 3,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Time to first token, tokens per second, seconds of ingest.

    What is compared takes turns in one process. Nothing else should run on the machine meanwhile.
    """
    from shared_context.evaluation import decoding, ingest
    from shared_context.evaluation.questions import read_questions

    asked = read_questions(data)
    text = "\n\n".join(asked.documents.values())
    reader = load(model, adapter, dtype, device)
    sizes = tuple(sorted(context_tokens)) if context_tokens else decoding.CONTEXT_TOKENS
    figures: dict[Figure, Callable[[], Report]] = {
        Figure.first_token: lambda: _first_token(reader, asked, sizes, runs),
        Figure.decoding: lambda: decoding.measure(reader, asked, context_tokens=sizes, runs=runs),
        Figure.ingest: lambda: ingest.measure(reader, text, tokens=tokens, limit=windows, runs=runs),
    }
    finish(
        (measure() for figure, measure in figures.items() if not only or figure in only),
        data.name,
        json_file,
        html_file,
    )


@app.command("load", epilog=output.EXIT_CODES)
def under_load(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of a shared-context serve that runs.", show_default=False)],
    data: DataArgument,
    store: Annotated[str | None, typer.Option("--store", help="Which of its stores; the first if left out.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", envvar="SHARED_CONTEXT_API_KEY", help="API key; a soak's may write.")
    ] = None,
    clients: Annotated[
        list[int] | None, typer.Option("--clients", min=1, help="At a time; several. [1, 4 and 16]", show_default=False)
    ] = None,
    budget: Annotated[int, typer.Option("--budget", help="KV entries of each selection.")] = 1024,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens of an answer at most.")] = 24,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="Only the first N questions.")] = None,
    soak: Annotated[
        float,
        typer.Option(
            "--soak", metavar="MINUTES", help="Then ask for so long with the most clients, with changes between."
        ),
    ] = 0.0,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """First tokens and answers a minute of a server that several clients ask at once."""
    from shared_context.evaluation import load as measurement
    from shared_context.evaluation.questions import read_questions

    asked = [question.text for question in read_questions(data).questions][:limit]
    report = measurement.measure(
        url,
        asked,
        store=store,
        key=key,
        clients=tuple(sorted(clients)) if clients else measurement.CLIENTS,
        budget=budget,
        max_tokens=max_tokens,
        minutes=soak,
    )
    finish([report], data.name, json_file, html_file)


def _first_token(model: SharedLLMModel, asked: QuestionSet, context_tokens: Sequence[int], runs: int) -> Report:
    """The measurement, or a report that says why it cannot run: it is nothing without what it is measured against."""
    from shared_context.evaluation.report import Report

    try:
        from shared_context.evaluation import first_token
    except ImportError as error:
        return Report("first-token", {}, [], not_run={"first-token": f"{error}: pip install 'sharedllm[eval]'"})
    return first_token.measure(model, asked, context_tokens=context_tokens, runs=runs)
