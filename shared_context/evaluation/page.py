"""Reports as one HTML page that needs nothing else: no script, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from shared_context.evaluation.plots import heat_map_svg, lines_svg
from shared_context.evaluation.report import (
    TARGETS,
    AskedQuestion,
    Cell,
    Exhibit,
    HeatMap,
    Lines,
    Report,
    Source,
    Table,
    text_of,
)
from shared_context.plotting import can_draw

LONG_TABLE = 24
"""Rows from which on a table is folded."""

NO_PLOTS = "Tables alone: plots are drawn with Vega-Lite, pip install 'sharedllm[plots]'."

# Colours after Okabe and Ito, which people with any kind of colour blindness tell apart; darkened for a light page.
STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b1f24; --soft: #57606a; --rule: #d0d7de; --shade: #0b5cad;
  --over: #ffffff; --good: #116329; --bad: #a40e26;
  --c0: #0b5cad; --c1: #b54700; --c2: #00735c; --c3: #9c3f7d; --c4: #7a5b00; --c5: #2b7fb8;
  --c6: #444c56; --c7: #c22f2f }
@media (prefers-color-scheme: dark) { :root { --page: #0f1318; --ink: #e6edf3; --soft: #9aa5b1; --rule: #30363d;
  --shade: #58a6ff; --over: #0f1318; --good: #56d364; --bad: #ff7b72;
  --c0: #58a6ff; --c1: #f0883e; --c2: #3fc7a4; --c3: #e48ac4; --c4: #e3c34c; --c5: #8fd0ff;
  --c6: #c3ccd6; --c7: #ff7b72 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif }
h1, h2, h3 { line-height: 1.25 } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--rule) }
a { color: var(--c0) } .setting, .note, caption { color: var(--soft) }
a:focus-visible, summary:focus-visible, .scroll:focus-visible, path:focus-visible { outline: 2px solid var(--c1);
  outline-offset: 2px }
.skip { position: absolute; left: -999px } .skip:focus { position: static }
figure { margin: 1.5rem 0 } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top }
td.number { text-align: right; white-space: nowrap } thead th { position: sticky; top: 0; background: var(--page) }
caption { text-align: left; padding: 0.5rem 0 }
.question { margin: 0.3rem 0 } .question[open] { border-left: 3px solid var(--rule); padding-left: 0.8rem }
.yes { color: var(--good); font-weight: 600 } .no { color: var(--bad); font-weight: 700 }
.plot { width: 100%; height: auto; display: block }
"""


def page(title: str, reports: Sequence[Report]) -> str:
    """A page of some reports, each plot followed by its table; without the extra ``plots``, the tables alone."""
    names = [f"{_id(report.name)}-{number}" for number, report in enumerate(reports, start=1)]
    contents = "".join(
        f'<li><a href="#{id}">{escape(report.name)}</a></li>' for id, report in zip(names, reports, strict=True)
    )
    sections = "\n".join(_section(id, report) for id, report in zip(names, reports, strict=True))
    plots = any(isinstance(part, Lines | HeatMap) for report in reports for part in report.parts)
    note = f'<p class="note">{NO_PLOTS}</p>' if plots and not can_draw() else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#main">Skip to the results</a>\n<header><h1>{escape(title)}</h1>\n'
        f'<nav aria-label="Measurements"><ul>{contents}</ul></nav></header>\n'
        f'<main id="main">\n{note}{sections}\n</main>\n'
        "</body>\n</html>\n"
    )


def _section(id: str, report: Report) -> str:
    setting = "; ".join(f"{name}: {text_of(value)}" for name, value in report.setting.items())
    tables = [table for table in report.tables() if table.title != TARGETS]  # they are aims of this library
    parts = [_part(part, table) for part, table in zip(report.parts, tables, strict=False)]
    rest = [_figure("", table) for table in tables[len(report.parts) :]]
    notes = [f'<p class="note">{escape(note)}</p>' for note in report.notes]
    return "\n".join(
        [
            f'<section aria-labelledby="{id}"><h2 id="{id}">{escape(report.name)}</h2>',
            f'<p class="setting">{escape(setting)}</p>',
            *notes,
            *parts,
            *rest,
            *_questions(id, report.questions),
            "</section>",
        ]
    )


def _questions(id: str, questions: Sequence[AskedQuestion]) -> list[str]:
    """Each question, folded, with its answers, scores and sources."""
    if not questions:
        return []
    return [f'<h3 id="{id}-questions">Questions</h3>', *map(_question, questions)]


def _question(question: AskedQuestion) -> str:
    scores = list(dict.fromkeys(name for answer in question.answers for name in answer.scores))
    table = Table(
        "Answers",
        ("shown", "answer", "tokens shown", *scores),
        [(a.way, a.text, a.tokens, *(a.scores.get(name) for name in scores)) for a in question.answers],
    )
    sources = "".join(
        f"<details><summary>Sources: {escape(answer.way)}</summary><ol>{''.join(map(_source, answer.sources))}</ol>"
        "</details>"
        for answer in question.answers
        if answer.sources
    )
    gold = ", ".join(f"<q>{escape(text)}</q>" for text in question.gold)
    return (
        f'<details class="question"><summary>{escape(question.text)}</summary>'
        f"<p>Right: {gold}, in {escape(question.document)}</p>{_figure('', table)}{sources}</details>"
    )


def _source(source: Source) -> str:
    place = ""
    if source.document is not None:
        where = f"characters {source.start:,} to {source.end:,}, score {source.score:.2f}"
        place = f"<b>{escape(source.document)}</b>, {where}: "
    return f'<li dir="auto">{place}{escape(source.text)}</li>'


def _part(part: Exhibit, table: Table) -> str:
    if isinstance(part, Table):
        return _figure("", table)
    plot = ""
    if can_draw():
        plot = lines_svg(part) if isinstance(part, Lines) else heat_map_svg(part)
    return _figure(f"<h3>{escape(part.title)}</h3>{plot}", table)


def _figure(plot: str, table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    body = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>'
        f"<caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    if len(table.rows) >= LONG_TABLE:
        body = f"<details><summary>{escape(table.title)}: {len(table.rows)} rows</summary>{body}</details>"
    return f"<figure>{plot}{body}</figure>"


def _cell(cell: Cell) -> str:
    css = ' class="number"' if isinstance(cell, int | float) or cell is None else ""
    if cell in ("yes", "better"):
        css = ' class="yes"'
    elif cell in ("NO", "worse"):
        css = ' class="no"'
    return f"<td{css}>{escape(text_of(cell))}</td>"


def _id(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
