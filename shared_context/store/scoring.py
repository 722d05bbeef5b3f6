"""The scoring policies: how promising each leaf is for a query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from shared_context.config import Policy
from shared_context.errors import ConfigError
from shared_context.kernels import node_scores
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.store.codec import Codec
from shared_context.store.embedder import Embedder, embed
from shared_context.store.header_index import HeaderScores, figures
from shared_context.store.leaf_states import LeafStates
from shared_context.store.lexical import bm25
from shared_context.store.node_index import Leaves, NodeIndex
from shared_context.store.postings import Postings
from shared_context.store.query_parts import parts
from shared_context.store.words import DEFAULT_LANGUAGE, literals, other_spellings, query_terms


@dataclass(frozen=True)
class Query:
    """A query in every form that a policy asks for, each made when it is first needed.

    Attributes:
        text: what is compared.
        texts: several queries that ``text`` joins, where there are some.
    """

    text: str
    model: SharedLLMModel
    codec: Codec
    embedder: Embedder | None
    index: NodeIndex
    leaf_states: LeafStates
    postings: Postings
    texts: tuple[str, ...] = ()

    @cached_property
    def parts(self) -> list[tuple[Query, float]]:
        """What of it is compared by itself, and how much that counts."""
        found = [part for text in self.texts or (self.text,) for part in parts(text, self.model.count_tokens)]
        if len(found) == 1:
            return [(self, 1.0)]
        queries = [replace(self, text=text, texts=()) for text, _ in found]
        if self.embedder is not None:
            # All at once: an embedder is much faster with many texts than with one after the other.
            embeddings = torch.from_numpy(embed(self.embedder, [text for text, _ in found], queries=True))
            for query, embedding in zip(queries, embeddings, strict=True):
                vars(query)["embedding"] = embedding
        return list(zip(queries, (weight for _, weight in found), strict=True))

    @property
    def main(self) -> Query:
        """The part that counts most; of several the last."""
        return max(reversed(self.parts), key=lambda part: part[1])[0]

    @cached_property
    def token_ids(self) -> np.ndarray:
        """[tokens]."""
        return self.model.tokenize(self.text).ids

    @cached_property
    def states(self) -> torch.Tensor:
        """Hidden states after one layer, [tokens, hidden]."""
        return self.model.compressor.query_states(torch.from_numpy(self.token_ids.astype(np.int64))).float().cpu()

    @cached_property
    def codes(self) -> torch.Tensor:
        """Of its tokens, [tokens, code_size]."""
        return self.codec.encode(self.states)

    @cached_property
    def headers(self) -> HeaderScores:
        """What the documents' headers say of it."""
        embedding = None if self.embedder is None else self.embedding
        return self.index.headers.scores(self.codes, self.index.weights(self.token_ids), embedding)

    @cached_property
    def figures(self) -> HeaderScores | None:
        """What the documents' headers have of its numbers and identifiers; None where they have none."""
        asked = figures("\n".join([self.text, *other_spellings(self.text, DEFAULT_LANGUAGE)]))
        return self.index.headers.with_figures(asked)

    @cached_property
    def embedding(self) -> torch.Tensor:
        """[dimension]."""
        if self.embedder is None:
            raise ConfigError(
                "This store has no embedder, which the policy embedding and the prefilter need. "
                "Choose another policy, or make the store with embedder='auto'."
            )
        return torch.from_numpy(embed(self.embedder, [self.text], queries=True)[0])


def touching(leaves: Leaves, rows: np.ndarray) -> np.ndarray:
    """Whether each leaf is the one before the next in its document, bool [rows - 1].

    Args:
        rows: rising rows of ``leaves``.
    """
    document = leaves.document[rows]
    return (document[1:] == document[:-1]) & (np.diff(rows) == 1)


HEADER_WORDS = 1.0
"""What a word of the query counts that a document's header has, against one that a leaf has."""

HEADER_COSINE = 0.3
"""Share of a header's cosine that is added to those of its document's spans."""


def late_interaction(query: Query, leaves: Leaves, rows: torch.Tensor | slice) -> torch.Tensor:
    """Max-similarity of each query token over the leaf's tokens, weighted by inverse leaf frequency, summed.

    The same over the leaf and its neighbours in the document is added: a passage is known by words around the answer
    too. So is what the document's header says of the query: a passage is known by what it is of.
    """
    codes, weights = query.codes, query.index.weights(query.token_ids)
    chosen = None if isinstance(rows, slice) else rows
    places = np.arange(len(leaves)) if chosen is None else chosen.numpy(force=True)
    scores = leaves.late_interaction(codes, weights, chosen, torch.from_numpy(touching(leaves, places)))
    if len(query.index.headers):
        headers = query.headers
        of_header = headers.of(leaves.document[places], headers.words)
        scores = scores + HEADER_WORDS * torch.from_numpy(of_header).to(scores.device)
    return scores


OWN_SPAN = 0.1
"""Weight of a leaf's own span against the better one of those around it, so that it stands before its neighbours."""


def embedding(query: Query, leaves: Leaves, rows: torch.Tensor | slice) -> torch.Tensor:
    """Cosine of the query's embedding with that of the leaf's span or of the span beside it, whichever is larger.

    A share of its cosine with the document's header is added.
    """
    asked, around = query.embedding, leaves.spans[rows]
    if isinstance(rows, slice):
        cosines = leaves.cosines(asked)[around]
    else:
        spans, places = torch.unique(around, return_inverse=True)
        cosines = leaves.cosines(asked, spans)[places]
    scores = torch.lerp(cosines.amax(dim=1), cosines[:, 0], OWN_SPAN)
    if len(query.index.headers):
        headers, places = query.headers, rows if isinstance(rows, slice) else rows.numpy(force=True)
        of_header = headers.of(leaves.document[places], headers.cosines)
        scores = scores + HEADER_COSINE * torch.from_numpy(of_header).to(scores.device)
    return scores


def lexical(query: Query, leaves: Leaves, rows: torch.Tensor | slice) -> torch.Tensor:
    """BM25 of the query's words; where documents are of several languages, of that which its words fit best."""
    return _of_words(query, leaves, rows, query_terms)


def literal(query: Query, leaves: Leaves, rows: torch.Tensor | slice) -> torch.Tensor:
    """BM25 of nothing but what the query names literally: identifiers and numbers, whole, in any spelling."""
    return _of_words(query, leaves, rows, lambda *of: [*literals(*of), *other_spellings(*of)])


def _of_words(
    query: Query, leaves: Leaves, rows: torch.Tensor | slice, terms_of: Callable[[str, str], list[str]]
) -> torch.Tensor:
    # Languages that make the same terms of a query are one.
    languages = query.postings.languages() or [DEFAULT_LANGUAGE]
    several = dict.fromkeys(tuple(terms_of(query.text, language)) for language in languages)
    scores = np.max([bm25(terms, query.postings, leaves) for terms in several], axis=0)
    return torch.from_numpy(scores).to(leaves.device)[rows]


def last_token(query: Query, leaves: Leaves, rows: torch.Tensor | slice) -> torch.Tensor:
    """Cosine of the last tokens' hidden states after one layer (arXiv 2603.04759)."""
    states = query.leaf_states.all()[rows]
    return torch.nn.functional.cosine_similarity(states.float(), query.states[-1:].to(states.device), dim=-1)


LEXICAL_WEIGHT = 0.5
LITERAL_WEIGHT = 1.0
"""Chosen where evidence was shown most often over questions on encyclopaedias, a handbook, stories and meetings, and
lists of numbered things; between 0.3 and 0.7 and between 0.6 and 1 little changes."""

FIGURES_WEIGHT = 3.0
"""Of the numbers and identifiers that documents' headers have: often they are all that tells documents apart."""


def hybrid(query: Query, leaves: Leaves, rows: torch.Tensor | slice) -> torch.Tensor:
    """Late interaction, embedding where the store has an embedder, and words, in standard deviations from their means.

    Added with the weights ``1, 1, LEXICAL_WEIGHT, LITERAL_WEIGHT``. What is named literally weighs as much as meaning:
    codes and embeddings see a bag of digits in it. Other words weigh less, because the codes have seen them. What
    documents' headers have of the query's numbers and identifiers is added with FIGURES_WEIGHT.
    """
    scores = standardize(late_interaction(query, leaves, rows))
    if query.embedder is not None:
        scores += standardize(embedding(query, leaves, rows))
    scores += LEXICAL_WEIGHT * standardize(lexical(query, leaves, rows))
    scores += LITERAL_WEIGHT * standardize(literal(query, leaves, rows))
    if (headers := query.figures) is not None:
        documents = leaves.document[rows if isinstance(rows, slice) else rows.numpy(force=True)]
        of_header = torch.from_numpy(headers.of(documents, headers.words)).to(scores.device)
        scores += FIGURES_WEIGHT * standardize(of_header)
    return scores


POLICIES: dict[Policy, Callable[[Query, Leaves, torch.Tensor | slice], torch.Tensor]] = {
    "hybrid": hybrid,
    "late_interaction": late_interaction,
    "embedding": embedding,
    "lexical": lexical,
    "last_token": last_token,
}


def score(query: Query, leaves: Leaves, rows: torch.Tensor | slice, policy: Policy) -> torch.Tensor:
    """How promising leaves are for a query, [leaves]: for that of its parts which finds most in them.

    Each part's scores are told in standard deviations from their mean, so that parts of any length compare.
    """
    if len(query.parts) == 1:
        return POLICIES[policy](query, leaves, rows)
    best: torch.Tensor | None = None
    for part, weight in query.parts:
        scores = standardize(POLICIES[policy](part, leaves, rows)) * weight
        best = scores if best is None else torch.maximum(best, scores)
    assert best is not None  # a query has parts
    return best


CHANCE = 0.55
"""How alike a query's tokens and the most similar ones of a leaf are on average where the two are of different things;
counted in inverse leaf frequencies, with the codes of the default model."""


def relevance(query: Query, leaves: Leaves, rows: torch.Tensor, policy: Policy) -> torch.Tensor:
    """How much leaves have to do with a query, 0 to 1, [rows]; it means the same whatever else is in the store.

    For the policies embedding and last_token that is the cosine which they compare. For the others it is the share of
    the query's tokens, weighted by inverse leaf frequency, that a leaf's tokens are more alike than by CHANCE; where
    there is an embedder, the mean of that and the cosine. Of a query's parts the best counts.

    Args:
        rows: of ``leaves``, in any order.
    """
    found = [_relevance(part, leaves, rows, policy) * weight for part, weight in query.parts]
    return torch.stack(found).amax(dim=0).clamp(0, 1)


def _relevance(query: Query, leaves: Leaves, rows: torch.Tensor, policy: Policy) -> torch.Tensor:
    if policy in ("embedding", "last_token"):
        return POLICIES[policy](query, leaves, rows)
    weights = query.index.weights(query.token_ids)
    said = leaves.late_interaction(query.codes, weights, rows) / weights.sum().clamp(min=1e-6)
    shared = ((said - CHANCE) / (1 - CHANCE)).clamp(min=0)
    if len(query.index.headers):
        headers = query.headers
        of_header = headers.of(leaves.document[rows.numpy(force=True)], headers.words)
        shared = (shared + torch.from_numpy(of_header).to(shared.device) / weights.sum().clamp(min=1e-6)).clamp(max=1)
    return shared if query.embedder is None else (shared + embedding(query, leaves, rows).clamp(min=0)) / 2


def standardize(scores: torch.Tensor) -> torch.Tensor:
    """Scores in standard deviations from their mean; zeros where all are equal."""
    return (scores - scores.mean()) / scores.std(correction=0).clamp(min=1e-6)


FLOOR_LEAVES = 32
"""Among fewer leaves the mean says too little of what a question does not need, and there is no floor."""


def above_floor(scores: torch.Tensor, floor: float, stretch: np.ndarray) -> torch.Tensor:
    """Scores in which leaves below a share of the best one are minus infinity, so that no search opens them.

    The leaves on both sides of the best keep their scores, unless the floor is 1: what it says may begin before it or
    go on behind it, in words that have nothing in common with the query.

    Args:
        scores: [chunks, leaves], chunks in the order of documents and of their text; minus infinity where there is no
            leaf.
        floor: the share, counted from the mean: at 0.4 a leaf must reach 40% of what the best is above it; at 1 nothing
            but the best is opened.
        stretch: of an unbroken stretch of a document's chunks each has the same number, [chunks].
    """
    flat = scores.flatten()
    there = flat.isfinite().nonzero()[:, 0]
    if floor == 0 or len(there) < FLOOR_LEAVES:
        return scores
    present = flat[there]
    mean, best = present.mean(), int(present.argmax())
    above = present >= mean + floor * (present[best] - mean)
    of = stretch[there.numpy(force=True) // scores.shape[1]]
    for beside in (best - 1, best + 1) if floor < 1 else ():
        if 0 <= beside < len(of) and of[beside] == of[best]:
            above[beside] = True
    return flat.index_fill(0, there[~above], -torch.inf).view_as(scores)


def behind(scores: torch.Tensor, late: Sequence[int]) -> torch.Tensor:
    """Scores in which some leaves come after all others that may be opened.

    Args:
        scores: [chunks, leaves], as :func:`above_floor` gives them.
        late: places of leaves in the flattened scores, in the order in which they are to come.
    """
    if not late:
        return scores
    flat = scores.flatten()
    last = flat[flat.isfinite()].min()
    after = last - torch.arange(1, len(late) + 1, device=flat.device)
    return flat.index_put((torch.tensor(late, device=flat.device),), after.to(flat.dtype)).view_as(scores)


def recent_scores(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Scores of the last ``count`` leaves above those of all others, the very last the highest.

    Args:
        scores: [chunks, leaves], as :func:`above_floor` takes them.
        count: leaves.

    Returns:
        [chunks, leaves]; minus infinity but for those leaves.
    """
    flat = scores.flatten()
    there = flat.isfinite().nonzero()[:, 0]
    above = flat[there].max() + torch.arange(1, count + 1, device=flat.device)
    return torch.full_like(flat, -torch.inf).index_put((there[-count:],), above).view_as(scores)


def by_level(leaf_scores: torch.Tensor) -> list[np.ndarray]:
    """Scores of the nodes of every level, root first: an inner node is as good as its best leaf.

    Args:
        leaf_scores: [chunks, 2**height]; minus infinity where there is no leaf.
    """
    nodes = node_scores(leaf_scores).numpy(force=True)
    return [nodes[:, 2**level - 1 : 2 ** (level + 1) - 1] for level in range(leaf_scores.shape[1].bit_length())]


LONGEST_SECTION = 512
"""Tokens."""


def section_leaves(shown: int, leaf_size: int) -> int:
    """Leaves on each side of a leaf that are of one section with it.

    A section is about as long as what will be shown: of a long story a small budget shows the best places, and a large
    one runs of text. Beyond LONGEST_SECTION nothing was gained.

    Args:
        shown: tokens that will be shown.
        leaf_size: tokens of a leaf.
    """
    return min(shown, LONGEST_SECTION) // (2 * leaf_size)


def with_section(scores: torch.Tensor, touch: np.ndarray, reach: int, weight: float) -> torch.Tensor:
    """Scores to which ``weight`` of what a leaf's section is above the mean of all is added, on the average.

    Args:
        scores: [leaves], leaves in document order.
        touch: of the leaves, see :func:`touching`.
        reach: leaves on each side that are of the section; fewer where those that touch end.
        weight: share of the section's score.
    """
    row = np.arange(len(scores))
    edges = _stretches(touch, len(scores))
    begin, end = np.maximum(row - reach, edges[0]), np.minimum(row + reach + 1, edges[1])
    return scores + weight * _means(scores - scores.mean(), begin, end)


def _stretches(touch: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each leaf, the first one of its unbroken stretch and the one behind the last, [leaves]."""
    first = np.concatenate([[0], np.flatnonzero(~touch) + 1])
    lengths = np.diff(first, append=count)
    return np.repeat(first, lengths), np.repeat(first + lengths, lengths)


def _means(scores: torch.Tensor, begin: np.ndarray, end: np.ndarray) -> torch.Tensor:
    """The mean score from one row up to another, for each pair of rows."""
    sums = torch.nn.functional.pad(scores.double().cumsum(dim=0), (1, 0))
    first, last = (torch.from_numpy(edge).to(scores.device) for edge in (begin, end))
    return ((sums[last] - sums[first]) / (last - first)).to(scores.dtype)


LONGEST_RUN = 512
"""Tokens."""

RUN_WEIGHT = 0.7
RUNS_FROM, RUNS_FULLY = 1 / 20, 1 / 16
"""Shares of a text. Chosen on half of the stories: more weight shows all of the evidence more often and less of it on
the mean. Below a twentieth, what is asked of many passages about a thing apiece is shown less often."""


def run_leaves(shown: int, leaf_size: int) -> int:
    """Leaves of a run: half of what will be shown, so that there is room for two."""
    return min(shown, 2 * LONGEST_RUN) // (2 * leaf_size)


def run_weight(shown: int, tokens: int) -> float:
    """How much the run counts that a leaf is in, and by so much less the leaf itself.

    Of much text a few leaves have to be the right ones, each by itself. Where a good part of the text will be shown,
    those are in it, and what is missing is what lies between and beside them.

    Args:
        shown: tokens that will be shown.
        tokens: of all text that is considered.
    """
    share = min(shown, 2 * LONGEST_RUN) / max(tokens, 1)
    return RUN_WEIGHT * min(1.0, max(0.0, (share - RUNS_FROM) / (RUNS_FULLY - RUNS_FROM)))


def with_runs(scores: torch.Tensor, touch: np.ndarray, length: int, weight: float) -> torch.Tensor:
    """Scores of which ``weight`` is the mean of the best run that a leaf is in, and the rest its own.

    Args:
        scores: [leaves], leaves in document order.
        touch: of the leaves, see :func:`touching`.
        length: leaves of a run; leaves that touch are one run where they are fewer.
        weight: share of the run's mean, 0 to 1.
    """
    if weight == 0 or length < 2:
        return scores
    row = np.arange(len(scores))
    begin, end = _stretches(touch, len(scores))
    of_run = _means(scores, row, np.minimum(row + length, end))
    begins = torch.from_numpy(row + length <= end).to(scores.device)
    of_run = torch.nn.functional.pad(of_run.where(begins, -torch.inf), (length - 1, 0), value=-torch.inf)
    best = torch.nn.functional.max_pool1d(of_run[None], length, stride=1)[0]
    short = torch.from_numpy(end - begin < length).to(scores.device)
    return torch.lerp(scores, _means(scores, begin, end).where(short, best), weight)


def with_neighbours(scores: torch.Tensor, touch: np.ndarray, weight: float) -> torch.Tensor:
    """Scores to which each leaf's neighbours in its document add ``weight`` of what they are above the mean.

    Args:
        scores: [leaves], leaves in document order.
        touch: of the leaves, see :func:`touching`.
        weight: share of a neighbour's score.
    """
    above = (scores - scores.mean()) * weight
    same = torch.from_numpy(touch).to(scores.device)
    smoothed = scores.clone()
    smoothed[1:] += above[:-1] * same
    smoothed[:-1] += above[1:] * same
    return smoothed
