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
_MARKS = (
    rf"(?i:{_STAMPED}(?:(?:{_DATE}),?(?:{_TIME})?|{_TIME}))(?: by {_NAMES})?"
    rf"|(?i:\b(?:updated|modified|revised|edited|maintained)) by:? {_NAMES}"
    r"|(?i:\b(?:page|seite)(?: no\.| nr\.)? \d+(?: ?(?:of|von|/) ?\d+)?)"
    r"|(?i:\b(?:version|revision|edition|draft|copy|fassung):?(?: no\.| nr\.| number| #)? ?v?\d[\w.]*(?: of \d+)?)"
    rf"|^[> \t]*(?i:dear|hi|hello|hey|liebe[rs]?|hallo|guten tag) {_NAMES}(?=,|\n)"
    r"|^[> \t]*(?:From|To|Cc|Date|Sent|Von|An|Datum|Gesendet): .*$"
    r"|^[> \t]*(?:On|Am) .{1,80}(?:wrote|schrieb.{0,40}):[ \t]*$"
    rf"|(?i:{_DATE})"
)
_JAPANESE_MARKS = r"\d{4}年\d{1,2}月(?:\d{1,2}日)?|\d{1,2}月\d{1,2}日|\d{1,4}(?:ページ|頁|枚目|部目)"
_MAY_BE_MARKED = re.compile(r"[\d:]|(?i:\bby\b)|^[> \t]*(?i:dear|hi|hello|hey|liebe|hallo|guten)", re.MULTILINE)
"""What every such mark holds; to look for it takes a fraction of the time."""

_DAYS = (
    "monday|tuesday|wednesday|thursday|friday|saturday|sunday|"
    "montag|dienstag|mittwoch|donnerstag|freitag|samstag|sonnabend|sonntag"
)
_LONG_MONTHS = (
    "january|february|march|april|may|june|july|august|september|october|november|december|"
    "januar|februar|märz|mai|juni|juli|oktober|dezember"
)
_NOTICES = (
    "notice|announcement|reminder|circular|leaflet|flyer|handout|bulletin|newsletter|memo|memorandum|mailing|letter|"
    "sheet|slide|print|printout|copy|edition|aushang|bekanntmachung|mitteilung|hinweis|erinnerung|rundschreiben|"
    "rundbrief|merkblatt|handzettel|flugblatt|blatt|folie|kopie|exemplar|ausfertigung|ausdruck|ausgabe"
)
_PERIOD = rf"(?:(?:{_DAYS}|{_LONG_MONTHS})\b(?: \d{{4}}\b)?(?!,? ?\d))"
"""A day of the week or a month that is written out. In a sentence it may be the very thing that is asked."""
_POSTED = (
    r"(?:(?:last )?(?:updated|revised|printed|posted|put up|published|issued|sent|mailed|distributed|circulated|"
    r"released|displayed)|(?:zuletzt )?(?:aktualisiert|gedruckt|ausgehängt|veröffentlicht|versandt|verteilt|"
    r"ausgegeben)|stand)(?: on| in| at| am| im| vom)?:? "
)
_REFERRED = r"(?:see|read|siehe|cf|vgl|compare|and|or|und|oder|in|on|to|per|under|with|by|from|of)\b"
"""What stands before a notice that another text speaks of."""
_COUNT = r"(?: (?:no|nr|number|nummer)\b\.?| ?#)? ?\d{1,4}(?: ?(?:of|von|out of|/) ?\d{1,4})?\b(?![-./:]?\d)"
_HEADED = 60
"""Characters of a line that begins with its day or month; shorter it is a row of a timetable, and about that day."""
_ABOUT_COPIES = (
    # Where a line or a sentence begins, or in brackets.
    r"(?i:(?:^[>#*_\[( \t]*|(?<=[.!?;:)\]] )|(?<=[(\[]))(?:(?:the|this|our|der|die|das) )?(?:"
    rf"(?:(?!{_REFERRED})\w+ )?(?:{_NOTICES})\b(?:{_COUNT}"
    rf"|,?(?: (?:of|for|from|vom|für|im))? \(?(?:the month of )?{_PERIOD})"
    rf"|{_PERIOD}(?:['’]s)? (?:\w+ )?(?:{_NOTICES})\b|{_POSTED}{_PERIOD}))"
    rf"|(?i:^[>#*_ \t]*{_PERIOD}(?=[.:*_ \t]*$|[.:] [^\n]{{{_HEADED},}}))"
    rf"|(?i:\b(?:{_DAYS}),? (?:the |den |dem )?(?:{_DATE}))"
)
# Every mark begins where a word or a line does; most words are left at their first letter for that.
_MARK = re.compile(rf"(?:\b(?=\w)|^)(?:{_MARKS})|{_JAPANESE_MARKS}", re.MULTILINE)
"""What tells copies of a text apart and says nothing by itself: a date, a page's number, a greeting, a mail's head."""
_MARK_OR_COUNT = re.compile(rf"(?:\b(?=\w)|^)(?:{_ABOUT_COPIES}|{_MARKS})|{_JAPANESE_MARKS}", re.MULTILINE)
"""The same, and a notice's number, day or month."""
_COUNTED = frozenset(f"{_DAYS}|{_LONG_MONTHS}|{_NOTICES}".split("|"))
"""Words of which one is in every such number; to look for them takes next to no time."""
_MARKUP = re.compile(r"</?[A-Za-z][^<>]{0,80}>")
_HYPHEN = re.compile(r"\u00ad|(?<=[^\W\d_])-\r?\n[> \t]*(?=[a-zß-ÿ])")
"""Where a word is parted at a line's end, or may be."""
_WORD = re.compile(r"\w+")

NEARLY = 0.5
"""Where no more than this share of a text is new, it is nearly the same as what was said."""

TOGETHER = 3
"""Words that are compared together: texts of one subject have words in common, but not in one order."""

SOME = 4
"""Of texts that are alike but for names, one in so many of their runs of words is the same, or most words are names."""

PASSAGE = 16
"""Words that stand together and that records of one kind, or lines of a table, do not have in common."""

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
        like: number of the text of which it says nearly the same with another name, number or word; None where there
            is none, or such a name is asked for.
    """

    share: float
    repeated: bool
    twin: int | None
    like: int | None = None


class _Forms(NamedTuple):
    """A text as it is compared.

    Attributes:
        exact: its words.
        unmarked: its words, with all marks of copies alike.
        names: numbers, and words with a capital, which are not part of a mark; those within markup as well.
    """

    exact: list[str]
    unmarked: list[str]
    names: set[str]

    @property
    def nameless(self) -> list[str]:
        """Its words, with all marks and names alike."""
        return [_MARKED if word in self.names else word for word in self.unmarked]

    @classmethod
    def of(cls, text: str) -> _Forms:
        text = _HYPHEN.sub("", text)
        plain = _MARKUP.sub("", text) if "<" in text else text
        exact = _words(plain)
        counted = not _COUNTED.isdisjoint(exact)
        if not counted and not any(map(_MAY_BE_MARKED.search, {plain, text})):
            return cls(exact, exact, _names([text]))
        mark = _MARK_OR_COUNT if counted else _MARK
        pieces = mark.split(plain)
        unmarked = _words(f" {_MARKED} ".join(pieces)) if len(pieces) > 1 else exact
        return cls(exact, unmarked, _names(pieces if plain is text else mark.split(text)))


class Said:
    """Texts that were chosen; tells how much another one adds to them.

    Args:
        asked: what is searched for: what is named there is not the same of something else.
    """

    def __init__(self, asked: Iterable[str] = ()) -> None:
        self._asked = {word for text in asked for word in _words(text)}
        self._owners: dict[tuple[str, ...], int] = {}
        self._nameless: dict[tuple[str, ...], int] = {}
        self._not_yet_nameless: list[tuple[int, _Forms]] = []
        self._words: set[str] = set()
        self._texts: list[list[str]] = []
        self._formed: dict[str, _Forms] = {}

    def add(self, text: str) -> int:
        """Take in a text; returns its number, counted from 0."""
        forms = self._forms(text)
        exact, unmarked, names = forms
        number = len(self._texts)
        for form in (exact,) if unmarked is exact else (exact, unmarked):
            self._words.update(form)
            for run in _runs(form):
                self._owners.setdefault(run, number)
        self._words |= names
        self._not_yet_nameless.append((number, forms))
        self._texts.append(unmarked)
        return number

    def novelty(self, text: str) -> Novelty:
        """What is new in a text.

        Another date, page number or greeting is next to nothing new. Another number or name makes all of a text new,
        and so does another word within what was said: reports that are alike but for these say different things, and
        a sentence with a "not" in it says the opposite.
        """
        forms = self._forms(text)
        exact, unmarked, names = forms
        owners = [self._owners.get(run) for run in _runs(unmarked)]
        known = Counter(owner for owner in owners if owner is not None)
        twin = known.most_common(1)[0][0] if known else None
        if twin is None or not names <= self._words or self._differs(unmarked, twin):
            # Most texts have next to nothing in common, and then this is all that they cost.
            may_be_like = SOME * known.total() >= len(owners) or 2 * len(names) >= len(unmarked)
            return Novelty(1.0, False, twin, self._like(forms) if may_be_like else None)
        new = len(owners) - known.total()
        repeated = not new and (unmarked is exact or all(run in self._owners for run in _runs(exact)))
        return Novelty(new / len(owners), repeated, twin)

    def _forms(self, text: str) -> _Forms:
        if text not in self._formed:
            self._formed[text] = _Forms.of(text)
        return self._formed[text]

    def _like(self, forms: _Forms) -> int | None:
        """Number of the text of which another one says nearly the same, names aside, if none of these is asked for."""
        for number, said in self._not_yet_nameless:
            for run in _runs(said.nameless):
                self._nameless.setdefault(run, number)
        self._not_yet_nameless.clear()
        runs = _runs(forms.nameless)
        told = [self._nameless.get(run) for run in [run for run in runs if set(run) != {_MARKED}] or runs]
        known = Counter(owner for owner in told if owner is not None)
        if not known or len(told) - known.total() > NEARLY * len(told):
            return None
        like = known.most_common(1)[0][0]
        return like if forms.names.difference(self._texts[like]).isdisjoint(self._asked) else None

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


def share_a_passage(one: str, other: str) -> bool:
    """Whether two texts have PASSAGE words in common that stand together, or all words."""
    runs, others = (set(_runs(_words(text), PASSAGE)) for text in (one, other))
    return not runs.isdisjoint(others)


def _holds(changes: Sequence[tuple[str, int, int, int, int]], side: int) -> bool:
    """Whether what two texts have in common beside a change is more than a word by chance."""
    _, first, last, *_ = changes[side]
    return last - first > 1 or side in (0, len(changes) - 1)


_MARKED = "0"
"""Stands for every mark of a copy, and for names where texts are compared without them."""


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _names(texts: Iterable[str]) -> set[str]:
    """Words with a capital or a digit, case-folded."""
    words = (word for text in texts for word in _WORD.findall(text))
    return {
        word.casefold()
        for word in words
        if word[0].isupper() or (not word.isalpha() and any(character.isdigit() for character in word))
    }


def _runs(words: list[str], together: int = TOGETHER) -> Sequence[tuple[str, ...]]:
    """Words that stand together, all of them where there are few."""
    if len(words) < together:
        return [tuple(words)]
    return list(zip(*(words[at:] for at in range(together)), strict=False))
