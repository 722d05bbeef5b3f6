"""What was said of one thing in a conversation: which messages state it alike, and which of them said it last."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from shared_context.store.embedder import Embedder, embed
from shared_context.store.query_parts import SENTENCE, asks_by_its_words

ALIKE = 0.45
"""Share of what the best statement has in common with the question that another one must have in common with both.
Between 0.4 and 0.5 little changed where it was chosen; above, corrections in other words are missed."""

MOST = 4
"""Statements that are shown before all else: one and its corrections, and not the whole budget."""

STATEMENT_CHARACTERS = 240
"""Sentences that follow one another are one statement up to here."""

MOST_OF_MESSAGE = 8
"""Statements; what a message says behind them is found as in any other text."""

_SCALE = 127
"""A number between -1 and 1 is kept in a byte."""

_POLAR = re.compile(
    r"(?:is|are|was|were|am|do|does|did|has|have|had|can|could|will|would|shall|should|may|might|"
    r"ist|sind|war|hat|habe|haben|kann|können|soll|wird)\b.*[?？؟]\W*$",
    re.IGNORECASE | re.DOTALL,
)
"""How a sentence asks that begins with its verb. One that merely ends in ", can you believe it?" states something."""

_STATES = re.compile(r"(?:when|where|what|how|wann|wenn|wo|was|wie)\b.*[.!。！]\W*$", re.IGNORECASE | re.DOTALL)
"""``When we moved, I changed my number.``"""

_FORMER = re.compile(
    r"\b(?:first|original(?:ly)?|initial(?:ly)?|beginning|before|previous(?:ly)?|former(?:ly)?|old|earlier|used to|"
    r"zuerst|anfangs|am anfang|ursprünglich\w*|früher\w*|vorher\w*|erste[nrs]?|alte[nrs]?)\b",
    re.IGNORECASE,
)
"""How questions are put that ask for what was said first."""


class Statement(NamedTuple):
    """Sentences of a conversation that state something.

    Attributes:
        start, end: its characters.
        embedding: [dimension], of about unit length.
    """

    start: int
    end: int
    embedding: np.ndarray


def as_json(content: str, embedder: Embedder) -> list[list[Any]]:
    """The statements of a message, as they are kept with it; questions are none."""
    spans: list[tuple[int, int]] = []
    before = 0
    for found in SENTENCE.finditer(content):
        sentence = found.group().strip()
        if not sentence or _asks(sentence):
            continue
        start = content.index(sentence, found.start())
        end = start + min(len(sentence), STATEMENT_CHARACTERS)
        if spans and end - spans[-1][0] <= STATEMENT_CHARACTERS and before == found.start():
            spans[-1] = spans[-1][0], end
        else:
            spans.append((start, end))
        before = found.end()
    spans = spans[:MOST_OF_MESSAGE]
    if not spans:
        return []
    rows = embed(embedder, [content[slice(*span)] for span in spans])
    kept = np.rint(rows * _SCALE).clip(-_SCALE, _SCALE).astype(np.int8)
    return [[*span, b64encode(row.tobytes()).decode()] for span, row in zip(spans, kept, strict=True)]


def from_json(kept: Sequence[Sequence[Any]], offset: int) -> list[Statement]:
    """The statements that :func:`as_json` made of a message, whose content begins at a character of the conversation.

    Raises:
        ValueError: they are none.
    """
    return [
        Statement(offset + start, offset + end, np.frombuffer(b64decode(row), np.int8).astype(np.float32) / _SCALE)
        for start, end, row in kept
    ]


def _asks(sentence: str) -> bool:
    by_words = asks_by_its_words(sentence) and not _STATES.match(sentence)
    return by_words or bool(_POLAR.match(sentence))


def about(question: str, asked: np.ndarray, statements: Sequence[Statement]) -> list[Statement]:
    """The statements about what a question asks that are shown before all else, in that order.

    The newest comes first and then that which is most like the question, unless that asks for what was said first:
    then the oldest does. A correction is often nearer to what it corrects than to the question, so that both count
    half, and so do the corrections that were found for what corrects them.

    Args:
        question: as it was put.
        asked: embeddings of what it asks, [parts, dimension].
        statements: of the conversation, in its order.
    """
    if not statements:
        return []
    said = np.stack([statement.embedding for statement in statements])
    likeness = (said @ asked.T).max(axis=1)
    best = int(likeness.argmax())
    least = ALIKE * float(likeness[best])
    alike = likeness / 2 + said @ said[best] / 2
    nearest = [best, *(int(at) for at in np.argsort(-alike)[:MOST] if alike[at] >= least)]
    alike = np.maximum(alike, likeness / 2 + (said @ said[nearest].T).max(axis=1) / 2)
    found = [int(at) for at in np.flatnonzero(alike >= least) if at != best]
    former = bool(_FORMER.search(question))
    in_turn = sorted([*found, best], reverse=not former)
    order = dict.fromkeys([in_turn[0], best, *in_turn])
    return [statements[at] for at in order][:MOST]
