"""A document as a selection shows it, finely, coarsely or not at all: as parts, in words and as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count, groupby
from typing import Literal, get_args

from shared_context.store.selected import SelectedNode

Grain = Literal["fine", "coarse", "unseen"]
GRAINS: tuple[Grain, ...] = get_args(Grain)

EDGE = 240
"""Characters that stay at each end of a long part that is not seen."""

STYLE = """
.shared-context pre { font: inherit; white-space: pre-wrap; overflow-wrap: anywhere }
.shared-context .fine { background: #b7ebc6; color: #06280f; font-weight: 600; text-decoration: underline }
.shared-context .coarse { background: #f7ecc0; color: #5c4a08; font-style: italic; text-decoration: underline dotted }
.shared-context .unseen, .shared-context .gap { color: #6e7681 }
.shared-context .gap { display: block; font-size: 0.85em; margin: 0.4em 0 }
.shared-context .links { font-size: 0.75em; padding: 0 0.3em }
.shared-context .links a { text-decoration: none }
@media (prefers-color-scheme: dark) { .shared-context .unseen { color: #8b949e } }
"""


@dataclass(frozen=True)
class ShownPart:
    """A part of a document and how it is shown.

    Attributes:
        start, end: characters.
        grain: finely, coarsely or not at all.
        node: the node that is shown there; None where nothing is.
    """

    start: int
    end: int
    grain: Grain
    node: SelectedNode | None = None


def parts_of(length: int, nodes: Iterable[SelectedNode], fine: int = 1) -> list[ShownPart]:
    """A document of ``length`` characters cut up, without gaps, by the nodes that are shown of it.

    Args:
        nodes: of this document, in its order. Where a character lies on the edge of two, the first has it.
        fine: the largest ratio that counts as fine.
    """
    parts: list[ShownPart] = []
    at = 0
    for node in nodes:
        if node.start > at:
            parts.append(ShownPart(at, node.start, "unseen"))
        start = max(at, node.start)
        if node.end > start:
            parts.append(ShownPart(start, node.end, "fine" if node.ratio <= fine else "coarse", node))
            at = node.end
    if at < length:
        parts.append(ShownPart(at, length, "unseen"))
    return parts


def summary(text: str, parts: Sequence[ShownPart]) -> str:
    """How much of a document is seen, in one line."""
    counts = {grain: sum(part.end - part.start for part in parts if part.grain == grain) for grain in GRAINS}
    entries = sum(part.node.kv_entries for part in parts if part.node is not None)
    return (
        f"{counts['fine']:,} of {len(text):,} characters finely, {counts['coarse']:,} coarsely; {entries:,} KV entries"
    )


def stretches(parts: Sequence[ShownPart]) -> Iterator[tuple[Grain, int, int]]:
    """Grain, start and end of runs of parts with one grain."""
    for grain, run in groupby(parts, key=lambda part: part.grain):
        together = list(run)
        yield grain, together[0].start, together[-1].end


def surroundings(text: str, before: bool, after: bool) -> tuple[str, int, str]:
    """What is shown of a part that is not seen: what surrounds the seen parts before and after it.

    Args:
        text: of the part.
        before, after: whether something that is seen comes before it, and after it.

    Returns:
        Its beginning, the number of characters that are left out, and its end; cut between words where there are any.
        A short text is its own beginning.
    """
    if len(text) <= 3 * EDGE:
        return text, 0, ""
    head = text.rfind(" ", 1, EDGE) if before else 0
    tail = text.find(" ", len(text) - EDGE) if after else len(text)
    head, tail = (head if head >= 0 else EDGE), (tail if tail >= 0 else len(text) - EDGE)
    return text[:head], tail - head, text[tail:]


def as_html(figures: str, documents: Iterable[tuple[str, str, Sequence[ShownPart]]], *, full: bool = False) -> str:
    """Documents with their parts marked, and links from passage to passage: no script, nothing fetched.

    A passage is what is seen without a gap. Hovering names a node's ratio and score.

    Args:
        figures: what is said of the whole selection.
        documents: id, text and parts of each.
        full: show long parts that are not seen, too, and not only what surrounds those that are.
    """
    documents = list(documents)
    # Told apart from those of other selections in the same notebook.
    name = sha256(repr((figures, [(id, parts) for id, _, parts in documents])).encode()).hexdigest()[:8]
    passages = count(1)
    last = sum(_is_passage(parts, at) for _, _, parts in documents for at in range(len(parts)))

    def place(number: int, words: str) -> str:
        return f'<a href="#seen-{name}-{number}">{words}</a>' if 1 <= number <= last else words

    def marked(text: str, parts: Sequence[ShownPart], at: int) -> str:
        part = parts[at]
        words = text[part.start : part.end]
        if part.node is None:
            before, left_out, after = (words, 0, "") if full else surroundings(words, at > 0, at < len(parts) - 1)
            gap = f'<span class="gap">[... {left_out:,} characters ...]</span>' if left_out else ""
            sides = [f'<span class="unseen">{html.escape(side)}</span>' for side in (before, after)]
            return gap.join(sides)
        title = f' title="ratio {part.node.ratio}, score {part.node.score:.2f}"'
        shown = f'<span class="{part.grain}"{title}>{html.escape(words)}</span>'
        if not _is_passage(parts, at):
            return shown
        number = next(passages)
        links = f"{place(number - 1, '&#8593;')} {number} {place(number + 1, '&#8595;')}"
        return (
            f'<sup class="links" id="seen-{name}-{number}" aria-label="passage {number} of {last}">{links}</sup>{shown}'
        )

    sections = [
        f'<h2>{html.escape(id)}</h2>\n<p>{summary(text, parts)}</p>\n<pre dir="auto" tabindex="0">'
        f"{''.join(marked(text, parts, at) for at in range(len(parts)))}</pre>"
        for id, text, parts in documents
    ]
    links = " ".join(place(number, str(number)) for number in range(1, last + 1))
    return (
        f'<style>{STYLE}</style>\n<div class="shared-context">\n<p>Seen: <span class="fine">finely</span> '
        f'<span class="coarse">coarsely</span> <span class="unseen">not at all</span>.\n{html.escape(figures)}</p>\n'
        + (f'<nav aria-label="Passages">Passages: {links}</nav>\n' if last else "")
        + "\n".join(sections)
        + "\n</div>"
    )


def _is_passage(parts: Sequence[ShownPart], at: int) -> bool:
    """Whether a passage begins with a part."""
    return parts[at].node is not None and (at == 0 or parts[at - 1].node is None)
