"""Duplicates: a text that was chosen is not chosen again, and what is nearly the same comes after what is new."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

_MONTHS = (
    "jan(?:uary|uar)?|feb(?:ruary|ruar)?|mar(?:ch)?|märz|apr(?:il)?|may|mai|june?|juni|july?|juli|aug(?:ust)?|"
    "sept?(?:ember)?|o[ck]t(?:ober)?|nov(?:ember)?|de[cz](?:ember)?"
)
_DATE = (
    r"\b\d{4}-\d{2}-\d{2}\b(?![T ]\d{2}:)|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b"
    rf"|\b\d{{1,2}}(?:st|nd|rd|th|\.)? (?:{_MONTHS})\b\.?,?(?: \d{{4}})?"
    rf"|\b(?:{_MONTHS})\.? \d{{1,2}}(?:st|nd|rd|th)?\b(?:,? \d{{4}})?|\b(?:{_MONTHS})\.? \d{{4}}\b"
)
"""Dates, but not those with a time of day: these are what tells the lines of a log apart."""
_STAMPED = (
    r"\b(?:updated|modified|revised|edited|printed|generated|exported|retrieved|accessed|saved|aktualisiert|gedruckt|"
    r"stand)(?: on| at| am| um| vom)?:? *"
)
_TIME = r"(?: (?:at|um))? ?\d{1,2}:\d{2}(?::\d{2})?(?: ?[ap]m)?"
_NAMES = r"[A-ZÀ-Ý][^\W\d_]*(?:[ .'’-]+[A-ZÀ-Ý]\w*){0,3}"
_MARK = re.compile(
    rf"(?i:{_STAMPED}(?:(?:{_DATE}),?(?:{_TIME})?|{_TIME}))(?: by {_NAMES})?"
    rf"|(?i:\b(?:updated|modified|revised|edited|maintained)) by:? {_NAMES}"
    r"|(?i:\b(?:page|seite) \d+(?: ?(?:of|von|/) ?\d+)?)"
    r"|(?i:\b(?:version|revision|edition|draft|copy|fassung):? v?\d[\w.]*)"
    rf"|^[> \t]*(?i:dear|hi|hello|hey|liebe[rs]?|hallo|guten tag) {_NAMES}(?=,|\n)"
    r"|^[> \t]*(?:From|To|Cc|Date|Sent|Von|An|Datum|Gesendet): .*$"
    r"|^[> \t]*(?:On|Am) .{1,80}(?:wrote|schrieb.{0,40}):[ \t]*$"
    rf"|(?i:{_DATE})",
    re.MULTILINE,
)
"""What tells copies of a text apart and says nothing by itself: a date, a page's number, a greeting, a mail's head."""
_MARKUP = re.compile(r"</?[A-Za-z][^<>]{0,80}>")
_WORD = re.compile(r"\w+")

NEARLY = 0.5
"""Where no more than this share of a text is new, it is nearly the same as what was said."""

TOGETHER = 3
"""Words that are compared together: texts of one subject have words in common, but not in one order."""

FEW = 3
"""So many words more or less may be what a statement is turned into its opposite by."""

_NEGATIONS = frozenset(
    word
    for of_language in (
        "not no never without neither nor none nothing nobody cannot t except only",
        "nicht kein keine keinen keiner keines nie ohne niemand nichts nur",
        "ne pas jamais sans aucun aucune sin nunca ningún ninguna non senza mai não sem nem",
        "niet geen zonder inte ikke ingen utan uden не нет без ни никогда لا لم لن ليس غير",
    )
    for word in of_language.split()
)
"""What a statement is denied or narrowed by, where one text has it and the other has not."""


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
        self._texts: list[list[str]] = []
        self._formed: dict[str, tuple[list[str], list[str]]] = {}

    def add(self, text: str) -> int:
        """Take in a text; returns its number, counted from 0."""
        exact, unmarked = self._forms(text)
        for form in exact, unmarked:
            self._words |= set(form)
            for run in _runs(form):
                self._owners.setdefault(run, len(self._texts))
        self._texts.append(unmarked)
        return len(self._texts) - 1

    def novelty(self, text: str) -> Novelty:
        """What is new in a text.

        Another date, page number or greeting is next to nothing new. Another number or name makes all of a text new,
        and so does another word within what was said: reports that are alike but for these say different things, and
        a sentence with a "not" in it says the opposite.
        """
        exact, unmarked = self._forms(text)
        runs = list(_runs(unmarked))
        known = [run in self._owners for run in runs]
        owners = Counter(self._owners[run] for run, there in zip(runs, known, strict=True) if there)
        if not owners:
            return Novelty(1.0, False, None)
        twin = owners.most_common(1)[0][0]
        told = _MARK.sub(" ", text)
        names = (word for word in _WORD.findall(told) if word[0].isupper() or any(map(str.isdigit, word)))
        if any(name.casefold() not in self._words for name in names) or self._differs(unmarked, twin):
            return Novelty(1.0, False, twin)
        repeated = all(known) and all(run in self._owners for run in _runs(exact))
        return Novelty(known.count(False) / len(known), repeated, twin)

    def _forms(self, text: str) -> tuple[list[str], list[str]]:
        """The words of a text as they are, and with all marks of copies alike."""
        if text not in self._formed:
            plain = _MARKUP.sub("", text)
            marked = _MARK.sub(f" {_MARKED} ", plain)
            exact, unmarked = ([word.casefold() for word in _WORD.findall(form)] for form in (plain, marked))
            self._formed[text] = exact, unmarked
        return self._formed[text]

    def _differs(self, words: list[str], twin: int) -> bool:
        """Whether a text says something else within what its twin says: another word, or a "not" more or less."""
        said = self._texts[twin]
        changes = SequenceMatcher(None, said, words, autojunk=False).get_opcodes()
        for number, (kind, first, last, start, end) in enumerate(changes):
            others, left_out = words[start:end], said[first:last]
            if kind == "equal":
                continue
            # At an edge the two may only have been cut at other places.
            sides = [side for side in (number - 1, number + 1) if 0 <= side < len(changes)]
            inside = len(sides) == 2 and all(_holds(changes, side) for side in sides)
            few = len(others) <= FEW and len(left_out) <= FEW
            if inside and any(word != _MARKED for word in others):
                return True
            if few and not _NEGATIONS.isdisjoint({*others} ^ {*left_out}):
                return True
        return False


def _holds(changes: Sequence[tuple[str, int, int, int, int]], side: int) -> bool:
    """Whether what two texts have in common beside a change is more than a word by chance."""
    _, first, last, *_ = changes[side]
    return last - first > 1 or side in (0, len(changes) - 1)


_MARKED = "0"
"""Stands for every mark of a copy."""


def _runs(words: list[str]) -> Iterable[tuple[str, ...]]:
    """Words that stand together, all of them where there are few."""
    return (tuple(words[at : at + TOGETHER]) for at in range(max(1, len(words) - TOGETHER + 1)))
