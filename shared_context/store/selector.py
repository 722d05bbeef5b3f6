"""The selector: what a query is shown finely, coarsely and not at all, of the documents of an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, islice
from numbers import Integral
from typing import TypeAlias, cast

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
from shared_context.errors import BudgetError
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.store.chosen_cuts import ChosenCuts, ChunkCut, Twins
from shared_context.store.codec import Codec
from shared_context.store.considered import Considered
from shared_context.store.duplicates import NEARLY, Said, share_a_passage
from shared_context.store.embedder import Embedder
from shared_context.store.floor import above_floor, behind, in_turns, order_in_turns, raised_scores, recent_scores
from shared_context.store.kept_prefilter import KeptPrefilter
from shared_context.store.leaf_states import LeafStates
from shared_context.store.leaves import rows_of
from shared_context.store.node_index import NodeIndex
from shared_context.store.postings import Postings
from shared_context.store.query import Queries, Query, Rewrite
from shared_context.store.relevance import node_relevances
from shared_context.store.repeats import COMPARED, COMPARED_BESIDE, without_repeats
from shared_context.store.scored import Scored, by_level
from shared_context.store.scoring import score
from shared_context.store.surroundings import touching, with_surroundings
from shared_context.store.word_edges import WordEdges
from shared_context.store.word_index import NamespaceWords
from shared_context.tree import GrainedNode, Node, expand_under_budget, kv_entries, split_and_search
from shared_context.tree.search import smallest_cut

Text: TypeAlias = Callable[[int, int, int], str]
"""What a document, by its key, says from one token up to another."""


class Selector:
    """Scores the leaves of an index for a query and searches their trees.

    Args:
        model: encodes the queries.
        config: the store's settings.
        codec: makes codes of what the model encodes.
        embedder: embeds the queries; None where the store has none.
        index: what is chosen from.
        prefilter: tells which documents and chunks of it are nearest to a query.
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
        prefilter: KeptPrefilter,
        words: NamespaceWords,
        edges: WordEdges,
        text: Text,
        rewrite: Rewrite | None = None,
    ):
        self._text, self._edges, self._config, self._index = text, edges, config, index
        self._leaf_states = LeafStates(model, config.tree, index)
        # Nothing of its own: what holds itself keeps the index's file mapped when the store is closed.
        said = partial(_said, config.tree.height, index, edges, text)
        self._queries = Queries(model, codec, embedder, index, self._leaf_states, Postings(words, index), said, rewrite)
        self._considered = Considered(index, prefilter)

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
        ahead: Sequence[int] = (),
    ) -> ChosenCuts:
        """What a query is shown; settings and errors are those of the store's ``select``.

        Args:
            text: the query.
            keys: the documents that may be considered, rising.
            introduction: KV entries that are shown once in front of all that is shown of a document; by its key.
            also: other texts that are searched for; what finds most in a leaf counts. Scores tell of ``text`` alone.
            ahead: leaves of the only document, by their number in it, that are opened before all others, in this order.
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
        query = None if text is None and not best_first else self._queries.of(text)
        considered = self._considered.chunks(query, keys, prefilter, prefilter_chunks, recent)
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
                query, sought, considered, policy, tree, floor, recent, budget, introduction, least, ahead
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

        One that repeats what a better one says is passed over, one that nearly does comes last. Those that say it of
        something else take turns with what is new and above the floor.

        Arguments and errors are those of the store's ``retrieve``, but for the ``keys`` of :meth:`choose`.
        """
        query, policy, min_score = self._queries.of(text), self._policy(policy), self._min_score(min_score)
        considered = self._considered.chunks(query, keys, prefilter, prefilter_chunks)
        if not len(considered):
            return ChosenCuts([], None, policy)
        together = self._config.tree.leaf_size * self._config.tree.embedded_leaves
        scored = self._score(query, considered, policy, 2 * together)  # whatever k is, or it would change the order
        level = self._config.tree.embedded_level
        scores = scored.levels[level]
        best = (divmod(int(flat), scores.shape[1]) for flat in np.argsort(-scores, axis=None, kind="stable"))
        most = COMPARED * k + COMPARED_BESIDE
        found: list[tuple[ChunkCut, str, float]] = []
        late: list[ChunkCut] = []
        said, alike = Said([text]), set[int]()
        twins: dict[tuple[int, int, int], set[int]] = {}
        chunk_of: dict[tuple[int, int], int] = {}
        for chunk, slot in islice((place for place in best if np.isfinite(scores[place])), most):
            node = Node(level, slot)
            key, _, says = self._read(scored, chunk, node, 0)
            new, passage = said.novelty(says), scored.cut(chunk, [GrainedNode(node, 1)])
            if new.share <= NEARLY and new.twin is not None:
                same, *_ = found[new.twin]
                leaf = same.cut[0].node.index << (self._config.tree.height - level)
                twins.setdefault((same.key, same.number, leaf), set()).add(key)
                if not new.repeated:
                    late.append(passage)
            elif len(found) - len(alike) < k:
                if new.like is not None and share_a_passage(says, found[new.like][1]):
                    alike.add(len(found))
                said.add(says)
                found.append((passage, says, float(scores[chunk, slot])))
            chunk_of[passage.key, passage.number] = chunk
        mean = float(scores[np.isfinite(scores)].mean())
        order = order_in_turns([score for *_, score in found], alike, mean, self._config.floor)
        passages = [*(found[n][0] for n in order), *late][:k]
        ranked = [(chunk_of[passage.key, passage.number], passage.cut[0].node) for passage in passages]
        relevances = node_relevances(query, self._index.leaves(), scored, policy, ranked, level)
        cuts = [
            scored.graded(chunk, [GrainedNode(node, 1)], {node: relevance})
            for (chunk, node), relevance in zip(ranked, relevances, strict=True)
            if relevance >= min_score
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
        ahead: Sequence[int],
    ) -> tuple[list[ChunkCut], Twins]:
        """Best-first expansion under one budget over all chunks considered."""
        scored = self._score(sought, considered, policy, budget * tree.fine, runs=True)
        before_all = scored.flat_places(ahead)
        # Raised first: of what is repeated that place counts which is ahead of others.
        raised = replace(scored, leaves=raised_scores(scored.leaves, before_all))
        # First, for what is repeated also counts once where the floor is laid.
        compared = without_repeats(raised, budget // tree.leaf_size, partial(self._read, scored), sought.texts)
        opened = raised_scores(compared.scores, before_all)
        if any(total > budget for total in accumulate(kv_entries(length, tree.fine) for length in scored.lengths)):
            opened = above_floor(opened, floor, scored.stretches())
        if not any(tree.coarse):
            # What was not compared may be said already. The floor's mean is of it, too, hence not before.
            opened = opened.where(compared.looked_at, -torch.inf)
        opened = behind(in_turns(opened, compared.alike.difference(before_all)), compared.late)
        first_of_all = None
        if recent:
            count = scored.last_leaves(recent, tree.leaf_size)
            at_the_end = recent_scores(scored.leaves, scored.fitting(count, budget, tree.fine))
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
        found = node_relevances(query, self._index.leaves(), scored, policy, rest, tree.embedded_level)
        graded = dict.fromkeys(ends, 1.0) | dict(zip(rest, found, strict=True))
        relevant = {
            chunk: [grained for grained in cut if graded[chunk, grained.node] >= min_score]
            for chunk, cut in cuts.items()
        }
        return [
            scored.graded(chunk, cut, {node: graded[chunk, node] for node, _ in cut})
            for chunk, cut in relevant.items()
            if cut
        ], compared.twins

    def _read(self, scored: Scored, chunk: int, node: Node, beside: int) -> tuple[int, int, str]:
        """A chunk's document and number, and what one of its nodes says, with so many nodes before and behind it."""
        key, number = scored.places[chunk]
        first, last = max(node.index - beside, 0), min(node.index + beside, 2**node.level - 1)
        spans = [self._edges.span(key, number, Node(node.level, index)) for index in (first, last)]
        return key, number, self._text(key, spans[0][0], spans[1][1])

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

    def _score(
        self, query: Query | None, considered: np.ndarray, policy: Policy, shown: int | None, runs: bool = False
    ) -> Scored:
        """Scores of all leaves of the chunks considered, arranged by chunk; zeros where there is no query.

        Args:
            shown: tokens that will be shown; None leaves out what surrounds a leaf, as the paper's policy does always.
            runs: whether leaves that follow one another are shown as one text.
        """
        tree, leaves = self._config.tree, self._index.leaves()
        everything = len(considered) == len(leaves.chunk_length)
        rows = np.arange(len(leaves)) if everything else rows_of(leaves.chunk, considered)
        # All rows are taken as they lie; some of them are copied.
        taken = slice(None) if everything else torch.from_numpy(rows).to(leaves.device)
        everywhere_alike = torch.zeros(len(rows), device=leaves.device)
        scores = everywhere_alike if query is None else score(query, leaves, taken, policy)
        if shown is not None and policy != "last_token":
            tokens = int(leaves.chunk_length[considered].sum()) if runs else None
            scores = with_surroundings(scores, touching(leaves, rows), self._config, shown, tokens)
        return Scored.of(scores, leaves, rows, tree.height, self._edges)


def _said(height: int, index: NodeIndex, edges: WordEdges, text: Text, leaf: int) -> str:
    """What stands in a leaf, by its row."""
    leaves = index.leaves()
    key, number = int(leaves.document[leaf]), int(leaves.chunk_number[leaves.chunk[leaf]])
    return text(key, *edges.span(key, number, Node(height, int(leaves.slot[leaf]))))
