"""`shared-context inspect`: what a question sees of a document finely, coarsely and not at all."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
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
    ModelOption,
    NamespaceOption,
    PlaceArgument,
    PolicyOption,
    PrefilterOption,
    QuestionArgument,
    parse_filters,
    read_question,
)
from shared_context.store.shown_document import Grain, ShownPart, as_html, parts_of, stretches, summary, surroundings

if TYPE_CHECKING:
    from shared_context import Document, Selection

STYLES: dict[Grain, str] = {"fine": "bold green", "coarse": "dim yellow", "unseen": "bright_black"}
MARKS: dict[Grain, tuple[str, str]] = {"fine": ("\u27e6", "\u27e7"), "coarse": ("\u27e8", "\u27e9"), "unseen": ("", "")}
ASCII_MARKS: dict[Grain, tuple[str, str]] = {"fine": ("[[", "]]"), "coarse": ("((", "))"), "unseen": ("", "")}


def inspect(
    path: PlaceArgument,
    question: QuestionArgument,
    document: Annotated[
        list[str] | None,
        typer.Option("--document", metavar="ID", help="Show these documents; by default those the question sees."),
    ] = None,
    model: ModelOption = None,
    namespace: NamespaceOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    budget: BudgetOption = 1024,
    fine: FineOption = None,
    policy: PolicyOption = None,
    coarse: Annotated[
        str | None,
        typer.Option(
            "--coarse",
            metavar="RATIOS",
            help='Ratio of unopened nodes at each level, root first, such as "none,16,8,4"; by default the store\'s.',
        ),
    ] = None,
    filters: FilterOption = None,
    prefilter: PrefilterOption = None,
    full: Annotated[
        bool, typer.Option("--full", help="Show long unseen parts as well, not only what surrounds the seen ones.")
    ] = False,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page to FILE instead of printing.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show documents with what a question sees finely, coarsely and not at all.

    The selection is the one that `ask` makes with the same options.
    """
    if html_file is not None and as_json:
        raise typer.BadParameter("choose one of --html and --json.", param_hint="--html")
    question = read_question(question)
    wanted = parse_filters(filters)
    ratios = _parse_ratios(coarse)
    with session.open_store(path, model, adapter=adapter, dtype=dtype, device=device, namespace=namespace) as store:
        asked_for = [store.get(id) for id in document or ()]
        selection = store.select(
            question, budget=budget, policy=policy, fine=fine, coarse=ratios, filters=wanted, prefilter=prefilter
        )
        if not selection:
            output.nothing_found(path, wanted)
        documents = asked_for or [store.get(id) for id in selection.doc_ids]
        fine = fine or store.config.tree.fine
    shown = [(d, parts_of(len(d.text), (n for n in selection.nodes if n.doc_id == d.id), fine)) for d in documents]
    if as_json:
        output.print_json(_as_dict(selection, shown, full))
    elif html_file is not None:
        html_file.write_text(_page(selection, shown, full), encoding="utf-8")
        output.messages().print(f"wrote {html_file}", soft_wrap=True)
    else:
        _print(selection, shown, full)


def _parse_ratios(text: str | None) -> tuple[int | None, ...] | None:
    if text is None:
        return None
    try:
        return tuple(None if ratio.strip().lower() == "none" else int(ratio) for ratio in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list such as none,16,8,4.", param_hint="--coarse") from error


# ---- terminal


def _print(selection: Selection, shown: Sequence[tuple[Document, list[ShownPart]]], full: bool) -> None:
    console = output.results()
    marks = _marks(console)
    legend = Text("Seen: ")
    meanings: dict[Grain, str] = {
        "fine": "finely",
        "coarse": "coarsely, one KV of several",
        "unseen": "not at all",
    }
    for grain, meaning in meanings.items():
        legend.append(marks[grain][0] + meaning + marks[grain][1], style=STYLES[grain])
        legend.append("  ")
    legend.append(f"{selection.kv_entries:,} KV entries of {selection.budget:,}, {selection.policy}")
    console.print(legend, soft_wrap=True)
    for document, parts in shown:
        title = Text.assemble((output.printable(document.id), "bold cyan"), f"  {summary(document.text, parts)}")
        console.print("\n", title, "\n", sep="", soft_wrap=True)
        body = Text()
        for grain, start, end in stretches(parts):
            opening, closing = marks[grain]
            text = document.text[start:end]
            if grain == "unseen" and not full:
                head, left_out, tail = surroundings(text, start > 0, end < len(document.text))
                text = f"{head}\n[... {left_out:,} characters ...]\n{tail}" if left_out else head
            body.append(opening + output.printable(text) + closing, style=STYLES[grain])
        console.print(body, soft_wrap=True)


def _marks(console: Console) -> dict[Grain, tuple[str, str]]:
    """What stands around a part: nothing where colours tell the grains apart."""
    if console.color_system is not None and not console.no_color:
        return dict.fromkeys(STYLES, ("", ""))
    return MARKS if console.encoding.startswith("utf") else ASCII_MARKS


# ---- programs


def _as_dict(selection: Selection, shown: Sequence[tuple[Document, list[ShownPart]]], full: bool) -> dict[str, Any]:
    def span(document: Document, part: ShownPart) -> dict[str, Any]:
        node = part.node
        return {
            "start": part.start,
            "end": part.end,
            "grain": part.grain,
            "ratio": node.ratio if node is not None else None,
            "level": node.level if node is not None else None,
            "score": node.score if node is not None else None,
            "text": document.text[part.start : part.end] if full or node is not None else None,
        }

    return {
        "question": selection.query,
        "policy": selection.policy,
        "budget": selection.budget,
        "kv_entries": selection.kv_entries,
        "documents": [
            {
                "id": document.id,
                "characters": len(document.text),
                "metadata": dict(document.metadata),
                "spans": [span(document, part) for part in parts],
            }
            for document, parts in shown
        ],
    }


# ---- browser

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{question}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }}
</style>
<h1>{question}</h1>
{documents}
</html>
"""


def _page(selection: Selection, shown: Sequence[tuple[Document, list[ShownPart]]], full: bool) -> str:
    """A page of its own: no script, nothing fetched."""
    figures = f"{selection.kv_entries:,} KV entries of {selection.budget:,}, policy {selection.policy}."
    documents = as_html(figures, ((document.id, document.text, parts) for document, parts in shown), full=full)
    return _PAGE.format(question=html.escape(selection.query or ""), documents=documents)
