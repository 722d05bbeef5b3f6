"""The selections of a store: what queries are shown of its documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from numbers import Integral
from typing import Any

from shared_context.config import Policy, Rows, StoreConfig, one_of, require, require_count
from shared_context.errors import DocumentChangedError
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.store.catalogue import Catalogue
from shared_context.store.chosen_cuts import ChosenCuts, ChunkCut, Twins
from shared_context.store.codec import Codec
from shared_context.store.document_store import Progress
from shared_context.store.embedder import Embedder
from shared_context.store.encoding import Chunk, ChunkEncoder
from shared_context.store.filters import compile_filter
from shared_context.store.header import header
from shared_context.store.kept_prefilter import KeptPrefilter
from shared_context.store.node_index import NodeIndex
from shared_context.store.query import Rewrite
from shared_context.store.selected import Passage, SelectedNode
from shared_context.store.selected_chunk import SelectedChunk
from shared_context.store.selection import Selection
from shared_context.store.selector import Selector
from shared_context.store.word_edges import WordEdges
from shared_context.tree import ContextTree, GrainedNode, Node, kv_entries


class Selections:
    """Selects from a catalogue; arguments and errors are those of the store's methods of the same names.

    Args:
        model: the model that will read the selections.
        config: the store's settings.
        codec: makes codes of what the model encodes.
        embedder: embeds the queries; None where the store has none.
        catalogue: what is selected from.
        encoder: encodes what is selected.
        owner: tells what is selected from this catalogue from what is selected from others.
        rewrite: makes of a query what is searched for; None takes it as it is.
    """

    def __init__(
        self,
        model: SharedLLMModel,
        config: StoreConfig,
        codec: Codec,
        embedder: Embedder | None,
        catalogue: Catalogue,
        encoder: ChunkEncoder,
        owner: bytes,
        rewrite: Rewrite | None = None,
    ):
        self._owner = owner
        self._rewrite = rewrite
        self._model, self._config, self._codec, self._embedder = model, config, codec, embedder
        self._catalogue, self._encoder = catalogue, encoder
        # A cache that keeps few rows of a chunk has none of its lead-in.
        self._edges = WordEdges(config.tree, config.lead_in if config.cache.finest == 1 else 0, catalogue.text)
        self._selector = self._selector_of(catalogue.index, catalogue.prefilter, config)

    def _selector_of(self, index: NodeIndex, prefilter: KeptPrefilter, config: StoreConfig) -> Selector:
        words = self._catalogue.words
        return Selector(
            self._model,
            config,
            self._codec,
            self._embedder,
            index,
            prefilter,
            words,
            self._edges,
            self._between,
            self._rewrite,
        )

    def _between(self, key: int, first: int, last: int) -> str:
        """What a document says from one token up to another."""
        stored = self._catalogue.text(key)
        return stored.text[slice(*stored.tokens.characters(first, last))]

    def select(
        self,
        query: str | None,
        filters: Mapping[str, Any] | None,
        doc_ids: list[str] | None,
        show_metadata: bool,
        rows: Rows | None,
        **options: Any,
    ) -> Selection:
        """What a query is shown; ``options`` are those of :meth:`~shared_context.store.selector.Selector.choose`."""
        with self._catalogue.reading():
            introduction = self._header_entries if show_metadata else None
            choice = self._selector.choose(
                query, self._candidates(filters, doc_ids), introduction=introduction, **options
            )
            selection = self._selection(choice, query, show_metadata, rows)
        self._catalogue.keep_prefilter()
        return selection

    def select_from(
        self,
        index: NodeIndex,
        config: StoreConfig,
        query: str | None,
        keys: list[int],
        ahead: Sequence[tuple[int, int]] = (),
        **options: Any,
    ) -> Selection:
        """What a query is shown of these documents of another index; called while the catalogue is read.

        Args:
            config: how they are scored.
            ahead: characters of the only document that are shown before all others, in this order.
            **options: those of :meth:`~shared_context.store.selector.Selector.choose`.
        """
        leaves: dict[int, None] = {}
        for start, end in ahead:
            first, last = self._catalogue.text(keys[0]).tokens.tokens(start, end)
            leaves |= dict.fromkeys(range(self._edges.leaf(keys[0], first), self._edges.leaf(keys[0], last - 1) + 1))
        selector = self._selector_of(index, KeptPrefilter(index), config)
        return self._selection(selector.choose(query, keys, ahead=list(leaves), **options), query)

    def retrieve(
        self,
        query: str,
        k: int,
        policy: Policy | None,
        filters: Mapping[str, Any] | None,
        doc_ids: list[str] | None,
        prefilter: int | None,
        prefilter_chunks: int | None,
        min_score: float | None,
    ) -> list[Passage]:
        """The ``k`` best passages as text, best first."""
        with self._catalogue.reading():
            choice = self._selector.passages(
                query, self._candidates(filters, doc_ids), k, policy=policy, prefilter=prefilter,
                prefilter_chunks=prefilter_chunks, min_score=min_score,
            )  # fmt: skip
            chunks = [self._shown(cut, choice.twins) for cut in choice.cuts]
            passages = [Passage.of([node], chunk.text) for chunk in chunks for node in chunk.nodes]
        self._catalogue.keep_prefilter()
        return passages

    def selection_from(self, spans: list[Sequence[Any]], query: str | None, show_metadata: bool) -> Selection:
        """The selection of given characters, whole leaves of which are shown."""
        tree = self._config.tree
        with self._catalogue.reading():
            shown: dict[tuple[int, int], dict[int, tuple[int, float]]] = {}
            for doc_id, start, end, *rest in spans:
                optional: list[Any] = [*rest, *[1, 0.0, None][len(rest) :]]
                ratio, score, text = optional
                whole = isinstance(start, Integral) and isinstance(end, Integral)
                require(whole, "span", (start, end), "must be whole numbers of characters")
                require_count("ratio", ratio, "tokens per KV entry")
                key = self._catalogue.key(doc_id)
                stored = self._catalogue.text(key)
                if text is not None and stored.text[start:end] != text:
                    raise DocumentChangedError(
                        f"The text of document {doc_id!r} has changed since the passage at characters {start} to {end} "
                        "was taken from it; ask again."
                    )
                inside = 0 <= start < end <= len(stored.text)
                require(inside, "span", (start, end), f"document {doc_id!r} has {len(stored.text)} characters")
                first, last = stored.tokens.tokens(start, end)
                for leaf in range(self._edges.leaf(key, first), self._edges.leaf(key, last - 1) + 1):
                    chunk, slot = divmod(leaf, 2**tree.height)
                    if not self._edges.of_chunk(key, chunk)[1].size(Node(tree.height, slot)):
                        continue
                    slots = shown.setdefault((key, chunk), {})
                    before = slots.get(slot, (ratio, score))
                    slots[slot] = min(ratio, before[0]), max(score, before[1])
            cuts = []
            for (key, number), slots in sorted(shown.items()):
                cut = [GrainedNode(Node(tree.height, slot), ratio) for slot, (ratio, _) in sorted(slots.items())]
                scores = {tree.height: {slot: score for slot, (_, score) in slots.items()}}
                cuts.append(ChunkCut(key, number, cut, scores))
            return self._selection(ChosenCuts(cuts, None, None), query, show_metadata)

    def warm(self, selection: Selection | None, progress: Progress | None) -> None:
        """Compute keys and values now, and importance where coarse nodes are shown."""
        tree, encoder = self._config.tree, self._encoder
        compute: Callable[[Any], object]
        chunks: Sequence[Chunk | SelectedChunk]
        missing: Sequence[Chunk | SelectedChunk]
        with self._catalogue.reading():
            if selection is not None:
                chunks = missing = selection.chunks
                compute = partial(encoder.encode_for, rows=selection.rows)
            else:
                documents = map(self._catalogue.token_ids, self._catalogue.documents())
                whole = [chunk for ids in documents for chunk in encoder.chunks(ids)]
                grains = [ratio for ratio in (tree.fine, *tree.coarse) if ratio is not None]
                scored = self._rows(None) == "importance" and max(grains) > 1
                chunks, missing = whole, whole if scored else encoder.missing(whole)
                compute = partial(encoder.encode, coarse=scored)
        # Nobody has to wait for what follows: it may take minutes.
        held = len(chunks) - len(missing)
        for done, chunk in enumerate(missing, start=held + 1):
            compute(chunk)
            if progress is not None:
                progress(done, len(chunks), "chunks")

    def _candidates(self, filters: Mapping[str, Any] | None, doc_ids: list[str] | None) -> list[int]:
        """Keys of the documents that may be considered."""
        passes = compile_filter(filters)
        keys = self._catalogue.documents() if doc_ids is None else sorted(set(map(self._catalogue.key, doc_ids)))
        if not filters:
            return keys
        entries = self._catalogue.entries(keys)
        return [key for key, entry in zip(keys, entries, strict=True) if passes(entry.metadata)]

    def _selection(
        self, choice: ChosenCuts, query: str | None, show_metadata: bool = False, rows: Rows | None = None
    ) -> Selection:
        if rows is not None:
            one_of("rows", rows, Rows)
        chunks = [self._shown(cut, choice.twins) for cut in choice.cuts]
        if show_metadata:
            chunks = self._with_headers(choice.cuts, chunks)
        return Selection(
            chunks,
            self._encoder.shown,
            self._model,
            query=query,
            budget=choice.budget,
            policy=choice.policy,
            rows=self._rows(rows),
            owner=self._owner,
        )

    def _rows(self, rows: Rows | None) -> Rows:
        """Which rows coarse grains keep where so much was asked for."""
        return rows or self._config.tree.rows or self._model.rows

    def _header_entries(self, key: int) -> int:
        """KV entries of a document's header; 0 where it has none to show."""
        chunk = self._encoder.header(self._catalogue.entry(key))
        return 0 if chunk is None else len(chunk.token_ids)

    def _with_headers(self, cuts: Sequence[ChunkCut], chunks: Sequence[SelectedChunk]) -> list[SelectedChunk]:
        """What is shown of documents, the header of each in front of it."""
        headed = []
        for key, group in groupby(zip(cuts, chunks, strict=True), key=lambda pair: pair[0].key):
            own = [chunk for _, chunk in group]
            headed += [*self._shown_header(key, own), *own]
        return headed

    def _shown_header(self, key: int, chunks: Sequence[SelectedChunk]) -> list[SelectedChunk]:
        """A document's header as a chunk of its own, in front of ``chunks``; none where it has none to show."""
        entry = self._catalogue.entry(key)
        chunk = self._encoder.header(entry)
        if chunk is None:
            return []
        count = len(chunk.token_ids)
        node = SelectedNode(
            doc_id=entry.id,
            start=0,
            end=0,
            text=f"{header(entry.metadata, entry.hidden_keys)}\n",
            level=0,
            ratio=1,
            score=max(node.score for chunk in chunks for node in chunk.nodes),
            token_count=count,
            kv_entries=count,
            metadata=entry.metadata,
            header=True,
            unsearched_keys=entry.unsearched_keys,
            hidden_keys=entry.hidden_keys,
        )
        whole = ContextTree((0, count))
        return [SelectedChunk(*chunk, 0, whole, (GrainedNode(Node(0, 0), 1),), (node,), chunks[0].text)]

    def _shown(self, shown: ChunkCut, twins: Twins) -> SelectedChunk:
        """A chunk with its cut, as the user and the decoder see it."""
        key, number, cut, scores = shown
        tree, entry, stored = self._config.tree, self._catalogue.entry(key), self._catalogue.text(key)
        token_ids, lead_in = self._encoder.chunk(stored.tokens.ids, number)
        first, context_tree = self._edges.of_chunk(key, number)
        begin = lead_in - (number * tree.chunk_size - first)
        nodes = []
        for node, ratio in cut:
            assert ratio is not None  # nothing is in a cut that is not shown
            start, end = context_tree.span(node)
            characters = stored.tokens.characters(first + start, first + end)
            nodes.append(
                SelectedNode(
                    doc_id=entry.id,
                    start=characters[0],
                    end=characters[1],
                    text=stored.text[slice(*characters)],
                    level=node.level,
                    ratio=ratio,
                    score=0.0 if scores is None else float(scores[node.level][node.index]),
                    token_count=end - start,
                    kv_entries=kv_entries(end - start, ratio),
                    metadata=entry.metadata,
                    also_in=self._also_in(key, number, node, twins),
                    unsearched_keys=entry.unsearched_keys,
                    hidden_keys=entry.hidden_keys,
                )
            )
        return SelectedChunk(token_ids, lead_in, begin, context_tree, tuple(cut), tuple(nodes), stored.text)

    def _also_in(self, key: int, number: int, node: Node, twins: Twins) -> tuple[str, ...]:
        """Ids of the other documents that say what a node says, or a part of it."""
        below = self._config.tree.height - node.level
        leaves = ((key, number, slot) for slot in range(node.index << below, (node.index + 1) << below))
        others = {other for leaf in leaves for other in twins.get(leaf, ()) if other != key}
        return tuple(self._catalogue.entry(other).id for other in sorted(others))
