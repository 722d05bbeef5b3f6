"""Needles in haystacks, made by program after the tasks of RULER (arXiv 2404.06654), in sentences of our own.

| task | haystack | needles | asked for |
|---|---|---|---|
| single | a text | one locker with its number | its number |
| multi-key | a text | several lockers, each with its number | the number of one |
| multi-value | a text | one locker with several numbers, a sentence each | all of them |
| key-value | lockers with their numbers and nothing else | one of them | its number |
| variable tracking | a text | a crate with its stamp, others that hold the same as the one before | all crates |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from shared_context.config import require
from shared_context.evaluation.questions import Span
from shared_context.model.tokenization import TokenizedText

Task = Literal["single", "multi-key", "multi-value", "key-value", "variable tracking"]
TASKS: tuple[Task, ...] = get_args(Task)

AT_A_DEPTH: tuple[Task, ...] = ("single", "multi-key", "key-value")
"""Tasks with one needle that is asked for, which has a depth; those of the others are spread over the text."""

SEVERAL = 4
"""Lockers beside the one asked for, numbers of a locker, crates that hold the same as the one before."""

FIRST = ("Anselm", "Birgit", "Casper", "Dorothea", "Emeric", "Filippa", "Gustav", "Hedwig", "Ismael", "Jorinde")
LAST = ("Achterberg", "Brandt", "Corvin", "Dalgaard", "Eklund", "Fennimore", "Grieve", "Holloway", "Ingram", "Jessop")
LETTERS = "BCDFGHKLMNPRSTVWXZ"


@dataclass(frozen=True)
class Needles:
    """A haystack with its needles.

    Attributes:
        text: the haystack, needles included.
        question: what is asked.
        values: what a full answer names.
        spans: where the needles that are asked for stand, one for each value.
    """

    text: str
    question: str
    values: tuple[str, ...]
    spans: tuple[Span, ...]


def make_needles(
    task: Task, haystack: str, depth: float, rng: np.random.Generator, tokenize: Callable[[str], TokenizedText]
) -> Needles:
    """A haystack with the needles of a task.

    A needle takes the place of as many tokens as it has. The haystack keeps its length, and all of it but the needle
    stays the same wherever the needle stands.

    Args:
        task: which.
        haystack: a text; key-value makes its own, of about as many tokens.
        depth: where the needle goes, 0 the beginning and 1 the end; of tasks with one needle asked for.
        rng: draws names and numbers.
        tokenize: makes tokens of a text.

    Raises:
        ConfigError: the haystack has no room for the needles.
    """
    names, numbers = _names(rng), _numbers(rng)
    if task == "key-value":
        per_line = len(tokenize(_locker(next(names), next(numbers)) + " "))
        pairs = [(next(names), next(numbers)) for _ in range(max(2, len(tokenize(haystack)) // per_line))]
        asked = round(depth * (len(pairs) - 1))
        lines = [_locker(name, number) for name, number in pairs]
        return _found(" ".join(lines), [lines[asked]], _ask_locker(pairs[asked][0]), [pairs[asked][1]])
    if task == "variable tracking":
        crates, stamp = _crates(rng), next(numbers)
        chain = [next(crates) for _ in range(SEVERAL + 1)]
        needles = [f"Crate {chain[0]} holds what is stamped {stamp}."]
        needles += [f"Crate {b} holds the same as crate {a}." for a, b in zip(chain, chain[1:], strict=False)]
        question = f"Which crates hold what is stamped {stamp}? Name all {len(chain)} of them."
        return _found(_plant(haystack, _spread(needles), tokenize), needles, question, chain)
    name = next(names)
    if task == "multi-value":
        values = [next(numbers) for _ in range(SEVERAL)]
        needles = [_locker(name, number) for number in values]
        question = f"Which numbers open the locker of {name}? Name all {len(values)} of them."
        return _found(_plant(haystack, _spread(needles), tokenize), needles, question, values)
    value = next(numbers)
    planted = [(depth, _locker(name, value))]
    if task == "multi-key":
        others = [_locker(next(names), next(numbers)) for _ in range(SEVERAL)]
        planted += zip(rng.random(SEVERAL).tolist(), others, strict=True)
    return _found(_plant(haystack, planted, tokenize), [planted[0][1]], _ask_locker(name), [value])


def _locker(name: str, number: str) -> str:
    return f"The locker of {name} opens with the number {number}."


def _ask_locker(name: str) -> str:
    return f"Which number opens the locker of {name}?"


def _found(text: str, needles: Sequence[str], question: str, values: Sequence[str]) -> Needles:
    spans = tuple(Span("haystack", text.index(needle), text.index(needle) + len(needle)) for needle in needles)
    return Needles(text, question, tuple(values), spans)


def _spread(needles: Sequence[str]) -> list[tuple[float, str]]:
    """The needles at even distances, in their order."""
    return [((place + 0.5) / len(needles), needle) for place, needle in enumerate(needles)]


def _plant(haystack: str, needles: Sequence[tuple[float, str]], tokenize: Callable[[str], TokenizedText]) -> str:
    """The haystack with each needle, at its depth and behind a sentence, in the place of as many tokens."""
    bounds = tokenize(haystack).bounds
    before_a_word = np.array([haystack[at : at + 1] in ("", " ") for at in bounds.tolist()])
    ends = np.array([match.start() for match in re.finditer(r"(?<=[.!?]) ", haystack)], dtype=np.int64)
    behind_sentences = np.unique(np.append(np.searchsorted(bounds, ends), 0))
    free = np.ones(len(bounds), dtype=bool)
    taken: list[tuple[int, int, str]] = []
    for depth, needle in needles:
        blank, size = f" {needle}", len(tokenize(f" {needle}"))
        starts = behind_sentences[behind_sentences + size < len(bounds)]
        fits = [before_a_word[s + size] and free[s : s + size].all() for s in starts.tolist()]
        starts = starts[np.array(fits, dtype=bool)]
        require(len(starts) > 0, "haystack", f"{len(bounds) - 1} tokens", "has no room for the needles; take more")
        start = int(starts[np.abs(starts - depth * (len(bounds) - 1 - size)).argmin()])
        free[start : start + size] = False
        taken.append((start, start + size, blank if start > 0 else needle))
    for start, end, needle in sorted(taken, reverse=True):
        haystack = haystack[: bounds[start]] + needle + haystack[bounds[end] :]
    return haystack


def _names(rng: np.random.Generator) -> Iterator[str]:
    """Names, none twice."""
    drawn: set[str] = set()
    while True:
        initials = ". ".join(rng.choice(list(LETTERS), 2))
        name = f"{rng.choice(FIRST)} {initials}. {rng.choice(LAST)}"
        if name not in drawn:
            drawn.add(name)
            yield name


def _numbers(rng: np.random.Generator) -> Iterator[str]:
    """Numbers of five digits, none twice; there are more than any haystack needs."""
    drawn: set[int] = set()
    while True:
        number = int(rng.integers(10_000, 100_000))
        if number not in drawn:
            drawn.add(number)
            yield str(number)


def _crates(rng: np.random.Generator) -> Iterator[str]:
    """Names of crates: five consonants, none twice."""
    drawn: set[str] = set()
    while True:
        name = "".join(rng.choice(list(LETTERS), 5))
        if name not in drawn:
            drawn.add(name)
            yield name
