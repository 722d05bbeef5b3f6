"""A query in every form that leaves are compared with, and what texts may be one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch

from shared_context.errors import ConfigError, QueryError
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.model.tokenization import CHARACTERS_OF_TOKEN
from shared_context.store.codec import Codec
from shared_context.store.common_words import DEFAULT_LANGUAGE
from shared_context.store.embedder import Embedder, embed
from shared_context.store.header_index import HeaderScores, figures
from shared_context.store.leaf_states import LeafStates
from shared_context.store.node_index import NodeIndex
from shared_context.store.postings import Postings
from shared_context.store.query_parts import parts
from shared_context.store.words import other_spellings

QUERY_TOKENS = 1 << 15
"""Longer queries are refused, whatever the model's window: they are documents."""


def longest_query(model: SharedLLMModel) -> int:
    """Tokens of the longest query that a model's stores search for."""
    return min(QUERY_TOKENS, model.context_window)


Rewrite: TypeAlias = Callable[[str], str | Sequence[str]]
"""Makes of a query what is searched for: a text, or several of which the one that finds most counts."""


@dataclass(frozen=True)
class Query:
    """A query in every form that a policy asks for, each made when it is first needed.

    Attributes:
        text: what is compared.
        said: what stands in a leaf, by its row.
        texts: several queries that ``text`` joins, where there are some.
    """

    text: str
    model: SharedLLMModel
    codec: Codec
    embedder: Embedder | None
    index: NodeIndex
    leaf_states: LeafStates
    postings: Postings
    said: Callable[[int], str]
    texts: tuple[str, ...] = ()

    @cached_property
    def parts(self) -> list[tuple[Query, float]]:
        """What of it is compared by itself, and how much that counts."""
        found = [part for text in self.texts or (self.text,) for part in parts(text, self.model.count_tokens)]
        if len(found) == 1 and found[0].text == self.text:
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
        """Its words that the documents' headers say."""
        return self.index.headers.scores(self.codes, self.index.weights(self.token_ids))

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


class Queries:
    """Makes queries of texts.

    Args:
        model: encodes them.
        codec: makes codes of what the model encodes.
        embedder: embeds them; None where the store has none.
        index: what they are compared with.
        leaf_states: of its leaves.
        postings: which of its leaves hold a word.
        said: what stands in one of its leaves, by its row.
        rewrite: makes of a text what is searched for; None takes it as it is.
    """

    def __init__(
        self,
        model: SharedLLMModel,
        codec: Codec,
        embedder: Embedder | None,
        index: NodeIndex,
        leaf_states: LeafStates,
        postings: Postings,
        said: Callable[[int], str],
        rewrite: Rewrite | None = None,
    ):
        self._model, self._codec, self._embedder, self._index = model, codec, embedder, index
        self._leaf_states, self._postings, self._said, self._rewrite = leaf_states, postings, said, rewrite

    def of(self, text: str | None) -> Query:
        """The query that a text is.

        Raises:
            QueryError: it is empty, too long, or no text.
        """
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
            self._said,
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


def _rewritten(rewrite: Rewrite, text: str) -> tuple[str, ...]:
    """What is searched for in the place of a query."""
    given = rewrite(text)
    texts = (given,) if isinstance(given, str) else tuple(given or ())
    if not texts or not all(isinstance(each, str) and each.strip() for each in texts):
        raise QueryError(f"rewrite made {given!r} of the query; it must give a text, or several, with words in it.")
    return texts
