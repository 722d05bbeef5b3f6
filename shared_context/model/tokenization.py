"""Documents as tokens, with the exact characters of every token span."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

SEGMENT_CHARACTERS = 1 << 16
"""Text is tokenized in segments of at most this length, which run in parallel and bound the memory."""


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


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenizedText:
    """Tokenize a document's text.

    Words that look like the model's special tokens are read as ordinary text: a document must not be able to end a
    turn.

    Args:
        tokenizer: a fast tokenizer (it must give offsets).
        text: any text, of any script and line ending.
    """
    ids: list[np.ndarray] = []
    bounds = [np.zeros(1, dtype=np.int64)]
    offset = 0
    pieces = segments(text)
    encoded = tokenizer(
        pieces,
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        split_special_tokens=True,
        truncation=False,
        verbose=False,
    )
    for piece, piece_ids, offsets in zip(pieces, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        spans = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        # A token that continues a character begun by the one before has that character's span; it begins behind it.
        ends_so_far = np.maximum.accumulate(np.concatenate([[0], spans[:-1, 1]])) if len(spans) else spans[:, 0]
        starts = np.maximum(spans[:, 0], ends_so_far)
        # What a tokenizer drops (spaces, control characters) goes with the token before it.
        ids.append(np.array(piece_ids, dtype=np.int32))
        bounds.append(offset + np.append(starts[1:], len(piece)) if len(spans) else np.zeros(0, dtype=np.int64))
        offset += len(piece)
    joined = np.concatenate(bounds)
    joined[-1] = len(text)
    return TokenizedText(np.concatenate(ids), joined)
