"""Duplicates: a text that was chosen is not chosen again, and what is nearly the same comes after what is new."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_MONTHS = (
    "jan(?:uary|uar)?|feb(?:ruary|ruar)?|mar(?:ch)?|märz|apr(?:il)?|may|mai|june?|juni|july?|juli|aug(?:ust)?|"
    "sept?(?:ember)?|o[ck]t(?:ober)?|nov(?:ember)?|de[cz](?:ember)?"
)
_DATE = re.compile(
    r"\b\d{4}-\d{2}-\d{2}\b(?![T ]\d{2}:)|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b"
    rf"|\b\d{{1,2}}(?:st|nd|rd|th|\.)? (?:{_MONTHS})\b\.?,?(?: \d{{4}})?"
    rf"|\b(?:{_MONTHS})\.? \d{{1,2}}(?:st|nd|rd|th)?\b(?:,? \d{{4}})?|\b(?:{_MONTHS})\.? \d{{4}}\b",
    re.IGNORECASE,
)
"""Dates, but not those with a time of day: these are what tells the lines of a log apart."""
_WORD = re.compile(r"\w+")

NEARLY = 0.5
"""Where no more than this share of a text is new, it is nearly the same as what was said."""

TOGETHER = 3
"""Words that are compared together: texts of one subject have words in common, but not in one order."""


class Novelty(NamedTuple):
    """What is new in a text.

    Attributes:
        share: of what it says, between 0 and 1; 0 where nothing is, dates aside.
        repeated: whether it has been said before, word for word.
        twin: number of the text that says most of it; None where all is new.
    """

    share: float
    repeated: bool
    twin: int | None


class Said:
    """Texts that were chosen; tells how much another one adds to them."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, ...], int] = {}
        self._words: set[str] = set()
        self._count = 0

    def add(self, text: str) -> int:
        """Take in a text; returns its number, counted from 0."""
        for form in _forms(text):
            self._words |= set(form)
            for run in _runs(form):
                self._owners.setdefault(run, self._count)
        self._count += 1
        return self._count - 1

    def novelty(self, text: str) -> Novelty:
        """What is new in a text.

        Another date is next to nothing new, another number or name makes all of a text new: reports that are alike but
        for these say different things.
        """
        exact, dateless = _forms(text)
        owners = Counter(self._owners[run] for run in _runs(dateless) if run in self._owners)
        if not owners:
            return Novelty(1.0, False, None)
        twin = owners.most_common(1)[0][0]
        told = _DATE.sub(" ", text)
        names = (word for word in _WORD.findall(told) if word[0].isupper() or any(map(str.isdigit, word)))
        if any(name.casefold() not in self._words for name in names):
            return Novelty(1.0, False, twin)
        runs = list(_runs(dateless))
        new = sum(run not in self._owners for run in runs)
        repeated = new == 0 and all(run in self._owners for run in _runs(exact))
        return Novelty(new / len(runs), repeated, twin)


def _forms(text: str) -> Iterator[list[str]]:
    """The words of a text as they are, and with all dates alike."""
    for form in (text, _DATE.sub(" 0 ", text)):
        yield [word.casefold() for word in _WORD.findall(form)]


def _runs(words: list[str]) -> Iterable[tuple[str, ...]]:
    """Words that stand together, all of them where there are few."""
    return (tuple(words[at : at + TOGETHER]) for at in range(max(1, len(words) - TOGETHER + 1)))
