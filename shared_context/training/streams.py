"""Training examples without end: what is made of rows and long texts, and in which order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from shared_context.config import require
from shared_context.errors import TrainingDataError
from shared_context.training.data import Row
from shared_context.training.examples import LONG_TEXT, PASSAGE, Example, ExampleMaker

PASSAGE_WORDS = (40, 200)
"""Words of a passage of a long text, at least and at most."""

PASSAGES_PER_TEXT = 16
"""Passages drawn from a long text each time it is read."""

CONTINUED_WORDS = 48
"""Words that follow a passage of a long text, as running text."""


@dataclass(frozen=True)
class Tasks:
    """What is made of rows beside their questions; each a share of the passages it is made of.

    Args:
        quotes: passages that are quoted from: how does the text go on?
        clozes: passages of which a sentence is shown with a gap: what is missing?
        key_values: rows that are followed by a made-up passage of facts, one of which is asked for.
        needles: passages that are shown with made-up facts in them, one of which is asked for.
        tracking: rows that are followed by made-up comparisons, which have to be followed from one to the next.
        texts: rows that are followed by a passage of a long text, where there are any, with these tasks of its own.
        continuations: passages of long texts that are followed by their running text.
    """

    quotes: float = 1.0
    clozes: float = 0.0
    key_values: float = 0.1
    needles: float = 0.0
    tracking: float = 0.0
    texts: float = 1.0
    continuations: float = 0.25

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            require(0 <= share <= 1, name, share, "must be a share between 0 and 1")


def question_stream(
    rows: Callable[[], Iterable[Row]],
    maker: ExampleMaker,
    tasks: Tasks,
    *,
    seed: int,
    texts: Callable[[], Iterable[Row]] | None = None,
) -> Iterator[Example]:
    """Examples of questions and answers without end, in an order of its own for each pass over the rows.

    Args:
        rows: gives the rows anew; they are kept in a shuffle buffer, not all of them.
        maker: makes examples of them.
        tasks: what is made of them beside their questions.
        seed: of order and tasks.
        texts: gives rows of long texts anew, of which passages are drawn.

    Raises:
        TrainingDataError: there are no rows or no long texts, or one is broken.
    """
    rng = random.Random(seed)
    passages = None if texts is None else _passages(texts, rng)

    def wanted(share: float) -> bool:
        # Where none are wanted nothing is drawn, so that runs repeat those of before there was such a task.
        return share > 0 and rng.random() < share

    def made_of(passage: str) -> Iterator[Example]:
        if rng.random() < tasks.quotes and (quote := maker.quoting(passage, rng)) is not None:
            yield quote
        if wanted(tasks.clozes) and (cloze := maker.cloze(passage, rng)) is not None:
            yield cloze
        if wanted(tasks.needles):
            yield maker.needle(passage, rng)

    while True:
        empty = True
        for row in shuffled(rows(), rng):
            empty = False
            yield maker.answering(row)
            yield from made_of(row.text(*PASSAGE))
            if rng.random() < tasks.key_values:
                yield maker.key_values(rng)
            if wanted(tasks.tracking):
                yield maker.tracking(rng)
            if passages is not None and rng.random() < tasks.texts:
                passage, following = next(passages)
                yield from made_of(passage)
                if rng.random() < tasks.continuations:
                    yield maker.continuing(passage, following)
        if empty:
            raise TrainingDataError("There is nothing to train on: the data holds no rows.")


def _passages(texts: Callable[[], Iterable[Row]], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Passages of long texts without end, each with the words that follow it; their line breaks are left out."""

    def drawn(row: Row) -> Iterator[tuple[str, str]]:
        words = row.text(*LONG_TEXT).split()
        for _ in range(PASSAGES_PER_TEXT):
            size = rng.randint(*PASSAGE_WORDS)
            if len(words) >= size + CONTINUED_WORDS:
                start = rng.randrange(len(words) - size - CONTINUED_WORDS + 1)
                end = start + size
                yield " ".join(words[start:end]), " " + " ".join(words[end : end + CONTINUED_WORDS])

    while True:
        empty = True
        for passage in shuffled((passage for row in texts() for passage in drawn(row)), rng, size=1024):
            empty = False
            yield passage
        if empty:
            raise TrainingDataError(
                f"No long text has {PASSAGE_WORDS[0] + CONTINUED_WORDS} words or more to draw passages from."
            )


def running_stream(
    rows: Callable[[], Iterable[Row]], maker: ExampleMaker, *, seed: int, running_tokens: int
) -> Iterator[Example]:
    """Examples of running text behind a long context without end; arguments as in :func:`question_stream`.

    Raises:
        TrainingDataError: no text is long enough, or a row is broken.
    """
    rng = random.Random(seed)
    while True:
        empty = True
        stretches = (e for row in rows() for e in maker.running(row.text(*LONG_TEXT), running_tokens))
        for example in shuffled(stretches, rng, size=64):
            empty = False
            yield example
        if empty:
            raise TrainingDataError("There is nothing to train on: no text is as long as context and running text.")


def shuffled(items: Iterable, rng: random.Random, size: int = 4096) -> Iterator:
    """The items in a random order, as far as a buffer of ``size`` of them can mix."""
    buffer: list = []
    for item in items:
        buffer.append(item)
        if len(buffer) >= size:
            place = rng.randrange(size)
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            yield buffer.pop()
    rng.shuffle(buffer)
    yield from buffer


def other_contexts(examples: Sequence[Example]) -> list[Example]:
    """The same questions, each over a wrong context of exactly as many tokens: the control of every figure.

    It is made of the contexts of the examples that follow, without those that are the same as the right one.
    """
    wrong = []
    for number, example in enumerate(examples):
        others = dict.fromkeys(e.context for e in (*examples[number + 1 :], *examples[:number]))
        behind: list[int] = []
        for context in others:
            if context != example.context and len(behind) < len(example.context):
                behind += context
        if len(behind) < len(example.context):
            raise TrainingDataError("A wrong context of the same length needs more examples than these.")
        wrong.append(Example(tuple(behind[: len(example.context)]), example.prompt, example.answer))
    return wrong
