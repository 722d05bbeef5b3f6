"""What a query sees of a document: finely, coarsely or not at all; as parts, in words and as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from shared_context.store.selection import SelectedNode

Grain = Literal["fine", "coarse", "unseen"]
GRAINS: tuple[Grain, ...] = get_args(Grain)

STYLE = """
.shared-context pre { font: inherit; white-space: pre-wrap; overflow-wrap: anywhere }
.shared-context .fine { background: #b7ebc6; color: #06280f; font-weight: 600; text-decoration: underline }
.shared-context .coarse { background: #f7ecc0; color: #5c4a08; font-style: italic; text-decoration: underline dotted }
.shared-context .unseen { color: #6e7681 }
@media (prefers-color-scheme: dark) { .shared-context .unseen { color: #8b949e } }
"""


@dataclass(frozen=True)
class Part:
    """A part of a document and how it is seen.

    Attributes:
        start, end: characters.
        grain: finely, coarsely or not at all.
        node: the node that is seen there; None where nothing is.
    """

    start: int
    end: int
    grain: Grain
    node: SelectedNode | None = None


def parts_of(length: int, nodes: Iterable[SelectedNode], fine: int = 1) -> list[Part]:
    """A document of ``length`` characters cut up, without gaps, by the nodes that are seen of it.

    Args:
        nodes: of this document, in its order. Where a character lies on the edge of two, the first has it.
        fine: the largest ratio that counts as fine.
    """
    parts: list[Part] = []
    at = 0
    for node in nodes:
        if node.start > at:
            parts.append(Part(at, node.start, "unseen"))
        start = max(at, node.start)
        if node.end > start:
            parts.append(Part(start, node.end, "fine" if node.ratio <= fine else "coarse", node))
            at = node.end
    if at < length:
        parts.append(Part(at, length, "unseen"))
    return parts


def summary(text: str, parts: Sequence[Part]) -> str:
    """How much of a document is seen, in one line."""
    counts = {grain: sum(part.end - part.start for part in parts if part.grain == grain) for grain in GRAINS}
    entries = sum(part.node.kv_entries for part in parts if part.node is not None)
    return (
        f"{counts['fine']:,} of {len(text):,} characters finely, {counts['coarse']:,} coarsely; {entries:,} KV entries"
    )


def as_html(figures: str, documents: Iterable[tuple[str, str, Sequence[Part]]]) -> str:
    """Documents with their parts marked: no script, nothing fetched. Hovering names a node's ratio and score.

    Args:
        figures: what is said of the whole selection.
        documents: id, text and parts of each.
    """

    def marked(text: str, part: Part) -> str:
        node = part.node
        title = f' title="ratio {node.ratio}, score {node.score:.2f}"' if node is not None else ""
        return f'<span class="{part.grain}"{title}>{html.escape(text[part.start : part.end])}</span>'

    sections = (
        f'<h2>{html.escape(id)}</h2>\n<p>{summary(text, parts)}</p>\n<pre dir="auto" tabindex="0">'
        f"{''.join(marked(text, part) for part in parts)}</pre>"
        for id, text, parts in documents
    )
    return (
        f'<style>{STYLE}</style>\n<div class="shared-context">\n<p>Seen: <span class="fine">finely</span> '
        f'<span class="coarse">coarsely</span> <span class="unseen">not at all</span>.\n{html.escape(figures)}</p>\n'
        + "\n".join(sections)
        + "\n</div>"
    )
