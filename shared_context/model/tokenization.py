"""Documents as tokens, with the exact characters of every token span."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from shared_context.errors import ConfigError, QueryError

CHARACTERS_OF_TOKEN = 64
"""A text of more for each token that is allowed need not be tokenized to know that it is too long."""

SEGMENT_CHARACTERS = 1 << 16
"""Text is tokenized in segments of at most this length, which run in parallel."""

SEGMENTS_TOGETHER = 16
"""Segments whose tokens are held as Python objects at a time: these take thirty times the room of the arrays."""


@dataclass(frozen=True)
class TokenizedText:
    """Token ids of a text and where each token begins in it.

    Attributes:
        ids: int32 [tokens].
        bounds: int64 [tokens + 1]; token i stands for the characters ``bounds[i]`` to ``bounds[i + 1]``. The bounds
            tile the text: they begin with 0, end with its length and never fall, so the texts of adjacent spans join
            up to the text itself. A character that several tokens share belongs to the first of them.
    """

    ids: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def characters(self, start: int, end: int) -> tuple[int, int]:
        """Character span of the tokens ``[start, end)``."""
        return int(self.bounds[start]), int(self.bounds[end])

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        """The smallest token span whose characters cover the characters ``[start, end)``."""
        first = int(np.searchsorted(self.bounds, start, side="right")) - 1
        last = int(np.searchsorted(self.bounds, end, side="left"))
        return first, max(last, first + 1)

    def followed_by(self, other: TokenizedText) -> TokenizedText:
        """This text with another one, tokenized on its own, behind it."""
        return TokenizedText(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.bounds, other.bounds[1:] + self.bounds[-1]]),
        )


def segments(text: str, size: int = SEGMENT_CHARACTERS) -> list[str]:
    """Cut a text where tokenizers do: behind a line's end, else before a space, else anywhere.

    Args:
        text: the text; the segments join up to it.
        size: characters per segment at most.
    """
    pieces, start = [], 0
    while len(text) - start > size:
        end = start + size
        line = text.rfind("\n", start + 1, end)
        space = text.rfind(" ", start + 1, end)
        end = line + 1 if line > 0 else space if space > 0 else end
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def check_text(what: str, text: str) -> None:
    """Refuse text that no encoding can hold.

    Raises:
        ConfigError: it is no text.
        QueryError: it has half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{what} is a {type(text).__name__}; give a text.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise QueryError(
            f"{what} has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}, which no "
            "encoding can hold; decode the text properly or replace it."
        ) from error


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenizedText:
    """Tokenize a document's text.

    Words that look like the model's special tokens are read as ordinary text: a document must not be able to end a
    turn.

    Args:
        tokenizer: a fast tokenizer (it must give offsets).
        text: any text, of any script and line ending.

    Raises:
        QueryError: it has lone surrogates.
    """
    check_text("The text", text)
    encoder = _Encoder.of(tokenizer)
    ids: list[np.ndarray] = []
    bounds = [np.zeros(1, dtype=np.int64)]
    offset = 0
    pieces = segments(text)
    for at in range(0, len(pieces), SEGMENTS_TOGETHER):
        together = pieces[at : at + SEGMENTS_TOGETHER]
        for piece, (piece_ids, spans) in zip(together, encoder.encode(together), strict=True):
            ids.append(piece_ids)
            bounds.append(offset + _ends(spans, len(piece)))
            offset += len(piece)
    joined = np.concatenate(bounds)
    if len(joined) > 1:  # a tokenizer may drop all of the last segment
        joined[-1] = len(text)
    return TokenizedText(np.concatenate(ids), joined)


def _ends(spans: np.ndarray, length: int) -> np.ndarray:
    """Where each token of a text ends, so that the tokens tile it, [tokens].

    Args:
        spans: the characters that the tokenizer says each token came from, [tokens, 2]. They may overlap (several
            tokens for one character) and leave out what the tokenizer drops (spaces, control characters).
        length: characters of the text.
    """
    # A token that continues a character begun by the one before has that character's span; it begins behind it.
    starts = np.maximum(spans[1:, 0], np.maximum.accumulate(spans[:-1, 1]))
    # What is dropped goes with the token before it.
    return np.append(starts, length)[: len(spans)]


@dataclass(frozen=True)
class _Encoder:
    """A copy of a tokenizer's core to which special tokens are ordinary text.

    transformers' own switch for this is a state of the one core that all threads share: a prompt that is rendered
    while a document is tokenized would set it back.

    Attributes:
        core: the copy.
        special: ids that no text may have.
    """

    core: Tokenizer
    special: frozenset[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> _Encoder:
        """The tokenizer's copy, made once."""
        encoder = _ENCODERS.get(tokenizer)
        if encoder is None:
            core = copy.deepcopy(tokenizer.backend_tokenizer)
            core.encode_special_tokens = True
            core.no_truncation()
            core.no_padding()
            special = {id for id, token in core.get_added_tokens_decoder().items() if token.special}
            encoder = cls(core, frozenset(special - {tokenizer.unk_token_id}))
            _ENCODERS[tokenizer] = encoder
        return encoder

    def encode(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text its token ids, int32 [tokens], and the characters they came from, int64 [tokens, 2]."""
        encoded = []
        for text, encoding in zip(texts, self.core.encode_batch(texts, add_special_tokens=False), strict=True):
            ids, spans = encoding.ids, encoding.offsets
            if not self.special.isdisjoint(ids):
                ids, spans = self._spelled(text, ids, spans)
            encoded.append((np.array(ids, dtype=np.int32), np.array(spans, dtype=np.int64).reshape(-1, 2)))
        return encoded

    def _spelled(
        self, text: str, ids: list[int], spans: list[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The same with special tokens spelled letter by letter: to a Unigram model they are words like any other."""
        spelled: list[tuple[int, tuple[int, int]]] = []
        for id, (start, end) in zip(ids, spans, strict=True):
            if id not in self.special:
                spelled.append((id, (start, end)))
                continue
            for at in range(start, end):
                letters = self.core.encode(text[at], add_special_tokens=False).ids
                spelled += [(letter, (at, at + 1)) for letter in letters]
        return [id for id, _ in spelled], [span for _, span in spelled]


_ENCODERS: WeakKeyDictionary[PreTrainedTokenizerBase, _Encoder] = WeakKeyDictionary()
