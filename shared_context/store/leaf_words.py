"""What the leaves of a document are found by: words, those across an edge in both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

from shared_context.model.tokenization import TokenizedText
from shared_context.store.words import WORD, language_of, terms_of

BEFORE_CHARACTERS = 128
"""Of the chunk before, which a word that lies across the edge may begin in. What stands before a chunk never changes,
whatever is added behind it, so that the same words are found again when they have to be forgotten."""


@dataclass(frozen=True)
class LeafWords:
    """What the leaves of a document are found by.

    Attributes:
        language: that the text was taken for.
        leaf_size: tokens of a leaf.
        terms: of each leaf, its terms with blanks between them.
    """

    language: str
    leaf_size: int
    terms: Sequence[str]

    @classmethod
    def of(
        cls, text: str, tokens: TokenizedText, leaf_size: int, language: str | None = None, before: str = ""
    ) -> LeafWords:
        """The words of a text; one that lies on the edge of two leaves belongs to both.

        Args:
            language: None finds it out.
            before: what stands before the text. A word that begins there and goes on in the text belongs to its first
                leaf.
        """
        language = language or language_of(text)
        whole, starts = before + text, tokens.bounds[: len(tokens) : leaf_size] + len(before)
        edges = [len(before), *starts[1:].tolist(), len(whole)]
        found: list[list[str]] = [[] for _ in edges]  # the first are those that end before the text
        at = 0
        for place, edge in enumerate(edges):
            own = WORD.findall(whole, at, edge) if at < edge else []
            if not own:
                continue
            # Only the last word of a leaf may go on behind its edge.
            last = WORD.match(whole, whole.rindex(own[-1], at, edge))
            assert last is not None  # a part of it is a word
            found[place] += own[:-1]
            at, beyond = last.end(), place
            found[place].append(last[0])
            while edges[beyond] < at:
                beyond += 1
                found[beyond].append(last[0])
        # Sorted, so that the same text always gives the same row.
        return cls(language, leaf_size, [" ".join(sorted(_terms(of_leaf, language))) for of_leaf in found[1:]])

    @classmethod
    def by_chunk(
        cls,
        text: str,
        tokens: TokenizedText,
        leaf_size: int,
        chunk_size: int,
        language: str | None = None,
        before: str = "",
    ) -> LeafWords:
        """The same chunk by chunk, so that no word depends on what follows its chunk; arguments as in :meth:`of`."""
        language = language or language_of(text)
        found: list[str] = []
        for first in range(0, len(tokens), chunk_size):
            end = min(first + chunk_size, len(tokens))
            start, stop = tokens.characters(first, end)
            own = TokenizedText(tokens.ids[first:end], tokens.bounds[first : end + 1] - start)
            near = text[max(0, start - BEFORE_CHARACTERS) : start]
            found += cls.of(text[start:stop], own, leaf_size, language, (before + near)[-BEFORE_CHARACTERS:]).terms
        return cls(language, leaf_size, found)

    @classmethod
    def of_chunks(cls, chunks: Sequence[tuple[str, TokenizedText]], leaf_size: int) -> list[LeafWords]:
        """Those of each chunk of a document.

        Args:
            chunks: text and tokens of each, in their order.
            leaf_size: tokens of a leaf.
        """
        language, before, found = language_of("".join(text for text, _ in chunks)), "", []
        for text, tokens in chunks:
            found.append(cls.of(text, tokens, leaf_size, language, before))
            before = (before + text)[-BEFORE_CHARACTERS:]
        return found

    def leaves(self, first: int, end: int) -> LeafWords:
        """Those of some leaves alone."""
        return LeafWords(self.language, self.leaf_size, self.terms[first:end])


def _terms(found: Iterable[str], language: str) -> frozenset[str]:
    """The terms of words."""
    return frozenset().union(*map(terms_of, found, repeat(language)))
