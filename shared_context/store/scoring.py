"""The scoring policies: how promising each leaf is for a query."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch

from shared_context.config import Policy
from shared_context.store.common_words import DEFAULT_LANGUAGE
from shared_context.store.leaves import Leaves
from shared_context.store.lexical import SPARSE, Gains, bm25
from shared_context.store.query import Query
from shared_context.store.surroundings import touching
from shared_context.store.together import together
from shared_context.store.words import literals, other_spellings, query_terms, ways_to_write

T = TypeVar("T")

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
        of_header = query.headers.of(leaves.document[places])
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
        documents = leaves.document[rows if isinstance(rows, slice) else rows.numpy(force=True)]
        # To compare the headers of all documents, where few are scored, would take longer than all else.
        near = query.index.headers.near(asked, None if isinstance(rows, slice) else np.unique(documents))
        of_header = near.of(documents)
        scores = scores + HEADER_COSINE * torch.from_numpy(of_header).to(scores.device)
    return scores


def lexical(query: Query, leaves: Leaves, rows: torch.Tensor | slice) -> torch.Tensor:
    """BM25 of the query's words; where documents are of several languages, of that which its words fit best.

    The place in which nearly all of them stand together counts as one more word.
    """
    return _by_terms(query, leaves, rows, query_terms) + _by_place(query, leaves, rows)


def literal(query: Query, leaves: Leaves, rows: torch.Tensor | slice) -> torch.Tensor:
    """BM25 of nothing but what the query names literally: identifiers and numbers, whole, in any spelling.

    The place in which nearly all of its words stand together counts as if it had a name, too.
    """
    of_names = _by_terms(query, leaves, rows, lambda *of: [*literals(*of), *other_spellings(*of)])
    return of_names + _by_place(query, leaves, rows)


def _by_terms(
    query: Query, leaves: Leaves, rows: torch.Tensor | slice, terms_of: Callable[[str, str], Iterable[str]]
) -> torch.Tensor:
    several = _in_languages(query, terms_of)
    few = None if isinstance(rows, slice) or SPARSE * len(rows) >= len(leaves) else rows.numpy(force=True)
    gains = Gains(query.postings, {term for terms in several for term in terms}, leaves, few)
    scores = torch.from_numpy(np.max([bm25(terms, gains) for terms in several], axis=0)).to(leaves.device)
    return scores[rows] if few is None else scores


def _by_place(query: Query, leaves: Leaves, rows: torch.Tensor | slice) -> torch.Tensor:
    several = _in_languages(query, ways_to_write)
    terms = {term for words in several for ways in words for way in ways for term in way}
    # Of these leaves alone, few or many: what stands in others is no place to be shown.
    gains = Gains(query.postings, terms, leaves, None if isinstance(rows, slice) else rows.numpy(force=True))
    found = [together(words, gains, language, query.said) for words, language in several.items()]
    return torch.from_numpy(np.max(found, axis=0)).to(leaves.device)


def _in_languages(query: Query, words_of: Callable[[str, str], Iterable[T]]) -> dict[tuple[T, ...], str]:
    """What a query is looked up by in the languages of documents, and in which; those that make the same are one."""
    found: dict[tuple[T, ...], str] = {}
    for language in query.postings.languages() or [DEFAULT_LANGUAGE]:
        found.setdefault(tuple(words_of(query.text, language)), language)
    return found


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
    scores += LEXICAL_WEIGHT * standardize(_by_terms(query, leaves, rows, query_terms))
    scores += LITERAL_WEIGHT * standardize(literal(query, leaves, rows))
    if (headers := query.figures) is not None:
        documents = leaves.document[rows if isinstance(rows, slice) else rows.numpy(force=True)]
        of_header = torch.from_numpy(headers.of(documents)).to(scores.device)
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
        return POLICIES[policy](query.parts[0][0], leaves, rows)
    best: torch.Tensor | None = None
    for part, weight in query.parts:
        scores = standardize(POLICIES[policy](part, leaves, rows)) * weight
        best = scores if best is None else torch.maximum(best, scores)
    assert best is not None  # a query has parts
    return best


def standardize(scores: torch.Tensor) -> torch.Tensor:
    """Scores in standard deviations from their mean; zeros where all are equal."""
    return (scores - scores.mean()) / scores.std(correction=0).clamp(min=1e-6)
