"""`shared-context eval`: what questions find and how they are answered, against what people use otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from shared_context.cli import output
from shared_context.cli.measuring import finish, load
from shared_context.cli.options import AdapterOption, DeviceOption, DtypeOption, to_be_written

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared_context.evaluation.needle_tasks import Task
    from shared_context.evaluation.report import Report

app = typer.Typer(
    cls=output.Commands,
    help="Measure what is found and answered, on data of your own, against chunked RAG, BM25 and their fusion.",
    epilog=output.EXIT_CODES,
    no_args_is_help=True,
)

DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Questions: SQuAD-format JSON; JSONL with question, answers and passage or passages; or a folder of text "
        "files with a questions.jsonl (question, answers and, where known, document).",
        show_default=False,
    ),
]
EvalModelOption = Annotated[
    str | None, typer.Option("--model", help="Name or folder of the model; the default model if left out.")
]
BesideOption = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        help="Measure the model with this adapter as well: a folder, a name on the Hub, or factoid, which ships.",
    ),
]
LimitOption = Annotated[int | None, typer.Option("--limit", metavar="N", help="Only N questions, drawn at random.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything that is drawn; the same seed, the same result.")]
JsonFileOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the results to FILE too, as JSON.", callback=to_be_written),
]
HtmlFileOption = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", help="Write a page with plots and tables to FILE too.", callback=to_be_written
    ),
]
ResumeOption = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="FILE",
        help="Keep results in FILE as they come; started again, go on where it was stopped.",
        callback=to_be_written,
    ),
]


@app.command(epilog=output.EXIT_CODES)
def retrieval(
    data: DataArgument,
    model: EvalModelOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    unit: Annotated[
        Literal["file", "article", "paragraph"],
        typer.Option("--unit", help="What of SQuAD or JSONL becomes one document."),
    ] = "file",
    tokens: Annotated[
        list[int] | None, typer.Option("--tokens", help="Tokens shown; may be given several times. [128 to 4096]")
    ] = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    resume: ResumeOption = None,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Does what a question is shown hold the answer? Recall by tokens shown, for every policy and baseline."""
    from shared_context.evaluation import retrieval as measurement

    reader = load(model, dtype=dtype, device=device)
    shown = tuple(sorted(tokens)) if tokens else measurement.TOKENS
    report = measurement.measure(reader, data, unit=unit, limit=limit, seed=seed, tokens=shown, resume=resume)
    finish([report], data.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def evidence(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Documents with marked characters: JSONL with id, text and questions, each with question and "
            "evidence, a list of pairs: first character and the one behind the last.",
            show_default=False,
        ),
    ],
    model: EvalModelOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    tokens: Annotated[
        list[int] | None, typer.Option("--tokens", help="Tokens shown; may be given several times. [128 to 1024]")
    ] = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    resume: ResumeOption = None,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """How much of what a question is about is shown? Share and all of it, by tokens shown, with two controls."""
    from shared_context.evaluation import evidence as measurement

    reader = load(model, dtype=dtype, device=device)
    shown = tuple(sorted(tokens)) if tokens else measurement.TOKENS
    report = measurement.measure(reader, data, limit=limit, seed=seed, tokens=shown, resume=resume)
    finish([report], data.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def answers(
    data: DataArgument,
    model: EvalModelOption = None,
    adapter: BesideOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    budget: Annotated[
        list[int] | None,
        typer.Option("--budget", help="KV entries or tokens shown; may be given several times. [256 and 1024]"),
    ] = None,
    all_settings: Annotated[
        bool, typer.Option("--all-settings", help="Try the baselines' other settings too; takes several times as long.")
    ] = False,
    answers_only: Annotated[
        bool, typer.Option("--answers-only", help="No likelihoods and so no controls: a third of the time.")
    ] = False,
    way: Annotated[
        list[str] | None,
        typer.Option(
            "--way", help="Only this way, as the report names it without its budget; several. All if left out."
        ),
    ] = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    resume: ResumeOption = None,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """How likely is the gold answer, and what is answered? Each way with a wrong context as its control."""
    from shared_context.evaluation import answers as measurement

    report = measurement.measure(
        load(model, dtype=dtype, device=device),
        data,
        adapter=adapter,
        limit=limit,
        seed=seed,
        budgets=tuple(sorted(budget)) if budget else measurement.BUDGETS,
        all_settings=all_settings,
        likelihoods=not answers_only,
        ways=tuple(way or ()),
        resume=resume,
    )
    finish([report], data.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def requests(
    documents: Annotated[
        Path, typer.Argument(metavar="DOCUMENTS", help="A text file or a folder of them.", show_default=False)
    ],
    asked: Annotated[
        Path,
        typer.Argument(
            metavar="REQUESTS",
            help="JSON lines, each with request, kind (list, summary, e-mail, ...) and, where the documents do not "
            "hold what is asked for, answered: false.",
            show_default=False,
        ),
    ],
    model: EvalModelOption = None,
    adapter: BesideOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    budget: Annotated[int, typer.Option("--budget", help="KV entries of a selection.")] = 1024,
    seed: SeedOption = 0,
    resume: ResumeOption = None,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Are lists, summaries and mails those of the plain model, and is it said what the documents do not hold?"""
    from shared_context.evaluation import requests as measurement

    report = measurement.measure(
        load(model, dtype=dtype, device=device),
        documents,
        asked,
        adapter=adapter,
        budget=budget,
        seed=seed,
        resume=resume,
    )
    finish([report], documents.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def citations(
    data: DataArgument,
    model: EvalModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    unit: Annotated[
        Literal["file", "article", "paragraph"],
        typer.Option("--unit", help="What of SQuAD or JSONL becomes one document."),
    ] = "file",
    budget: Annotated[int, typer.Option("--budget", help="KV entries shown.")] = 1024,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Is the passage that holds the answer among those that a right answer is said to rest on?"""
    from shared_context.evaluation import citations as measurement

    reader = load(model, adapter, dtype, device)
    report = measurement.measure(reader, data, unit=unit, limit=limit, seed=seed, budget=budget)
    finish([report], data.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def compression(
    data: DataArgument,
    model: EvalModelOption = None,
    adapter: AdapterOption = "factoid",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    part: Annotated[
        Literal["passages", "grains", "selections"] | None,
        typer.Option(
            "--part",
            help="One passage at every grain; mixed grains under a budget; or what is best shown under several "
            "budgets, of documents with marked evidence, too. The first two if left out; grains need an adapter.",
        ),
    ] = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="FILE",
            help="Of passages or selections: keep results in FILE, and go on from it.",
            callback=to_be_written,
        ),
    ] = None,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """What do coarse grains carry? Right passage, wrong one of the same length, none, as text."""
    from functools import partial

    from shared_context.evaluation import compression as measurement
    from shared_context.evaluation import selections

    if resume is not None and part not in ("passages", "selections"):
        raise typer.BadParameter("only --part passages and selections can be resumed.", param_hint="--resume")
    reader = load(model, adapter, dtype, device)
    measures: dict[str, Callable[..., Report]] = {
        "passages": partial(measurement.measure_passages, resume=resume),
        "grains": measurement.measure_grains,
        "selections": partial(selections.measure, resume=resume),
    }
    wanted = [part] if part else ["passages", "grains"]
    finish((measures[one](reader, data, limit=limit, seed=seed) for one in wanted), data.name, json_file, html_file)


@app.command(epilog=output.EXIT_CODES)
def needle(
    text: Annotated[
        Path,
        typer.Argument(
            metavar="TEXT",
            help="What the haystacks are made of: a text file, or JSONL with a text on each line.",
            show_default=False,
        ),
    ],
    model: EvalModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            help="single, multi-key, multi-value, key-value or 'variable tracking'; several. All if left out.",
        ),
    ] = None,
    length: Annotated[
        list[int] | None, typer.Option("--length", help="Tokens of a haystack; several. [1024, 4096 and 16384]")
    ] = None,
    depths: Annotated[int, typer.Option("--depths", min=2, help="Depths of a needle, evenly spaced.")] = 5,
    trials: Annotated[int, typer.Option("--trials", help="Haystacks for each task, length and depth.")] = 2,
    budget: Annotated[int, typer.Option("--budget", help="KV entries of a selection.")] = 256,
    ratio: Annotated[
        int | None,
        typer.Option("--ratio", min=1, help="Show all of a haystack at this one grain instead of a selection."),
    ] = None,
    importance: Annotated[
        Literal["repetition", "probe"],
        typer.Option("--importance", help="How it is known which rows a coarse grain keeps."),
    ] = "repetition",
    seed: SeedOption = 0,
    resume: ResumeOption = None,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """Is a needle found and named, by depth and length? Single, several keys or values, key-value, variables."""
    from shared_context.evaluation import needle as measurement
    from shared_context.evaluation.long_text import read_texts

    report = measurement.measure(
        load(model, adapter, dtype, device),
        "\n\n".join(read_texts(text)),
        lengths=tuple(sorted(length)) if length else measurement.LENGTHS,
        depths=[step / (depths - 1) for step in range(depths)],
        tasks=tuple(cast("list[Task]", task)) if task else measurement.TASKS,
        trials=trials,
        budget=budget,
        ratio=ratio,
        importance=importance,
        seed=seed,
        resume=resume,
    )
    finish([report], text.name, json_file, html_file)


@app.command(name="language-model", epilog=output.EXIT_CODES)
def language_model(
    texts: Annotated[
        list[Path],
        typer.Argument(
            metavar="TEXT...",
            help="What is read: text files, or JSONL with a text on each line; two texts or more, for each one's "
            "control is the next.",
            show_default=False,
        ),
    ],
    model: EvalModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    length: Annotated[
        list[int] | None, typer.Option("--length", help="Tokens of context; several. [3072 to 130048]")
    ] = None,
    places: Annotated[int, typer.Option("--places", min=1, help="Where in each text, evenly spaced.")] = 2,
    budget: Annotated[int, typer.Option("--budget", help="KV entries of a selection.")] = 4096,
    recent: Annotated[
        int, typer.Option("--recent", min=0, help="Tokens right before that a selection opens first.")
    ] = 2048,
    seed: SeedOption = 0,
    resume: ResumeOption = None,
    json_file: JsonFileOption = None,
    html_file: HtmlFileOption = None,
) -> None:
    """How likely is running text, by how much of what stands before it is in the store? Right, wrong, none."""
    from shared_context.evaluation import language_model as measurement
    from shared_context.evaluation.long_text import read_texts

    report = measurement.measure(
        load(model, adapter, dtype, device),
        [text for path in texts for text in read_texts(path)],
        lengths=tuple(length) if length else measurement.LENGTHS,
        places=places,
        budget=budget,
        recent=recent,
        seed=seed,
        resume=resume,
    )
    finish([report], ", ".join(path.name for path in texts), json_file, html_file)
