"""What is shown of a document, as the user sees it: nodes, and passages of nodes that touch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shared_context.store.passages import heading_of, whole


@dataclass(frozen=True)
class SelectedNode:
    """A node that is shown.

    Attributes:
        doc_id: the document's id.
        start, end: its characters in the document's text.
        text: those characters.
        level: level in its tree, root 0.
        ratio: its grain; one KV of ``ratio`` is shown.
        score: how much it has to do with the query, 0 to 1. It means the same in every store of one model and embedder,
            so that a cutoff can be set; no node has more than one that the policy finds more promising.
        token_count: tokens of the node.
        kv_entries: KV entries that are shown of it.
        metadata: the document's, which all of its nodes share and none can change.
        said: of a conversation's node, who said it ("role"), as which of its messages ("message", counted from 0) and
            when ("time", ISO 8601); None of a document's.
        also_in: ids of other documents that say the same, which is shown once, or nearly the same: all but a date, a
            greeting or a few words.
        header: whether it is the document's header and no part of its text; ``start`` and ``end`` are 0 then.
        unsearched_keys, hidden_keys: the document's, see :class:`~shared_context.store.documents.Document`.
    """

    doc_id: str
    start: int
    end: int
    text: str
    level: int
    ratio: int
    score: float
    token_count: int
    kv_entries: int
    metadata: Mapping[str, Any] = field(repr=False, hash=False)
    said: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)
    also_in: tuple[str, ...] = ()
    header: bool = False
    unsearched_keys: tuple[str, ...] = field(default=(), repr=False)
    hidden_keys: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Passage(SelectedNode):
    """What is shown side by side in a document, to be read as text.

    ``start``, ``end`` and ``text`` are widened to whole sentences, lines or rows of a table (see
    :func:`~shared_context.store.passages.whole`); tokens, entries and score are those of the nodes.

    Attributes:
        shown: the characters of the nodes, which an injection shows.
        heading: the heading that it stands under, and the names of columns where it begins within a table; None where
            there is neither.
    """

    shown: tuple[int, int] = (0, 0)
    heading: str | None = None

    @classmethod
    def of(cls, run: Sequence[SelectedNode], text: str) -> Passage:
        """Nodes that touch, as a passage.

        Args:
            run: nodes of one level and ratio, in document order.
            text: the document's.
        """
        first, shown = run[0], (run[0].start, run[-1].end)
        if first.header:
            return cls(**vars(first))
        start, end = whole(text, *shown)
        own = vars(first) | {
            "start": start,
            "end": end,
            "text": text[start:end],
            "score": max(node.score for node in run),
            "token_count": sum(node.token_count for node in run),
            "kv_entries": sum(node.kv_entries for node in run),
            "also_in": tuple(sorted({doc_id for node in run for doc_id in node.also_in})),
        }
        return cls(**own, shown=shown, heading=heading_of(text, start))

    def within(self, start: int, end: int) -> Passage:
        """The part of it between two characters of its document; itself where nothing would be left."""
        start, end = max(start, self.start), min(end, self.end)
        if start >= end:
            return self
        return replace(self, start=start, end=end, text=self.text[start - self.start : end - self.start])
