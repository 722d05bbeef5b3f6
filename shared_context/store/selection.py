"""A selection: what a query is shown of which documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count, groupby
from typing import Any

import numpy as np
import torch

from shared_context.config import Rows
from shared_context.errors import ConfigError, ModelMismatchError
from shared_context.model.context import CoarseKV, ContextKV
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.store.selected import Passage, SelectedNode
from shared_context.store.selected_chunk import SelectedChunk, ShownChunk
from shared_context.store.shown_document import as_html, parts_of
from shared_context.tree import node_rows


class Selection:
    """The cuts chosen for one query, in document order; hand it to a model as ``context``.

    It stays valid when its documents are changed or deleted: it keeps the tokens that it shows.

    Attributes:
        query: what was asked; None where there was no query.
        budget: KV entries that were allowed; None where none was set.
        policy: the name of the scoring policy; None where nothing was scored.
        rows: which rows grains above 1 keep.
        missing_shards: names of the shards of a store that did not answer, so that nothing of theirs is here.
        owner: of the namespace that it was selected from, see :class:`~shared_context.model.requests.Context`.
    """

    missing_shards: tuple[str, ...] = ()

    def __init__(
        self,
        chunks: Iterable[SelectedChunk],
        shown: Callable[[Sequence[SelectedChunk], Rows], Sequence[ShownChunk]],
        model: SharedLLMModel,
        *,
        query: str | None,
        budget: int | None,
        policy: str | None,
        rows: Rows,
        owner: bytes = b"",
    ):
        self.chunks = tuple(chunks)
        self.owner = owner
        self.query, self.budget, self.policy, self.rows = query, budget, policy, rows
        self._shown, self._model = shown, model

    @property
    def nodes(self) -> tuple[SelectedNode, ...]:
        """The nodes shown, in document order."""
        return tuple(node for chunk in self.chunks for node in chunk.nodes)

    @property
    def kv_entries(self) -> int:
        """KV entries per layer, on average over its heads; never more than the budget."""
        return sum(node.kv_entries for node in self.nodes)

    @property
    def model_identity(self) -> str:
        """Of the model that encodes it, and alone can read it."""
        return self._model.identity

    @property
    def doc_ids(self) -> list[str]:
        """Ids of the documents that something is shown of, in document order."""
        return list(dict.fromkeys(node.doc_id for node in self.nodes))

    @property
    def passages(self) -> list[tuple[SelectedNode, ...]]:
        """The nodes in runs that touch each other in their document."""
        runs: list[list[SelectedNode]] = []
        for node in self.nodes:
            if runs and runs[-1][-1].doc_id == node.doc_id and runs[-1][-1].end == node.start:
                runs[-1].append(node)
            else:
                runs.append([node])
        return [tuple(run) for run in runs]

    @property
    def runs(self) -> list[tuple[SelectedNode, ...]]:
        """The passages, split where level or ratio changes: each is one span for the store's ``selection_from``."""
        return [
            tuple(run)
            for passage in self.passages
            for _, run in groupby(passage, key=lambda node: (node.header, node.level, node.ratio))
        ]

    @property
    def sources(self) -> list[Passage]:
        """The runs as they are read or handed to another model, in document order; none repeats what another says."""
        texts = {chunk.nodes[0].doc_id: chunk.text for chunk in self.chunks}
        widened = [Passage.of(run, texts[run[0].doc_id]) for run in self.runs]
        sources: list[Passage] = []
        for number, passage in enumerate(widened):
            first, last = 0, passage.end
            if sources and sources[-1].doc_id == passage.doc_id and not passage.header:
                first = sources[-1].end
            if number + 1 < len(widened) and widened[number + 1].doc_id == passage.doc_id and not passage.header:
                last = widened[number + 1].shown[0]
            sources.append(passage.within(first, last))
        return sources

    @property
    def text(self) -> str:
        """The sources' text; a blank line stands between those that do not touch.

        Each begins with its heading, where that is another one than before, and of a conversation with when it was
        said.
        """
        parts: list[str] = []
        before: Passage | None = None
        for passage in self.sources:
            beside = before if before is not None and before.doc_id == passage.doc_id else None
            touches = beside is not None and beside.end == passage.start
            if parts and not touches:
                parts.append("\n\n")
            told = beside is not None and beside.heading == passage.heading
            if passage.heading and not touches and not told:
                parts.append(f"{passage.heading}\n")
            parts += ["" if touches else _dated(passage), passage.text]
            before = passage
        return "".join(parts)

    def __add__(self, other: Selection | JoinedSelections) -> JoinedSelections:
        """Both as one context: this one is read first, ``other`` next to the question."""
        return JoinedSelections((self, other))

    def __len__(self) -> int:
        return sum(len(chunk.nodes) for chunk in self.chunks)

    def __copy__(self) -> Selection:
        return self  # nothing changes it

    def __deepcopy__(self, memo: dict[int, Any]) -> Selection:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise ConfigError(
            f"the selection for {self.query!r} stays with its store and cannot be pickled: keep the question, and "
            "select again"
        )

    def __bool__(self) -> bool:
        return len(self) > 0

    def __repr__(self) -> str:
        allowed = "" if self.budget is None else f" of {self.budget}"
        return f"Selection({len(self)} nodes of {len(self.doc_ids)} documents, {self.kv_entries}{allowed} KV entries)"

    def _repr_html_(self) -> str:
        """For notebooks: each document with what is seen of it finely (ratio 1), coarsely and not at all."""
        texts = {chunk.nodes[0].doc_id: chunk.text for chunk in self.chunks}
        shown = (
            (id, text, parts_of(len(text), (n for n in self.nodes if n.doc_id == id))) for id, text in texts.items()
        )
        allowed = "" if self.budget is None else f" of {self.budget:,}"
        asked = "" if self.query is None else f"{self.query} "
        return as_html(f"{asked}{self.kv_entries:,} KV entries{allowed}, policy {self.policy or 'none'}.", shown)

    def subset(self, nodes: Iterable[SelectedNode]) -> Selection:
        """The selection of some of these nodes only, still in document order; a document keeps its header.

        Args:
            nodes: nodes of this selection; others are passed over.
        """
        wanted = set(nodes)
        told = {node.doc_id for node in wanted}
        chunks = []
        for chunk in self.chunks:
            kept = [
                (grained, node)
                for grained, node in zip(chunk.cut, chunk.nodes, strict=True)
                if node in wanted or (node.header and node.doc_id in told)
            ]
            if kept:
                cut, shown = zip(*kept, strict=True)
                chunks.append(replace(chunk, cut=cut, nodes=shown))
        return self._of(chunks)

    def described(self, say: Callable[[SelectedNode], Mapping[str, Any]]) -> Selection:
        """The same selection, of which each node tells who ``said`` it and when; it is read in the order of time."""
        chunks = [
            replace(chunk, nodes=tuple(replace(node, said=say(node)) for node in chunk.nodes)) for chunk in self.chunks
        ]
        return self._of(chunks)

    def _of(self, chunks: Iterable[SelectedChunk]) -> Selection:
        """A selection of other chunks that has all else in common with this one."""
        return Selection(
            chunks, self._shown, self._model, query=self.query, budget=self.budget, policy=self.policy, rows=self.rows,
            owner=self.owner,
        )  # fmt: skip

    @property
    def positions(self) -> int:
        """Positions that the nodes take where there is room for all of them."""
        return sum(self._width(node) for node in self.nodes)

    def key_values(self, room: int | None = None) -> ContextKV:
        """The encodings of the chunks, from the cache or computed now, and the rows of them that are shown.

        Passages are read in the order of their scores, the most promising last, next to the question: a decoder uses
        best what is near. Within a passage the order is the document's. Where headers are shown,
        all passages of a document follow its header; what was said in a conversation is read in the order of time.

        Rows of coarse nodes keep their distances as far as there is room. Where there is not, those nodes are squeezed,
        down to as many positions as they have entries.

        Args:
            room: positions that all may take, no fewer than ``kv_entries``; None sets no limit.
        """
        begins = self._begins(1.0 if room is None else _share_of_spacing(self.kv_entries, self.positions, room))
        parts = self._shown(self.chunks, self.rows)
        rows, places, token_ids, number = [], [], [np.zeros(0, np.int32)], 0
        coarse: list[CoarseKV | None] = []
        for chunk, part in zip(self.chunks, parts, strict=True):
            place = np.zeros(len(chunk.token_ids), np.int64)
            for (node, ratio), (begin, width) in zip(chunk.cut, begins[number : number + len(chunk.cut)], strict=True):
                start, end = (chunk.begin + bound for bound in chunk.tree.span(node))
                if ratio is not None and ratio > 1 and self.rows == "stride":
                    kept = [chunk.begin + row for row in node_rows(*chunk.tree.span(node), ratio)]
                    place[kept] = begin + np.arange(len(kept))
                else:
                    place[start:end] = begin + np.arange(end - start) * width // max(end - start, 1)
            number += len(chunk.cut)
            rows.append(torch.tensor(chunk.rows(self.rows), dtype=torch.int64))
            places.append(torch.from_numpy(place[rows[-1].numpy()]))
            token_ids.append(chunk.token_ids[rows[-1].numpy()])
            if part.coarse is None:
                coarse.append(None)
            else:
                stood = part.coarse.tokens.long()
                coarse.append(CoarseKV(part.coarse, torch.from_numpy(place)[stood], stood))
        return ContextKV(
            [part.kv for part in parts],
            [part.rows for part in parts],
            torch.from_numpy(np.concatenate(token_ids).astype(np.int64)),
            places,
            rows,
            coarse,
            sum(width for _, width in begins),
        )

    def _width(self, node: SelectedNode) -> int:
        """Positions that a node takes where there is room."""
        return node.kv_entries if self.rows == "stride" else node.token_count

    def _begins(self, spacing: float) -> list[tuple[int, int]]:
        """For each node, in document order, its first place in the order of reading, and how many it takes.

        Args:
            spacing: share of what nodes take beyond their entries that there is room for.
        """
        numbers = count()
        # By their numbers, for nodes within one character are equal.
        parts = self.passages
        if any(node.header or node.said is not None for node in self.nodes):
            parts = [tuple(document) for _, document in groupby(self.nodes, key=lambda node: node.doc_id)]
        passages = [[(next(numbers), node) for node in passage] for passage in parts]
        begins: dict[int, tuple[int, int]] = {}
        at = 0
        for passage in sorted(passages, key=lambda nodes: max(node.score for _, node in nodes)):
            for number, node in passage:
                beyond = int((self._width(node) - node.kv_entries) * spacing)
                begins[number] = at, node.kv_entries + beyond
                at += node.kv_entries + beyond
        return [begins[number] for number in range(len(begins))]


def _dated(node: SelectedNode) -> str:
    """When what begins with a node was said, in front of it; empty where that is not known."""
    time = (node.said or {}).get("time")
    return "" if time is None else f"[{time[:16].replace('T', ' ')}] "


def _share_of_spacing(entries: int, positions: int, room: int) -> float:
    """How much of the positions beyond entries there is room for, between 0 and 1."""
    return 1.0 if positions <= room else max(0.0, (room - entries) / (positions - entries))


@dataclass(frozen=True)
class JoinedSelections:
    """Selections read one behind the other, of one store or of several: what ``+`` makes of them.

    Hand it to a model as ``context``, as a :class:`Selection`.

    Args:
        parts: in the order of reading, the last one next to the question.

    Raises:
        ModelMismatchError: they were made for different models.
    """

    parts: tuple[Selection | JoinedSelections, ...]

    def __post_init__(self) -> None:
        identities = {part.model_identity for part in self.parts}
        if len(identities) > 1:
            raise ModelMismatchError(
                f"The selections were made for the models {' and '.join(sorted(identities))}, and one model has to "
                "read them: select from stores of the same model."
            )

    @property
    def model_identity(self) -> str:
        """Of the model that encodes them, and alone can read them."""
        return self.parts[0].model_identity

    @property
    def owner(self) -> bytes:
        """Of all namespaces that they were selected from."""
        return b"".join(sorted({part.owner for part in self.parts}))

    @property
    def nodes(self) -> tuple[SelectedNode, ...]:
        """The nodes shown, part by part."""
        return tuple(node for part in self.parts for node in part.nodes)

    @property
    def kv_entries(self) -> int:
        """KV entries per layer."""
        return sum(part.kv_entries for part in self.parts)

    def _repr_html_(self) -> str:
        """For notebooks: the parts, one below the other."""
        return "\n".join(part._repr_html_() for part in self.parts)

    def __add__(self, other: Selection | JoinedSelections) -> JoinedSelections:
        """All as one context: this one is read first, ``other`` next to the question."""
        return JoinedSelections((self, other))

    @property
    def positions(self) -> int:
        """Positions that the nodes take where there is room for all of them."""
        return sum(part.positions for part in self.parts)

    def key_values(self, room: int | None = None) -> ContextKV:
        """Those of the parts, whose places follow one another; ``room`` is shared out among them."""
        spacing = 1.0 if room is None else _share_of_spacing(self.kv_entries, self.positions, room)
        rooms = [part.kv_entries + int((part.positions - part.kv_entries) * spacing) for part in self.parts]
        parts = [part.key_values(of_part) for part, of_part in zip(self.parts, rooms, strict=True)]
        before = list(accumulate((part.length for part in parts), initial=0))[:-1]
        return ContextKV(
            [chunk for part in parts for chunk in part.chunks],
            [rows for part in parts for rows in part.rows],
            torch.cat([part.token_ids for part in parts]),
            [places + offset for part, offset in zip(parts, before, strict=True) for places in part.places or ()],
            [positions for part in parts for positions in part.positions or ()],
            [
                None if coarse is None else replace(coarse, places=coarse.places + offset)
                for part, offset in zip(parts, before, strict=True)
                for coarse in part.coarse or ()
            ],
            sum(part.length for part in parts),
        )
