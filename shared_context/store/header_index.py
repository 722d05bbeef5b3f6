"""The headers of all documents side by side in memory: how much of a query each of them says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import log

import numpy as np
import torch

from shared_context.store.node_data import HeaderData
from shared_context.store.words import LONGEST_WORD, WORD, terms_of

SAME_WORD = 0.6
"""Similarity of two token codes from which on one may say what the other does; below, everything is a little alike."""

COMPARED_TOGETHER = 1 << 13
"""Tokens whose codes are unpacked at once, to what about fits a core's cache."""


@dataclass(frozen=True)
class HeaderScores:
    """What the headers say of a query.

    Attributes:
        keys: the documents that have a header, rising, int64 [documents].
        words: for each, the sum of the weights of the query's words that it has, float32.
        cosines: for each, its embedding's cosine with the query's, 0 where that is negative, float32; zeros where
            nothing is embedded.
    """

    keys: np.ndarray
    words: np.ndarray
    cosines: np.ndarray

    def weighted(self, weights: torch.Tensor) -> HeaderScores:
        """The same with the words of each header summed, where ``words`` are [documents, words].

        Args:
            weights: the most that each of them counts, [words]. One that most headers have counts less still.
        """
        rare = np.log((len(self.keys) + 1) / (self.words.sum(axis=0) + 0.5)).clip(min=0)
        return replace(self, words=self.words @ np.minimum(rare, weights.numpy()).astype(np.float32))

    def of(self, documents: np.ndarray, values: np.ndarray) -> np.ndarray:
        """``values``, one for each of ``keys``, for other documents; 0 where they have no header, [documents]."""
        if not len(self.keys):
            return np.zeros(len(documents), np.float32)
        places = np.searchsorted(self.keys, documents).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == documents, values[places], 0).astype(np.float32)


class HeaderIndex:
    """What a query is compared with beside the leaves, once for each document."""

    def __init__(self) -> None:
        self._headers: dict[int, HeaderData] = {}
        self._texts: dict[int, str] = {}  # whose figures nobody has asked for yet
        self._figures: dict[int, frozenset[str]] = {}
        self._joined: _Joined | None = None

    def __len__(self) -> int:
        """Documents that have a header."""
        return len(self._headers)

    def put(self, key: int, header: HeaderData | None, text: str = "") -> None:
        """Take in a document's header in the place of the one it had; None where it has none any more.

        Args:
            text: of the header.
        """
        self._figures.pop(key, None)
        self._texts.pop(key, None)
        if header is not None and text:
            self._texts[key] = text
        if header is not None and len(header.codes):
            self._headers[key] = header
        elif self._headers.pop(key, None) is None:
            return
        self._joined = None

    def move(self, key: int, new_key: int) -> None:
        """Take in that a document got another key."""
        text, found = self._texts.get(key, ""), self._figures.get(key)
        self.put(new_key, self._headers.get(key), text)
        self.put(key, None)
        if found:
            self._figures[new_key] = found

    def with_figures(self, terms: Iterable[str]) -> HeaderScores | None:
        """How rare the numbers and identifiers of a query are that headers have; see :func:`figure_scores`."""
        if not (asked := list(terms)):
            return None
        for key, text in self._texts.items():
            if found := figures(text):
                self._figures[key] = found
        self._texts = {}
        return figure_scores(self._figures, asked, len(self))

    def scores(self, codes: torch.Tensor, weights: torch.Tensor, embedding: torch.Tensor | None) -> HeaderScores:
        """Compare a query with every header.

        Args:
            codes: of the query's tokens, float32 [words, code_size].
            weights: the most that each of them counts, [words]. One that most headers have counts less still.
            embedding: the query's, [dimension]; None leaves embeddings out.
        """
        return self.said(codes, embedding).weighted(weights)

    def said(self, codes: torch.Tensor, embedding: torch.Tensor | None) -> HeaderScores:
        """What :meth:`scores` are made of: as ``words``, how far each header says each word, 0 to 1 [documents, words].

        Arguments as there.
        """
        if not self._headers:
            return HeaderScores(np.zeros(0, np.int64), np.zeros((0, len(codes)), np.float32), np.zeros(0, np.float32))
        if self._joined is None:
            self._joined = _join(self._headers)
        joined = self._joined
        similar = np.empty((len(joined.codes), len(codes)), np.float32)
        for first in range(0, len(similar), COMPARED_TOGETHER):
            some = slice(first, first + COMPARED_TOGETHER)
            np.matmul(joined.codes[some].astype(np.float32), codes.numpy().T, out=similar[some])
        similar *= joined.scales.astype(np.float32)[:, None]
        best = np.maximum.reduceat(similar, joined.first, axis=0)
        said = ((best - SAME_WORD) / (1 - SAME_WORD)).clip(0, 1)
        cosines = np.zeros(len(joined.keys), np.float32)
        if embedding is not None:
            cosines = np.maximum.reduceat(joined.embeddings @ embedding.numpy(), joined.first_span).clip(min=0)
        return HeaderScores(joined.keys, said, cosines)


def figures(text: str) -> frozenset[str]:
    """The terms of a text that have a digit or join parts, in any language."""
    # Most words of a header have none, and most that have one are a number that is its own only term.
    found: set[str] = set()
    for word in WORD.findall(text):
        if word.isdigit() and word.isascii() and len(word) <= LONGEST_WORD:
            found.add(word)
        elif "_" in word or any(map(str.isnumeric, word)):
            found |= {term for term in terms_of(word) if any(map(str.isdigit, term)) or "_" in term}
    return frozenset(found)


def figure_scores(held: Mapping[int, frozenset[str]], terms: Iterable[str], headers: int) -> HeaderScores | None:
    """How rare the numbers and identifiers of a query are that headers have, as ``words``; None where none has one.

    Codes see a bag of digits in a year or a number, which is often all that tells documents apart.

    Args:
        held: the :func:`figures` of each header by its document's key.
        terms: the query's.
        headers: how many there are.
    """
    found: dict[int, float] = {}
    for term in terms:
        having = [key for key, figures in held.items() if term in figures]
        for key in having:
            found[key] = found.get(key, 0.0) + log(1 + (headers + 0.5) / (len(having) + 0.5))
    if not found:
        return None
    keys = np.array(sorted(found), np.int64)
    return HeaderScores(keys, np.array([found[key] for key in keys.tolist()], np.float32), np.zeros(len(keys)))


@dataclass(frozen=True)
class _Joined:
    """All headers as arrays, in the order of their documents."""

    keys: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    embeddings: np.ndarray
    first: np.ndarray
    first_span: np.ndarray


def _join(headers: dict[int, HeaderData]) -> _Joined:
    keys = sorted(headers)
    held = [headers[key] for key in keys]
    tokens, spans = (np.array([len(getattr(h, name)) for h in held]) for name in ("codes", "embeddings"))
    return _Joined(
        np.array(keys, np.int64),
        np.concatenate([h.codes for h in held]),
        np.concatenate([h.scales for h in held]),
        np.concatenate([h.embeddings for h in held]),
        np.cumsum(tokens) - tokens,
        np.cumsum(spans) - spans,
    )
