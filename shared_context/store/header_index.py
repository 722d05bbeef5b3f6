"""The headers of all documents side by side in memory: how much of a query each of them says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import blake2b
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

    def part(self, rows: np.ndarray) -> HeaderScores:
        """Those of some headers, in this order."""
        return HeaderScores(self.keys[rows], self.words[rows], self.cosines[rows])

    def of(self, documents: np.ndarray, values: np.ndarray) -> np.ndarray:
        """``values``, one for each of ``keys``, for other documents; 0 where they have no header, [documents]."""
        if not len(self.keys):
            return np.zeros(len(documents), np.float32)
        places = np.searchsorted(self.keys, documents).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == documents, values[places], 0).astype(np.float32)


@dataclass(frozen=True)
class KeptHeaders:
    """Headers as arrays, in the order of their documents' keys; those of a file are mapped.

    Attributes:
        keys: of their documents, rising, int64 [headers].
        tokens, spans, terms: how many rows each header has below, int64 [headers]; one token and span at least.
        codes, scales: of the tokens, int8 [all tokens, code_size] and float16.
        embeddings: of the spans, float32 [all spans, dimension].
        figures: :func:`figure_number` of the numbers and identifiers, int64 [all terms].
    """

    keys: np.ndarray
    tokens: np.ndarray
    spans: np.ndarray
    terms: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    embeddings: np.ndarray
    figures: np.ndarray

    @cached_property
    def first(self) -> dict[str, np.ndarray]:
        """The first row of each header, by what the rows are, int64 [headers]."""
        counts = {"tokens": self.tokens, "spans": self.spans, "terms": self.terms}
        return {name: np.cumsum(of) - of for name, of in counts.items()}

    def header(self, place: int) -> tuple[HeaderData, frozenset[int]]:
        """A header with the numbers of its figures, copied."""
        tokens, spans, terms = (
            slice(int(first[place]), int(first[place] + counts[place]))
            for first, counts in zip(self.first.values(), (self.tokens, self.spans, self.terms), strict=True)
        )
        rows = self.codes[tokens].copy(), self.scales[tokens].copy(), self.embeddings[spans].copy()
        return HeaderData(*rows), frozenset(self.figures[terms].tolist())

    def said(self, codes: torch.Tensor, embedding: torch.Tensor | None) -> HeaderScores:
        """What :meth:`HeaderIndex.said` says of these."""
        similar = np.empty((len(self.codes), len(codes)), np.float32)
        for first in range(0, len(similar), COMPARED_TOGETHER):
            some = slice(first, first + COMPARED_TOGETHER)
            np.matmul(self.codes[some].astype(np.float32), codes.numpy().T, out=similar[some])
            similar[some] *= self.scales[some].astype(np.float32)[:, None]
        best = np.maximum.reduceat(similar, self.first["tokens"], axis=0)
        said = ((best - SAME_WORD) / (1 - SAME_WORD)).clip(0, 1)
        cosines = np.zeros(len(self.keys), np.float32)
        if embedding is not None:
            near = self.embeddings @ embedding.numpy()
            cosines = np.maximum.reduceat(near, self.first["spans"]).clip(min=0)
        return HeaderScores(self.keys, said, cosines)

    def having(self, term: str) -> np.ndarray:
        """Places of the headers that have a number or identifier."""
        rows = np.flatnonzero(self.figures == figure_number(term))
        return np.searchsorted(self.first["terms"], rows, side="right") - 1


class HeaderIndex:
    """What a query is compared with beside the leaves, once for each document."""

    def __init__(self) -> None:
        # What a file holds, and which of these are here still; then all others.
        self._kept: KeptHeaders | None = None
        self._there = np.zeros(0, bool)
        self._headers: dict[int, HeaderData] = {}
        self._texts: dict[int, str] = {}  # whose figures nobody has asked for yet
        self._figures: dict[int, frozenset[int]] = {}
        self._joined: KeptHeaders | None = None

    def __len__(self) -> int:
        """Documents that have a header."""
        return len(self._headers) + int(self._there.sum())

    def adopt(self, kept: KeptHeaders, there: np.ndarray) -> None:
        """Take in what a file holds, in the place of all that is held now.

        Args:
            there: which of them there are, bool [headers].
        """
        self._headers, self._texts, self._figures, self._joined = {}, {}, {}, None
        self._kept, self._there = (kept, there.copy()) if there.any() else (None, np.zeros(0, bool))

    def put(self, key: int, header: HeaderData | None, text: str = "") -> None:
        """Take in a document's header in the place of the one it had; None where it has none any more.

        Args:
            text: of the header.
        """
        self._figures.pop(key, None)
        self._texts.pop(key, None)
        if (place := self._place(key)) is not None:
            self._there[place] = False
        if header is not None and len(header.codes):
            self._headers[key], self._texts[key] = header, text
        elif self._headers.pop(key, None) is None:
            return
        self._joined = None

    def _place(self, key: int) -> int | None:
        """Which of the file's headers a document has; None where it has none of them."""
        if self._kept is None:
            return None
        place = int(np.searchsorted(self._kept.keys, key))
        return place if place < len(self._there) and self._there[place] and self._kept.keys[place] == key else None

    def move(self, key: int, new_key: int) -> None:
        """Take in that a document got another key."""
        header, found = self.header(key)
        self.put(key, None)
        self.put(new_key, header)
        if header is not None:
            del self._texts[new_key]
            self._figures[new_key] = found

    def header(self, key: int) -> tuple[HeaderData | None, frozenset[int]]:
        """A document's header and the numbers of its figures."""
        if self._kept is not None and (place := self._place(key)) is not None:
            return self._kept.header(place)
        self._find_figures()
        return self._headers.get(key), self._figures.get(key, frozenset())

    def sizes(self, key: int) -> tuple[int, int, int]:
        """Tokens, spans and figures of a document's header."""
        header, figures = self.header(key)
        return (0, 0, 0) if header is None else (len(header.codes), len(header.embeddings), len(figures))

    def _find_figures(self) -> None:
        for key, text in self._texts.items():
            if found := figures(text):
                self._figures[key] = frozenset(map(figure_number, found))
        self._texts = {}

    def with_figures(self, terms: Iterable[str]) -> HeaderScores | None:
        """How rare the numbers and identifiers of a query are that headers have; see :func:`figure_scores`."""
        asked = list(terms)
        return figure_scores(self.having(asked), len(self)) if asked else None

    def having(self, terms: Sequence[str]) -> list[list[int]]:
        """For each number or identifier, keys of the documents whose headers have it."""
        self._find_figures()
        return [self._having(term) for term in terms]

    def _having(self, term: str) -> list[int]:
        number = figure_number(term)
        having = [key for key, figures in self._figures.items() if number in figures]
        if self._kept is not None:
            places = self._kept.having(term)
            having += self._kept.keys[places[self._there[places]]].tolist()
        return having

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
        found = []
        if self._kept is not None:
            kept = self._kept.said(codes, embedding)
            found.append(kept if self._there.all() else kept.part(self._there))
        if self._headers:
            if self._joined is None:
                self._joined = join_headers(self._headers, {})
            found.append(self._joined.said(codes, embedding))
        if not found:
            return HeaderScores(np.zeros(0, np.int64), np.zeros((0, len(codes)), np.float32), np.zeros(0, np.float32))
        if len(found) == 1:
            return found[0]
        both = HeaderScores(*(np.concatenate([getattr(of, field.name) for of in found]) for field in fields(found[0])))
        return both.part(np.argsort(both.keys))


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


def figure_number(term: str) -> int:
    """What stands for a number or identifier of a header: its hash, 64 bits with a sign."""
    return int.from_bytes(blake2b(term.encode(errors="surrogatepass"), digest_size=8).digest(), "little", signed=True)


def figure_scores(having: Iterable[Sequence[int]], headers: int) -> HeaderScores | None:
    """How rare the numbers and identifiers of a query are that headers have, as ``words``; None where none has one.

    Codes see a bag of digits in a year or a number, which is often all that tells documents apart.

    Args:
        having: for each of the query's terms, keys of the documents among the :func:`figures` of whose headers it is.
        headers: how many there are.
    """
    found = [np.array(of_term, np.int64) for of_term in having]
    keys, places = np.unique(np.concatenate([np.zeros(0, np.int64), *found]), return_inverse=True)
    if not len(keys):
        return None
    gains = [log(1 + (headers + 0.5) / (len(of_term) + 0.5)) for of_term in found]
    scores = np.zeros(len(keys))
    np.add.at(scores, places, np.repeat(gains, list(map(len, found))))
    return HeaderScores(keys, scores.astype(np.float32), np.zeros(len(keys)))


def join_headers(headers: Mapping[int, HeaderData], figures: Mapping[int, frozenset[int]]) -> KeptHeaders:
    """Headers, one at least, as arrays.

    Args:
        headers: by their documents' keys.
        figures: numbers of their figures.
    """
    keys = sorted(headers)
    held, terms = [headers[key] for key in keys], [sorted(figures.get(key, ())) for key in keys]
    counts = zip(*((len(h.codes), len(h.embeddings), len(of)) for h, of in zip(held, terms, strict=True)), strict=True)
    tokens, spans, figured = (np.array(count, np.int64) for count in counts)
    return KeptHeaders(
        np.array(keys, np.int64),
        tokens,
        spans,
        figured,
        np.concatenate([h.codes for h in held]),
        np.concatenate([h.scales for h in held]),
        np.concatenate([h.embeddings for h in held]),
        np.array([number for of_header in terms for number in of_header], np.int64),
    )
