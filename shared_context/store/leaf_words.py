"""What the leaves of a document are found by: words, those across an edge in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared_context.model.tokenization import TokenizedText
from shared_context.store.words import language_of, words

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
        starts = (tokens.bounds[: len(tokens) : leaf_size] + len(before)).tolist()
        found: list[set[str]] = [set() for _ in starts]
        edges = [*starts[1:], len(before) + len(text) + 1]
        leaf = 0
        for start, end, terms in words(before + text, language):
            if end <= len(before):
                continue
            while edges[leaf] <= start:
                leaf += 1
            found[leaf] |= terms
            beyond = leaf + 1
            while beyond < len(found) and edges[beyond - 1] < end:
                found[beyond] |= terms
                beyond += 1
        # Sorted, so that the same text always gives the same row.
        return cls(language, leaf_size, [" ".join(sorted(terms)) for terms in found])

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
            found += cls.of(
                text[start:stop], own, leaf_size, language, (before + text[:start])[-BEFORE_CHARACTERS:]
            ).terms
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
