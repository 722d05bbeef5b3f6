"""``python -m benchmarks``: one command for each measurement; those of devices and kernels are modules of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shared_context.cli import output
from shared_context.cli.evaluate import (
    DataArgument,
    EvalModelOption,
    HtmlFileOption,
    JsonFileOption,
    LimitOption,
    ResumeOption,
    SeedOption,
)
from shared_context.cli.measuring import finish, load
from shared_context.cli.options import AdapterOption, DeviceOption, DtypeOption

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

app = typer.Typer(
    cls=output.Commands,
    help="Measure what docs/figures.md says. Nothing else should run on the machine meanwhile.",
    epilog=output.EXIT_CODES,
    no_args_is_help=True,
)

RunsOption = Annotated[int, typer.Option("--runs", help="How often each is timed; medians are over these.")]
LengthOption = Annotated[list[int] | None, typer.Option("--length", help="Tokens of the text; several. [up to 131072]")]
ReadOption = Annotated[
    int,
    typer.Option(
        "--read-at-most", help="Streaming and full attention read so many tokens of a text; the rest is extrapolated."
    ),
]


@app.command(epilog=output.EXIT_CODES)
def presses(
    data: DataArgument,
    model: EvalModelOption = None,
    adapter: AdapterOption = "factoid",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    limit: LimitOption = None,
    seed: SeedOption = 0,
    resume: ResumeOption = None,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Selections beside kvpress's presses at equal KV entries; a minute or two a question."""
    from benchmarks import presses as measurement

    reader = load(model, adapter, dtype, device)
    report = measurement.measure(reader, data, limit=limit, seed=seed, resume=resume)
    finish([report], data.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def grains(
    data: DataArgument,
    model: EvalModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    entries: Annotated[
        list[int] | None, typer.Option("--entries", help="KV entries shown; several. [1024 and 4096]")
    ] = None,
    runs: RunsOption = 5,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """What coarse grains cost: encoding with importance, the first token over them, bytes kept."""
    from benchmarks import grain_cost

    text, questions = _text_and_questions(data)
    reader = load(model, adapter, dtype, device)
    shown = tuple(sorted(entries)) if entries else grain_cost.ENTRIES
    report = grain_cost.measure(reader, text, questions[0], entries=shown, runs=runs)
    finish([report], data.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def storage(
    data: DataArgument,
    model: EvalModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    length: LengthOption = None,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Bytes on disk and seconds of ingest by length, beside the frameworks' indexes."""
    from benchmarks import storage as measurement

    text, _ = _text_and_questions(data)
    report = measurement.measure(load(model, adapter, dtype, device), text, tokens=length or measurement.TOKENS)
    finish([report], data.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def memory(
    data: DataArgument,
    model: EvalModelOption = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Of the document.")] = 131_072,
    cache_mib: Annotated[int, typer.Option("--cache-mib", help="The limit of the KV cache.")] = 256,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Peak memory of a process that ingests a long document and answers over it, beside chunked RAG."""
    from benchmarks import memory as measurement

    text, _ = _text_and_questions(data)
    report = measurement.measure(_name(model), text, tokens=tokens, cache_mib=cache_mib)
    finish([report], data.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def cost(
    data: DataArgument,
    model: EvalModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    length: LengthOption = None,
    read_at_most: ReadOption = 16_384,
    runs: RunsOption = 5,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Seconds for a question about a long text: the store, streaming, encoder-decoder, full attention."""
    from benchmarks import cost as measurement
    from shared_context.evaluation.questions import read_questions

    reader = load(model, adapter, dtype, device)
    lengths = length or measurement.LENGTHS
    report = measurement.measure(reader, read_questions(data), lengths=lengths, runs=runs, read_at_most=read_at_most)
    finish([report], data.name, json_file, html_file)


@app.command("cost-memory", epilog=output.EXIT_CODES)
def cost_memory(
    data: DataArgument,
    model: EvalModelOption = None,
    length: LengthOption = None,
    read_at_most: ReadOption = 16_384,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Peak memory for a question about a long text, of the same ways as cost."""
    from benchmarks import cost_memory as measurement
    from shared_context.evaluation.questions import read_questions

    lengths = length or measurement.LENGTHS
    asked = read_questions(data)
    report = measurement.measure(_name(model), asked, lengths=lengths, read_at_most=read_at_most)
    finish([report], data.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def growth(
    data: DataArgument,
    model: EvalModelOption = None,
    documents: Annotated[
        list[int] | None, typer.Option("--documents", help="Sizes of the store; several. [100, 1000 and 10000]")
    ] = None,
    runs: RunsOption = 5,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Time of a selection, memory and ingest, by how many documents a store holds."""
    from benchmarks import growth as measurement
    from shared_context.evaluation.questions import read_questions

    asked = read_questions(data)
    texts, questions = list(asked.documents.values()), [question.text for question in asked.questions]
    sizes = documents or measurement.DOCUMENTS
    report = measurement.measure(_name(model), texts, questions, documents=sizes, runs=runs)
    finish([report], data.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def opening(
    data: DataArgument,
    model: EvalModelOption = None,
    documents: Annotated[
        list[int] | None, typer.Option("--documents", help="Sizes of the store; several. [1000, 10000 and 100000]")
    ] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, help="Of a store of shards; without it one file.")
    ] = None,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Opening a store of many documents again, and selecting from it; 100,000 take some minutes to make."""
    from benchmarks import opening as measurement

    text, questions = _text_and_questions(data)
    report = measurement.measure(
        _name(model), text, questions, documents=documents or measurement.DOCUMENTS, shards=shards
    )
    finish([report], data.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def published(
    data: DataArgument,
    address: Annotated[str, typer.Option("--address", help="Where nothing is published yet: s3://bucket/name.")],
    model: EvalModelOption = None,
    runs: RunsOption = 3,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """First token from a published store, fetched now and before, beside the same on disk."""
    from benchmarks import published as measurement

    text, questions = _text_and_questions(data)
    report = measurement.measure(_name(model), text, questions, address, runs=runs)
    finish([report], data.name, json_file, html_file)


@app.command("ray-ingest", epilog=output.EXIT_CODES)
def ray_ingest(
    data: DataArgument,
    model: EvalModelOption = None,
    documents: Annotated[int, typer.Option("--documents", min=1000, help="That each way stores.")] = 2000,
    runs: RunsOption = 1,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Documents a second: one process, one actor of Ray, and two."""
    from benchmarks import ray_ingest as measurement

    text, _ = _text_and_questions(data)
    report = measurement.measure(_name(model), text, documents=documents, runs=runs)
    finish([report], data.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def serving(
    data: DataArgument,
    vllm: Annotated[
        str | None,
        typer.Option("--vllm", metavar="COMMAND", help="As `serve --engine` takes it; without it in process only."),
    ] = None,
    model: EvalModelOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    entries: Annotated[
        list[int] | None,
        typer.Option("--entries", help="KV entries injected, tokens pasted; several. [1024 and 4096]"),
    ] = None,
    clients: Annotated[
        list[int] | None, typer.Option("--clients", min=1, help="At a time; several. [1, 4 and 16]")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Tokens of an answer at most.")] = 24,
    limit: LimitOption = None,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Answers under load: in process, injected into vLLM, and pasted into the same vLLM."""
    from benchmarks import serving as measurement
    from shared_context.evaluation.questions import read_questions

    report = measurement.measure(
        load(model, None, dtype, device),
        read_questions(data),
        vllm=vllm,
        entries=tuple(sorted(entries or measurement.ENTRIES)),
        clients=tuple(sorted(clients or measurement.CLIENTS)),
        limit=limit,
        max_tokens=max_tokens,
    )
    finish([report], data.name, json_file, html_file)


def _text_and_questions(data: Path) -> tuple[str, Sequence[str]]:
    from shared_context.evaluation.questions import read_questions

    asked = read_questions(data)
    return "\n\n".join(asked.documents.values()), [question.text for question in asked.questions]


def _name(model: str | None) -> str:
    """The model that each process loads anew, as it is."""
    from shared_context.model.pretrained import DEFAULT_MODEL

    output.silence_libraries()
    return model or DEFAULT_MODEL


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
