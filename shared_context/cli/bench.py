"""`shared-context bench`: what the library takes in time, memory and bytes."""

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
    finish,
    load,
)
from shared_context.cli.options import AdapterOption, DeviceOption, DtypeOption

if TYPE_CHECKING:
    from shared_context import SharedLLMModel
    from shared_context.evaluation.questions import QuestionSet
    from shared_context.evaluation.report import Report

app = typer.Typer(
    cls=output.Commands,
    help="Measure time, memory and bytes against the frameworks, on this machine.",
    epilog=output.EXIT_CODES,
    no_args_is_help=True,
)


class Figure(StrEnum):
    """What can be measured."""

    first_token = "first-token"
    decoding = "decoding"
    ingest = "ingest"
    storage = "storage"
    memory = "memory"
    cost = "cost"
    cost_memory = "cost-memory"
    growth = "growth"
    grains = "grains"


@app.callback()
def bench() -> None:
    """Measure time, memory and bytes against the frameworks, on this machine."""


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
        typer.Option("--context-tokens", help="Of first-token, decoding and grains; several. [1024, 4096 and 7800]"),
    ] = None,
    runs: Annotated[
        int,
        typer.Option(
            "--runs",
            help="Questions counted in each place, and how often ingest takes its document in; medians are over these.",
        ),
    ] = 5,
    tokens: Annotated[int, typer.Option("--tokens", help="Of the long document of ingest and memory.")] = 131_072,
    length: Annotated[
        list[int] | None,
        typer.Option(
            "--length", help="Of cost: tokens of the text; several. [8192, 32768 and 131072, as far as --tokens goes]"
        ),
    ] = None,
    read_at_most: Annotated[
        int,
        typer.Option(
            "--read-at-most",
            help="Of cost: streaming and full attention read so many tokens of a text; the rest is extrapolated.",
        ),
    ] = 16_384,
    windows: Annotated[
        int | None,
        typer.Option("--windows", help="Of ingest: prefill so many windows only; the rest is extrapolated."),
    ] = 3,
    cache_mib: Annotated[int, typer.Option("--cache-mib", help="Of memory: the limit of the KV cache.")] = 256,
    documents: Annotated[
        list[int] | None,
        typer.Option("--documents", help="Of growth: sizes of the store; several. [100, 1000 and 10000]"),
    ] = None,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Time to first token, tokens per second, ingest, bytes stored, peak memory, growth with the store, coarse grains.

    What is compared takes turns in one process. Nothing else should run on the machine meanwhile. Memory, cost-memory
    and growth load the model as it is by default, whatever --adapter, --dtype and --device say.
    """
    from shared_context.evaluation import cost, decoding, grain_cost, growth, ingest, memory, storage
    from shared_context.evaluation.questions import read_questions

    asked = read_questions(data)
    texts, questions = list(asked.documents.values()), [question.text for question in asked.questions]
    text = "\n\n".join(texts)
    reader = load(model, adapter, dtype, device)
    sizes = tuple(sorted(context_tokens)) if context_tokens else decoding.CONTEXT_TOKENS
    lengths = length or [n for n in cost.LENGTHS if n <= tokens]
    figures: dict[Figure, Callable[[], Report]] = {
        Figure.first_token: lambda: _first_token(reader, asked, sizes, runs),
        Figure.decoding: lambda: decoding.measure(reader, asked, context_tokens=sizes, runs=runs),
        Figure.ingest: lambda: ingest.measure(reader, text, tokens=tokens, limit=windows, runs=runs),
        Figure.storage: lambda: storage.measure(reader, text, tokens=[n for n in storage.TOKENS if n <= tokens]),
        Figure.memory: lambda: memory.measure(reader.name, text, tokens=tokens, cache_mib=cache_mib),
        Figure.cost: lambda: cost.measure(reader, asked, lengths=lengths, runs=runs, read_at_most=read_at_most),
        Figure.cost_memory: lambda: cost.measure_memory(reader.name, asked, lengths=lengths, read_at_most=read_at_most),
        Figure.growth: lambda: growth.measure(
            reader.name, texts, questions, documents=documents or growth.DOCUMENTS, runs=runs
        ),
        Figure.grains: lambda: grain_cost.measure(
            reader, text, questions[0], entries=tuple(sorted(context_tokens or grain_cost.ENTRIES)), runs=runs
        ),
    }
    finish(
        (measure() for figure, measure in figures.items() if not only or figure in only),
        data.name,
        json_file,
        html_file,
    )


def _first_token(model: SharedLLMModel, asked: QuestionSet, context_tokens: Sequence[int], runs: int) -> Report:
    """The measurement, or a report that says why it cannot run: it is nothing without what it is measured against."""
    from shared_context.evaluation.report import Report

    try:
        from shared_context.evaluation import first_token
    except ImportError as error:
        return Report("first-token", {}, [], not_run={"first-token": f"{error}: pip install 'sharedllm[eval]'"})
    return first_token.measure(model, asked, context_tokens=context_tokens, runs=runs)
