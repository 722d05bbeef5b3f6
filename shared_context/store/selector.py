"""The selector: what a query is shown finely, coarsely and not at all, of the documents of an index."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import accumulate, islice
from numbers import Integral
from types import MappingProxyType
from typing import NamedTuple, TypeAlias, cast

import numpy as np
import torch

from shared_context.config import (
    DEFAULT_BUDGET,
    Policy,
    Search,
    StoreConfig,
    TreeConfig,
    one_of,
    paper_ratios,
    require,
    require_count,
)
from shared_context.errors import BudgetError, ConfigError, QueryError
from shared_context.kernels import preserved_cuts
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.model.tokenization import CHARACTERS_OF_TOKEN
from shared_context.store.codec import Codec
from shared_context.store.duplicates import NEARLY, Said
from shared_context.store.embedder import Embedder
from shared_context.store.leaf_states import LeafStates
from shared_context.store.node_index import Leaves, NodeIndex
from shared_context.store.postings import Postings
from shared_context.store.prefilter import Prefilter
from shared_context.store.scoring import (
    Query,
    above_floor,
    behind,
    by_level,
    recent_scores,
    relevance,
    run_leaves,
    run_weight,
    score,
    section_leaves,
    touching,
    with_neighbours,
    with_runs,
    with_section,
)
from shared_context.store.word_edges import WordEdges, WordTrees
from shared_context.store.word_index import NamespaceWords
from shared_context.tree import ContextTree, GrainedNode, Node, expand_under_budget, kv_entries, split_and_search
from shared_context.tree.search import smallest_cut

QUERY_TOKENS = 1 << 15
"""Longer queries are refused, whatever the model's window: they are documents."""


def longest_query(model: SharedLLMModel) -> int:
    """Tokens of the longest query that a model's stores search for."""
    return min(QUERY_TOKENS, model.context_window)


Twins: TypeAlias = Mapping[tuple[int, int, int], Collection[int]]
"""Keys of documents that say the same, by document, chunk and leaf."""

Text: TypeAlias = Callable[[int, int, int], str]
"""What a document, by its key, says from one token up to another."""

RANK = 1e-6
"""What a score is less for each that is ranked before it."""

COMPARED = 2
"""Leaves that are looked at for duplicates, for each that the budget holds."""

COMPARED_AT_MOST = 4096
"""Leaves that are looked at where most of them repeat others."""

COMPARED_BESIDE = 32
"""Leaves or passages that are looked at whatever the budget."""

Rewrite: TypeAlias = Callable[[str], str | Sequence[str]]
"""Makes of a query what is searched for: a text, or several of which the one that finds most counts."""


class ChunkCut(NamedTuple):
    """What is shown of one chunk.

    Attributes:
        key: its document.
        number: its place in the document.
        cut: the grained nodes that are shown, from left to right.
        scores: of the nodes that are shown, by level and then by index; None where nothing was scored.
    """

    key: int
    number: int
    cut: Sequence[GrainedNode]
    scores: Sequence[np.ndarray] | Mapping[int, Mapping[int, float]] | None = None


class ChosenCuts(NamedTuple):
    """What is shown of all documents.

    Attributes:
        cuts: in document order.
        budget: KV entries that were allowed; None where there was no limit.
        policy: how nodes were scored; None where they were not.
        twins: documents that say the same as a leaf, by the leaf's document, chunk and slot.
    """

    cuts: list[ChunkCut]
    budget: int | None
    policy: Policy | None
    twins: Twins = MappingProxyType({})


class Selector:
    """Scores the leaves of an index for a query and searches their trees.

    Args:
        model: encodes the queries.
        config: the store's settings.
        codec: makes codes of what the model encodes.
        embedder: embeds the queries; None where the store has none.
        index: what is chosen from.
        words: which leaves hold a word.
        edges: where leaves begin and end in what is shown.
        text: reads documents.
        rewrite: makes of a query what is searched for; None takes it as it is.
    """

    def __init__(
        self,
        model: SharedLLMModel,
        config: StoreConfig,
        codec: Codec,
        embedder: Embedder | None,
        index: NodeIndex,
        words: NamespaceWords,
        edges: WordEdges,
        text: Text,
        rewrite: Rewrite | None = None,
    ):
        self._text, self._edges = text, edges
        self._rewrite = rewrite
        self._model, self._config, self._codec, self._embedder, self._index = model, config, codec, embedder, index
        self._leaf_states, self._postings = LeafStates(model, config.tree, index), Postings(words, index)
        self._prefilter: tuple[Leaves, Prefilter] | None = None

    def choose(
        self,
        text: str | None,
        keys: list[int],
        *,
        budget: int | None = None,
        ratio: int | None = None,
        policy: Policy | None = None,
        search: Search = "best_first",
        coarse: Sequence[int | None] | None = None,
        fine: int | None = None,
        floor: float | None = None,
        recent: int = 0,
        prefilter: int | None = None,
        prefilter_chunks: int | None = None,
        introduction: Callable[[int], int] | None = None,
        min_score: float | None = None,
        also: Sequence[str] = (),
    ) -> ChosenCuts:
        """What a query is shown; settings and errors are those of the store's ``select``.

        Args:
            text: the query.
            keys: the documents that may be considered, rising.
            introduction: KV entries that are shown once in front of all that is shown of a document; by its key.
            also: other texts that are searched for; what finds most in a leaf counts. Scores tell of ``text`` alone.
        """
        one_of("search", search, Search)
        policy = self._policy(policy)
        if budget is not None:
            require_count("budget", budget, "KV entries", BudgetError)
        if ratio is not None:
            require_count("ratio", ratio, "tokens per KV entry")
            excluded = f"ratio={ratio} shows everything, so both exclude each other; drop one"
            require(budget is None, "budget", budget, excluded)
        own = self._config.tree
        grains = own.coarse if coarse is None else cast(tuple[int | None, ...], coarse)  # it makes one of any sequence
        tree = replace(own, coarse=grains, fine=own.fine if fine is None else fine)
        floor = replace(self._config, floor=self._config.floor if floor is None else floor).floor
        least = self._min_score(min_score)
        best_first = search == "best_first" and ratio is None
        tokens = isinstance(recent, Integral) and (recent == 0 or (best_first and recent > 0))
        require(tokens, "recent", recent, "must be 0, or with best_first more tokens")
        query = None if text is None and not best_first else self._query(text)
        considered = self._considered(query, keys, prefilter, prefilter_chunks, recent)
        if ratio is not None:
            places = self._index.leaves().places(considered) if len(considered) else []
            return ChosenCuts([ChunkCut(*place, [GrainedNode(Node(0, 0), ratio)]) for place in places], None, None)
        if best_first and budget is None:
            budget = DEFAULT_BUDGET
        if not len(considered):
            return ChosenCuts([], budget, policy)
        if best_first:
            assert query is not None and budget is not None  # both were made above
            sought = query
            if also:
                texts = (*query.texts, *also)
                sought = replace(query, text="\n".join(texts), texts=texts)
            cuts, twins = self._best_first(
                query, sought, considered, policy, tree, floor, recent, budget, introduction, least
            )
            return ChosenCuts(cuts, budget, policy, twins)
        cuts = self._split_and_search(query, considered, policy, tree, budget)
        return ChosenCuts(cuts, budget, None if query is None else policy)

    def passages(
        self,
        text: str,
        keys: list[int],
        k: int,
        *,
        policy: Policy | None,
        prefilter: int | None,
        prefilter_chunks: int | None,
        min_score: float | None = None,
    ) -> ChosenCuts:
        """The ``k`` best spans that are embedded as one, best first, each as good as its best leaf.

        One that repeats what a better one says is passed over, one that nearly does comes last.

        Arguments and errors are those of the store's ``retrieve``, but for the ``keys`` of :meth:`choose`.
        """
        query, policy, min_score = self._query(text), self._policy(policy), self._min_score(min_score)
        considered = self._considered(query, keys, prefilter, prefilter_chunks)
        if not len(considered):
            return ChosenCuts([], None, policy)
        together = self._config.tree.leaf_size * self._config.tree.embedded_leaves
        scored = self._score(query, considered, policy, 2 * together)  # whatever k is, or it would change the order
        level = self._config.tree.embedded_level
        scores = scored.levels[level]
        best = (divmod(int(flat), scores.shape[1]) for flat in np.argsort(-scores, axis=None, kind="stable"))
        most = COMPARED * k + COMPARED_BESIDE
        found: list[ChunkCut] = []
        late: list[ChunkCut] = []
        said = Said()
        twins: dict[tuple[int, int, int], set[int]] = {}
        chunk_of: dict[tuple[int, int], int] = {}
        for chunk, slot in islice((place for place in best if np.isfinite(scores[place])), most):
            node = Node(level, slot)
            key, _, text = self._read(scored, chunk, node)
            new, passage = said.novelty(text), scored.cut(chunk, [GrainedNode(node, 1)])
            if new.repeated and new.twin is not None:
                same = found[new.twin]
                leaf = same.cut[0].node.index << (self._config.tree.height - level)
                twins.setdefault((same.key, same.number, leaf), set()).add(key)
            elif new.share <= NEARLY:
                late.append(passage)
            elif len(found) < k:
                said.add(text)
                found.append(passage)
            chunk_of[passage.key, passage.number] = chunk
        ranked = [(chunk_of[passage.key, passage.number], passage.cut[0].node) for passage in [*found, *late][:k]]
        relevances = self._relevances(query, scored, policy, ranked)
        cuts = [
            scored.graded(chunk, [GrainedNode(node, 1)], {node: found})
            for (chunk, node), found in zip(ranked, relevances, strict=True)
            if found >= min_score
        ]
        return ChosenCuts(cuts, None, policy, twins)

    def _best_first(
        self,
        query: Query,
        sought: Query,
        considered: np.ndarray,
        policy: Policy,
        tree: TreeConfig,
        floor: float,
        recent: int,
        budget: int,
        introduction: Callable[[int], int] | None,
        min_score: float,
    ) -> tuple[list[ChunkCut], Twins]:
        """Best-first expansion under one budget over all chunks considered."""
        scored = self._score(sought, considered, policy, budget * tree.fine, runs=True)
        # First, for what is repeated also counts once where the floor is laid.
        opened, compared, late, twins = self._without_duplicates(scored, budget)
        if any(total > budget for total in accumulate(kv_entries(length, tree.fine) for length in scored.lengths)):
            opened = above_floor(opened, floor, scored.stretches())
        if not any(tree.coarse):
            # What was not compared may be said already. The floor's mean is of it, too, hence not before.
            opened = opened.where(compared, -torch.inf)
        opened = behind(opened, late)
        first_of_all = None
        if recent:
            count = scored.last_leaves(recent, tree.leaf_size)
            at_the_end = recent_scores(scored.leaves, self._fitting(scored, count, budget, tree.fine))
            scored = replace(scored, leaves=torch.maximum(scored.leaves, at_the_end))
            opened = torch.maximum(opened, at_the_end)
            first_of_all = by_level(at_the_end)
        introduce = None if introduction is None else lambda chunk: (key := scored.places[chunk][0], introduction(key))
        # Where nothing that is worth it fits, what does fit is better than nothing.
        cuts = expand_under_budget(scored.trees, by_level(opened), tree.coarse, tree.fine, budget, introduce) or (
            expand_under_budget(scored.trees, scored.levels, tree.coarse, tree.fine, budget, introduce)
        )
        if not cuts:
            smallest = min(smallest_cut(t, tree.coarse, tree.fine) for t in scored.trees)
            raise BudgetError(
                f"budget={budget} holds nothing: the smallest cut of these documents takes {smallest} KV entries. "
                "Raise the budget, or make the store with smaller leaves (TreeConfig)."
            )
        shown = ((chunk, node) for chunk, cut in cuts.items() for node, _ in cut)
        ranked = sorted(shown, key=lambda place: -scored.levels[place[1].level][place[0], place[1].index])
        # What stands right before is not there for what it says.
        ends = [p for p in ranked if first_of_all is not None and first_of_all[p[1].level][p[0], p[1].index] > -np.inf]
        rest = [place for place in ranked if place not in set(ends)]
        graded = dict.fromkeys(ends, 1.0) | dict(zip(rest, self._relevances(query, scored, policy, rest), strict=True))
        relevant = {
            chunk: [grained for grained in cut if graded[chunk, grained.node] >= min_score]
            for chunk, cut in cuts.items()
        }
        return [
            scored.graded(chunk, cut, {node: graded[chunk, node] for node, _ in cut})
            for chunk, cut in relevant.items()
            if cut
        ], twins

    def _relevances(
        self, query: Query, scored: _Scored, policy: Policy, ranked: Sequence[tuple[int, Node]]
    ) -> list[float]:
        """How much nodes have to do with a query, 0 to 1, by chunk and node, from the best to the last.

        A leaf has as much to do with it as the span that it is embedded in: what a question asks and what answers it
        often lie side by side. None has more than one that is ranked before it: on their order the policy has the last
        word, which knows of all leaves.
        """
        if not ranked:
            return []
        height, counts = self._config.tree.height, scored.leaves.isfinite().sum(dim=1).numpy(force=True)
        rows: list[int] = []
        sizes: list[int] = []
        for chunk, node in ranked:
            level = min(node.level, self._config.tree.embedded_level)
            span, below = node.index >> (node.level - level), height - level
            slots = range(span << below, min((span + 1) << below, int(counts[chunk])))
            rows += [int(scored.first[chunk]) + slot for slot in slots]
            sizes.append(len(slots))
        leaves = self._index.leaves()
        of_leaves = relevance(query, leaves, torch.tensor(rows, device=leaves.device), policy).numpy(force=True)
        of_nodes = np.maximum.reduceat(of_leaves, np.cumsum([0, *sizes[:-1]]))
        # A little less for each rank: whoever orders nodes by their scores finds the policy's order.
        behind_others = RANK * np.arange(len(of_nodes))
        return (np.minimum.accumulate(of_nodes).astype(float) - behind_others).clip(min=0).tolist()

    def _without_duplicates(self, scored: _Scored, budget: int) -> tuple[torch.Tensor, torch.Tensor, list[int], Twins]:
        """Scores of the leaves in which each text that several leaves have counts once.

        The best leaves are taken one after the other. One that repeats what was taken is not opened, one of which a
        part is new keeps that share of its score. As many are looked at as it takes to fill the budget.

        Returns:
            The scores, [chunks, leaves], minus infinity where a leaf repeats another or nearly does; which leaves were
            looked at, [chunks, leaves]; places of those that nearly repeat another, in the flattened scores, best
            first; and what else says the same as a leaf that is taken.
        """
        flat, slots = scored.leaves.flatten().numpy(force=True), scored.leaves.shape[1]
        wanted, present = budget // self._config.tree.leaf_size, int(np.isfinite(flat).sum())
        compared = min(COMPARED * wanted + COMPARED_BESIDE, present)
        read: dict[int, tuple[int, int, str]] = {}
        while True:
            best = np.argpartition(-flat, compared - 1)[:compared].tolist()
            for leaf in best:
                if leaf not in read:
                    read[leaf] = self._read(scored, leaf // slots, Node(self._config.tree.height, leaf % slots))
            opened, late, twins = _judged(flat, best, read, slots)
            if np.isfinite(opened[best]).sum() + len(late) >= wanted or compared in (present, COMPARED_AT_MOST):
                break
            compared = min(2 * compared, present, COMPARED_AT_MOST)
        looked_at = np.zeros(len(flat), bool)
        looked_at[best] = True
        scores, compared_ones = (
            torch.from_numpy(of).to(scored.leaves.device).view_as(scored.leaves) for of in (opened, looked_at)
        )
        return scores, compared_ones, late, twins

    def _fitting(self, scored: _Scored, count: int, budget: int, fine: int) -> int:
        """How many of the last ``count`` leaves a budget holds, at least one: none is shown behind a gap."""
        height, fits = self._config.tree.height, 0
        for chunk in reversed(range(len(scored.trees))):
            leaves = range(int(scored.leaves[chunk].isfinite().sum()))
            for leaf in reversed(leaves):
                budget -= kv_entries(scored.trees[chunk].size(Node(height, leaf)), fine)
                if fits == count or (budget < 0 and fits):
                    return fits
                fits += 1
        return fits

    def _read(self, scored: _Scored, chunk: int, node: Node) -> tuple[int, int, str]:
        """A chunk's document and number, and what one of its nodes says."""
        key, number = scored.places[chunk]
        return key, number, self._text(key, *self._edges.span(key, number, node))

    def _split_and_search(
        self, query: Query | None, considered: np.ndarray, policy: Policy, tree: TreeConfig, budget: int | None
    ) -> list[ChunkCut]:
        """The paper's search, in each chunk considered."""
        scored = self._score(query, considered, policy, None)
        ratios = tree.coarse if any(tree.coarse) else paper_ratios(tree.height)
        paths = None
        if query is not None and policy == "last_token":
            paths = scored.paths(query.states[-1], self._leaf_states.all())
        cuts, entries = [], 0
        for chunk, context_tree in enumerate(scored.trees):
            if paths is not None:
                cut = [GrainedNode(node, ratios[node.level]) for node in sorted(paths[chunk], key=context_tree.span)]
            else:
                cut = split_and_search(context_tree, ratios, None if query is None else scored.similarity(chunk))
            if cut := [one for one in cut if one.ratio is not None and context_tree.size(one.node)]:
                cuts.append(scored.cut(chunk, cut))
                entries += sum(kv_entries(context_tree.size(node), ratio) for node, ratio in cut)
        if budget is not None and entries > budget:
            raise BudgetError(
                f"budget={budget}: split-and-search shows a part of every chunk, {entries} KV entries here. Raise the "
                "budget, consider fewer documents, or use search='best_first'."
            )
        return cuts

    def _min_score(self, given: float | None) -> float:
        return replace(self._config, min_score=self._config.min_score if given is None else given).min_score

    def _policy(self, policy: Policy | None) -> Policy:
        if policy is None:
            return "hybrid"
        one_of("policy", policy, Policy)
        return policy

    def _query(self, text: str | None) -> Query:
        if not isinstance(text, str) or not text.strip():
            raise QueryError(f"The query {text!r} is empty; ask something.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise QueryError(
                f"The query has a lone surrogate at character {error.start}, which no encoding can hold; decode the "
                "text it came from with the right encoding, or replace the character."
            ) from error
        limit, name = longest_query(self._model), self._model.name
        if len(text) > limit * CHARACTERS_OF_TOKEN:
            raise QueryError(
                f"The query has {len(text):,} characters, and no more than {limit:,} tokens are searched for; shorten "
                "it, or add it as a document."
            )
        texts = (text,) if self._rewrite is None else _rewritten(self._rewrite, text)
        query = Query(
            "\n".join(texts),
            self._model,
            self._codec,
            self._embedder,
            self._index,
            self._leaf_states,
            self._postings,
            texts,
        )
        tokens = len(query.token_ids)
        if tokens == 0:
            raise QueryError(f"{name} reads no token in the query {text!r}; ask in other words.")
        if tokens > limit:
            raise QueryError(
                f"The query has {tokens} tokens and {name} reads {limit} in a query; shorten it, or add it as a "
                "document."
            )
        return query

    def _considered(
        self,
        query: Query | None,
        keys: list[int],
        prefilter: int | None,
        prefilter_chunks: int | None,
        recent: int = 0,
    ) -> np.ndarray:
        """Rows of the chunks that are considered, of the documents that may be."""
        asked = ("prefilter", prefilter, "documents"), ("prefilter_chunks", prefilter_chunks, "chunks")
        for setting, count, unit in asked:
            if count is not None:
                require_count(setting, count, unit)
                if query is None:
                    raise ConfigError(
                        f"{setting}={count}: without a query nothing is nearer than all else; leave it out."
                    )
                embedding = query.main.embedding
        if not keys:
            return np.zeros(0, np.int64)
        leaves, last = self._index.leaves(), keys[-1]
        if prefilter is not None and prefilter < len(keys):
            keys = self._nearest(embedding, keys, leaves.span_document, prefilter)
        chunks = leaves.chunks(keys)
        if prefilter_chunks is not None and prefilter_chunks < len(chunks):
            chunks = np.array(self._nearest(embedding, keys, leaves.span_chunk, prefilter_chunks))
        if recent:
            chunks = np.union1d(chunks, leaves.chunks([last]) if prefilter_chunks is None else leaves.end(last, recent))
        return chunks

    def _nearest(self, embedding: torch.Tensor, keys: list[int], of_span: np.ndarray, count: int) -> list[int]:
        """The ``count`` of what documents' spans belong to whose nearest span is nearest, in rising order."""
        leaves = self._index.leaves()
        if len(keys) < len(self._index):
            # What filters leave is usually few: their spans are compared one by one.
            spans = np.flatnonzero(np.isin(leaves.span_document, keys))
            near = leaves.cosines(embedding, torch.from_numpy(spans).to(leaves.device)).numpy(force=True)
            return sorted(list(dict.fromkeys(of_span[spans[np.argsort(-near, kind="stable")]].tolist()))[:count])
        if self._prefilter is None:
            self._prefilter = (leaves, Prefilter(leaves))
        elif self._prefilter[0] is not leaves:
            self._prefilter[1].update(leaves)
            self._prefilter = (leaves, self._prefilter[1])
        return sorted(self._prefilter[1].nearest(embedding.numpy(), of_span, count))

    def _score(
        self, query: Query | None, considered: np.ndarray, policy: Policy, shown: int | None, runs: bool = False
    ) -> _Scored:
        """Scores of all leaves of the chunks considered, arranged by chunk; zeros where there is no query.

        Args:
            shown: tokens that will be shown; None leaves out what surrounds a leaf, as the paper's policy does always.
            runs: whether leaves that follow one another are shown as one text.
        """
        tree, leaves = self._config.tree, self._index.leaves()
        everything = len(considered) == len(leaves.chunk_length)
        rows = np.arange(len(leaves)) if everything else np.flatnonzero(np.isin(leaves.chunk, considered))
        # All rows are taken as they lie; some of them are copied.
        taken = slice(None) if everything else torch.from_numpy(rows).to(leaves.device)
        everywhere_alike = torch.zeros(len(rows), device=leaves.device)
        scores = everywhere_alike if query is None else score(query, leaves, taken, policy)
        if shown is not None and policy != "last_token":
            touch = touching(leaves, rows)
            reach = section_leaves(shown, tree.leaf_size)
            scores = with_section(scores, touch, reach, self._config.section_weight)
            scores = with_neighbours(scores, touch, self._config.neighbour_weight)
            if runs:
                weight = run_weight(shown, int(leaves.chunk_length[considered].sum()))
                scores = with_runs(scores, touch, run_leaves(shown, tree.leaf_size), weight)
        owners = leaves.chunk[rows]
        begins = np.diff(owners, prepend=-1) != 0  # they rise
        first, place = np.flatnonzero(begins), np.cumsum(begins) - 1
        chunks = owners[first]
        places = leaves.places(chunks)
        by_chunk = scores.new_full((len(chunks), 2**tree.height), -torch.inf)
        by_chunk[torch.from_numpy(place), torch.from_numpy(leaves.slot[rows])] = scores
        return _Scored(
            by_chunk,
            places,
            leaves.chunk_length[chunks].tolist(),
            WordTrees(self._edges, places),
            rows[first],
        )


def _rewritten(rewrite: Rewrite, text: str) -> tuple[str, ...]:
    """What is searched for in the place of a query."""
    given = rewrite(text)
    texts = (given,) if isinstance(given, str) else tuple(given or ())
    if not texts or not all(isinstance(each, str) and each.strip() for each in texts):
        raise QueryError(f"rewrite made {given!r} of the query; it must give a text, or several, with words in it.")
    return texts


def _judged(
    scores: np.ndarray, best: Sequence[int], read: Mapping[int, tuple[int, int, str]], slots: int
) -> tuple[np.ndarray, list[int], dict[tuple[int, int, int], set[int]]]:
    """Of leaves, the scores of those that say something new, those that nearly say nothing new, and their twins.

    Args:
        scores: of all leaves, [chunks * slots].
        best: those that are compared with one another.
        read: document, chunk and text of each of them.
        slots: leaves of a chunk.
    """
    mean = float(scores[np.isfinite(scores)].mean())
    flat, said, late = scores.copy(), Said(), []
    waiting = [(-float(scores[leaf]), leaf) for leaf in best]
    heapify(waiting)
    taken: dict[int, int] = {}
    twins: dict[tuple[int, int, int], set[int]] = {}
    alike = defaultdict(list)
    for leaf in best:
        alike[read[leaf][2]].append(leaf)
    while waiting:
        score, leaf = heappop(waiting)
        key, number, text = read[leaf]
        new = said.novelty(text)
        worth = mean + new.share * (scores[leaf] - mean) if scores[leaf] > mean else scores[leaf]
        if leaf in taken.values():
            continue
        if new.repeated and new.twin is not None:
            flat[leaf] = -np.inf
            twins.setdefault(_place(read, taken[new.twin], slots), set()).add(key)
        elif new.share <= NEARLY:
            flat[leaf] = -np.inf
            late.append(leaf)
        elif worth < -score - 1e-6:
            flat[leaf] = worth
            heappush(waiting, (-worth, leaf))
        else:
            # Of equal documents one is shown, rather than the first words of this and the last of that.
            documents = Counter(read[other][0] for other in taken.values())
            chosen = max(alike[text], key=lambda other: (documents[read[other][0]], -other))
            if chosen != leaf:
                flat[chosen], flat[leaf] = flat[leaf], -np.inf
                twins.setdefault(_place(read, chosen, slots), set()).add(key)
            taken[said.add(text)] = chosen
    kept = []
    for leaf in sorted(late, key=lambda leaf: -scores[leaf]):
        key, _, text = read[leaf]
        # What was new when it was met has been said since, perhaps.
        if (new := said.novelty(text)).repeated and new.twin is not None:
            twins.setdefault(_place(read, taken[new.twin], slots), set()).add(key)
        else:
            taken[said.add(text)] = leaf
            kept.append(leaf)
    return flat, kept, twins


def _place(read: Mapping[int, tuple[int, int, str]], leaf: int, slots: int) -> tuple[int, int, int]:
    """Document, chunk and slot of a leaf that was read."""
    key, number, _ = read[leaf]
    return key, number, leaf % slots


@dataclass(frozen=True)
class _Scored:
    """Scores by chunk.

    Attributes:
        leaves: [chunks, 2**height]; minus infinity where there is no leaf.
        places: each chunk's document, by its key, and its number in the document.
        lengths: tokens of each chunk that are scored.
        trees: each chunk's context tree, as it is shown.
        first: row of each chunk's first leaf among all leaves of the index, [chunks].
    """

    leaves: torch.Tensor
    places: list[tuple[int, int]]
    lengths: list[int]
    trees: Sequence[ContextTree]
    first: np.ndarray

    @cached_property
    def levels(self) -> list[np.ndarray]:
        """Scores of the nodes of every level, root first."""
        return by_level(self.leaves)

    def cut(self, chunk: int, cut: Sequence[GrainedNode]) -> ChunkCut:
        """A cut of a chunk, with its place and its scores."""
        return ChunkCut(*self.places[chunk], cut, [level[chunk] for level in self.levels])

    def graded(self, chunk: int, cut: Sequence[GrainedNode], scores: Mapping[Node, float]) -> ChunkCut:
        """A cut of a chunk, with scores of its nodes that are not the policy's own."""
        levels: dict[int, dict[int, float]] = {}
        for node in scores:
            levels.setdefault(node.level, {})[node.index] = scores[node]
        return ChunkCut(*self.places[chunk], cut, levels)

    def stretches(self) -> np.ndarray:
        """Of an unbroken stretch of a document's chunks each has the same number, [chunks]."""
        apart = (np.diff(np.array(self.places), axis=0) != (0, 1)).any(axis=1)
        return np.concatenate([[0], np.cumsum(apart)])

    def last_leaves(self, tokens: int, leaf_size: int) -> int:
        """How many leaves so many tokens at the end of the last document reach into."""
        last = [length for (key, _), length in zip(self.places, self.lengths, strict=True) if key == self.places[-1][0]]
        sizes = [min(leaf_size, length - at) for length in last for at in range(0, length, leaf_size)]
        unseen = max(0, sum(sizes) - tokens)
        return sum(end > unseen for end in accumulate(sizes))

    def similarity(self, chunk: int) -> Callable[[Node], float]:
        """How promising a node of a chunk is: as good as its best leaf."""
        return lambda node: float(self.levels[node.level][chunk, node.index])

    def paths(self, query: torch.Tensor, states: torch.Tensor) -> list[list[Node]]:
        """The paper's preserved cut of every chunk, which compares last tokens.

        Args:
            query: hidden state of the query's last token, [hidden].
            states: those of the last tokens of all leaves of the index, [all leaves, hidden].
        """
        device, height = states.device, self.leaves.shape[1].bit_length() - 1
        first, count = torch.from_numpy(self.first).to(device), self.leaves.isfinite().sum(dim=1)
        nodes = preserved_cuts(query.to(device), states, first, count, height).tolist()
        return [[Node(n.bit_length() - 1, n - (1 << n.bit_length() - 1)) for n in path if n] for path in nodes]
