"""The headers of all documents side by side in memory: how much of a query each of them says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import blake2b
from math import log

import numpy as np
import torch

from shared_context.store.mapped_rows import MappedRows
from shared_context.store.node_data import HeaderData
from shared_context.store.words import LONGEST_WORD, WORD, terms_of

SAME_WORD = 0.6
"""Similarity of two token codes from which on one may say what the other does; below, everything is a little alike."""

COMPARED_TOGETHER = 1 << 13
"""Tokens whose codes are unpacked at once, to what about fits a core's cache."""

_TOKENS, _SPANS, _FIGURES = ("header_codes", "header_scales"), ("header_embeddings",), ("figures",)
"""What a file has of headers, by what the rows are."""


@dataclass(frozen=True)
class HeaderScores:
    """What headers count for a query.

    Attributes:
        keys: of documents that have a header, rising, int64 [documents].
        scores: of each, float32 [documents].
    """

    keys: np.ndarray
    scores: np.ndarray

    def of(self, documents: np.ndarray) -> np.ndarray:
        """The scores of other documents by their keys; 0 where they have none here, float32 [documents]."""
        if not len(self.keys):
            return np.zeros(len(documents), np.float32)
        places = np.searchsorted(self.keys, documents).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == documents, self.scores[places], 0).astype(np.float32)


@dataclass(frozen=True)
class SaidWords:
    """How far headers say each word of a query; only those are listed that say one, and mostly these are few.

    Attributes:
        keys: of their documents, rising, int64 [headers].
        shares: how far each says each word, 0 to 1, float32 [headers, words].
    """

    keys: np.ndarray
    shares: np.ndarray

    @classmethod
    def joined(cls, several: Sequence[SaidWords]) -> SaidWords:
        """Those of several, at least one, one behind the other."""
        return cls(*(np.concatenate([getattr(of, field.name) for of in several]) for field in fields(cls)))

    def part(self, some: np.ndarray) -> SaidWords:
        """Some of them, by their places or a mask."""
        return SaidWords(self.keys[some], self.shares[some])

    def weighted(self, weights: torch.Tensor, headers: int) -> HeaderScores:
        """The words that each header says, summed.

        Args:
            weights: the most that each of them counts, [words]. One that most headers have counts less still.
            headers: how many there are, those included that say none.
        """
        rare = np.log((headers + 1) / (self.shares.sum(axis=0) + 0.5)).clip(min=0)
        return HeaderScores(self.keys, self.shares @ np.minimum(rare, weights.numpy()).astype(np.float32))


@dataclass(frozen=True)
class KeptHeaders:
    """Headers as arrays, in the order of their documents' keys; those of a file are mapped.

    Attributes:
        keys: of their documents, rising, int64 [headers].
        tokens, spans, terms: how many rows each header has below, int64 [headers]; one token and span at least.
        codes, scales: of the tokens, int8 [all tokens, code_size] and float16.
        embeddings: of the spans, float32 [all spans, dimension].
        figures: :func:`figure_number` of the numbers and identifiers, int64 [all terms].
        mapped: checks what is read of them; None where nothing is to be checked.
    """

    keys: np.ndarray
    tokens: np.ndarray
    spans: np.ndarray
    terms: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    embeddings: np.ndarray
    figures: np.ndarray
    mapped: MappedRows | None = None

    @cached_property
    def first(self) -> dict[str, np.ndarray]:
        """The first row of each header, by what the rows are, int64 [headers]."""
        counts = {"tokens": self.tokens, "spans": self.spans, "terms": self.terms}
        return {name: np.cumsum(of) - of for name, of in counts.items()}

    def header(self, place: int) -> tuple[HeaderData, frozenset[int]]:
        """A header with the numbers of its figures, copied."""
        tokens, spans, terms = found = [
            slice(int(first[place]), int(first[place] + counts[place]))
            for first, counts in zip(self.first.values(), (self.tokens, self.spans, self.terms), strict=True)
        ]
        for kinds, of in zip((_TOKENS, _SPANS, _FIGURES), found, strict=True):
            self._check(*kinds, rows=np.arange(of.start, of.stop))
        rows = self.codes[tokens].copy(), self.scales[tokens].copy(), self.embeddings[spans].copy()
        return HeaderData(*rows), frozenset(self.figures[terms].tolist())

    def said(self, codes: torch.Tensor, there: np.ndarray) -> SaidWords:
        """What :meth:`HeaderIndex.said` says of those that are ``there``, bool [headers]."""
        self._check(*_TOKENS)
        edges, asked = np.append(self.first["tokens"], len(self.codes)), codes.numpy().T
        found = [SaidWords(self.keys[:0], np.zeros((0, len(codes)), np.float32))]
        # Fresh memory costs a page fault every 4 KB, which took longer than what is done in it.
        room = max(min(COMPARED_TOGETHER, len(self.codes)), int(self.tokens.max(initial=0)))
        unpacked, similarity = (np.empty((room, size), np.float32) for size in asked.shape)
        first = 0
        while first < len(self.keys):
            behind = max(first + 1, int(np.searchsorted(edges, edges[first] + COMPARED_TOGETHER, side="right")) - 1)
            tokens = slice(int(edges[first]), int(edges[behind]))
            count = tokens.stop - tokens.start
            unpacked[:count] = self.codes[tokens]
            similar = np.matmul(unpacked[:count], asked, out=similarity[:count])
            similar *= self.scales[tokens].astype(np.float32)[:, None]
            best = maxima(similar, edges[first:behind] - tokens.start, self.tokens[first:behind])
            rows = np.flatnonzero((best > SAME_WORD).any(axis=1) & there[first:behind])
            shares = ((best[rows] - SAME_WORD) / (1 - SAME_WORD)).clip(0, 1)
            found.append(SaidWords(self.keys[first + rows], shares))
            first = behind
        return SaidWords.joined(found)

    def near(self, embedding: torch.Tensor, places: np.ndarray) -> HeaderScores:
        """What :meth:`HeaderIndex.near` says of some of these."""
        if not len(places):
            return HeaderScores(self.keys[:0], np.zeros(0, np.float32))
        spans = self.spans[places]
        begin = np.cumsum(spans) - spans
        rows = np.repeat(self.first["spans"][places] - begin, spans) + np.arange(spans.sum())
        self._check(*_SPANS, rows=rows)
        found = self.embeddings if len(rows) == len(self.embeddings) else self.embeddings[rows]
        cosines = np.maximum.reduceat(found @ embedding.numpy(), begin).clip(min=0)
        return HeaderScores(self.keys[places], cosines)

    def _check(self, *kinds: str, rows: np.ndarray | None = None) -> None:
        if self.mapped is not None:
            self.mapped.check(*kinds, rows=rows)

    def having(self, term: str) -> np.ndarray:
        """Places of the headers that have a number or identifier."""
        self._check(*_FIGURES)
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

    def scores(self, codes: torch.Tensor, weights: torch.Tensor) -> HeaderScores:
        """The words of a query that each header says, weighted and summed; only of those that say one.

        Args:
            codes: of the query's tokens, float32 [words, code_size].
            weights: the most that each of them counts, [words]. One that most headers have counts less still.
        """
        return self.said(codes).weighted(weights, len(self))

    def said(self, codes: torch.Tensor) -> SaidWords:
        """What :meth:`scores` are made of; codes as there."""
        found = [SaidWords(np.zeros(0, np.int64), np.zeros((0, len(codes)), np.float32))]
        if self._kept is not None:
            found.append(self._kept.said(codes, self._there))
        if self._headers:
            found.append(self._others().said(codes, np.ones(len(self._headers), bool)))
        both = SaidWords.joined(found)
        return both.part(np.argsort(both.keys, kind="stable")) if self._headers else both

    def near(self, embedding: torch.Tensor, documents: np.ndarray | None = None) -> HeaderScores:
        """The cosine of each header's embedding with that of a query, 0 where it is negative.

        Args:
            embedding: the query's, [dimension].
            documents: keys of those whose headers are compared, rising; None compares all. Others cost nothing.
        """
        found = [HeaderScores(np.zeros(0, np.int64), np.zeros(0, np.float32))]
        if self._kept is not None:
            places = _places(self._kept.keys, documents)
            found.append(self._kept.near(embedding, places[self._there[places]]))
        if self._headers:
            others = self._others()
            found.append(others.near(embedding, _places(others.keys, documents)))
        both = HeaderScores(*(np.concatenate([getattr(of, field.name) for of in found]) for field in fields(found[0])))
        order = np.argsort(both.keys, kind="stable")
        return HeaderScores(both.keys[order], both.scores[order])

    def _others(self) -> KeptHeaders:
        """Those that no file holds, one at least."""
        if self._joined is None:
            self._joined = join_headers(self._headers, {})
        return self._joined


def maxima(values: np.ndarray, first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The maximum over consecutive rows, for each of several runs of them, [runs, columns].

    What ``np.maximum.reduceat`` gives, in as many passes as the longest run's length has bits: a run is two windows of
    one length, a power of two, that may overlap.

    Args:
        values: [rows, columns].
        first: of each run its first row, int64 [runs].
        counts: rows of each, one at least, int64 [runs].
    """
    found = np.empty((len(first), values.shape[1]), values.dtype)
    power = np.frexp(counts)[1] - 1
    width = 1
    for of_width in range(int(power.max()) + 1):
        if of_width:
            values, width = np.maximum(values[:-width], values[width:]), 2 * width
        runs = np.flatnonzero(power == of_width)
        begin = first[runs]
        found[runs] = np.maximum(values[begin], values[begin + counts[runs] - width])
    return found


def _places(keys: np.ndarray, some: np.ndarray | None) -> np.ndarray:
    """Where those of some keys are that are among rising ``keys``; None means all of these."""
    if some is None:
        return np.arange(len(keys))
    places = np.searchsorted(keys, some).clip(max=len(keys) - 1)
    return places[keys[places] == some]


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
    """How rare the numbers and identifiers of a query are that headers have; None where none has one.

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
    return HeaderScores(keys, scores.astype(np.float32))


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
