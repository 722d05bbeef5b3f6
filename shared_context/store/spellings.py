"""Other ways in which people write what they name: addresses, surnames, abbreviations, dates, measures and sections."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_ADDRESS = re.compile(r"(?:www\.)?([\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,})((?:/.*)?)", re.IGNORECASE)
_APOSTROPHE = "'’‘ʼ`´"
_WITH_APOSTROPHE = re.compile(rf"\b([^\W\d_]{{1,2}})[{_APOSTROPHE}]([^\W\d_]{{3,}})")
_ABBREVIATION = re.compile(r"[^\W\d_a-z]{3,6}")
# Of two letters it would be a word: "us", "am".
_DOTTED = re.compile(r"[^\W\d_](?:\.[^\W\d_]){2,5}")
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"})
_TRANSLITERATED = re.compile(r"(?<![aeiouäöüqAEIOUQ])([aouAOU])e(?=[^\W\d_aeiou])")
"""No "blue", "queen" or "does" at the end; what nobody writes with an umlaut is in no text."""

_DAY = re.compile(
    r"\b(?:(?P<y>\d{4})-(?P<m>\d{1,2})-(?P<d>\d{1,2})"
    r"|(?P<d2>\d{1,2})(?P<mark>[./])(?P<m2>\d{1,2})(?P=mark)(?P<y2>\d{4}))(?![-./:]?\d)"
)

_SIZE = re.compile(r"\b([A-Za-z]?\d{1,5}) ?[x×] ?(\d{1,5})\b", re.IGNORECASE)
_UNIT = "[kmcµ]?[gmlWVAJN]|[kM]Hz|[kMGT]B|[kM]Wh|lb|oz|ft|mm²|m²|km²|rpm|bar|°C|°F"
_MEASURE = re.compile(rf"(?<![\w.,])(\d{{1,4}}) ?(?:{_UNIT})(?!\w)")
_COORDINATE = re.compile(r"(\d{1,3})° ?(\d{1,2})(?:['′’] ?(\d{1,2})?)?")
_SECTION = re.compile(
    r"(?:§+|№|(?<!\w)#|\b(?:art(?:icle|ikel)?|abs(?:atz)?|sec(?:tion)?|clause|no|nr)\b\.?) ?"
    r"(\d{1,3}\b(?:(?: |, )?(?:\(\d{1,3}\)|(?:abs(?:atz)?|para(?:graph)?|no|nr|satz)\b\.? ?\d{1,3}))*)",
    re.IGNORECASE,
)


def spellings(text: str, names: Sequence[str]) -> Iterator[str]:
    """What a query names as a text may write it otherwise.

    Args:
        text: the query.
        names: the identifiers and numbers in it, as they are written there.
    """
    for name in names:
        if address := _ADDRESS.fullmatch(name):
            host, path = address.groups()
            yield from (f"{begin}{host}{end}" for end in dict.fromkeys((path, "")) for begin in ("", "www."))
        if _DOTTED.fullmatch(name):
            yield name.replace(".", "")
    for match in _WITH_APOSTROPHE.finditer(text):
        if match[2][0].isupper():
            yield from (f"{match[1]}{mark}{match[2]}" for mark in ("'", "’", ""))
    yield from (f"{a}x{b}" for a, b in _SIZE.findall(text))
    for match in _DAY.finditer(text):
        year, month, day = (int(match[part] or match[f"{part}2"]) for part in "ymd")
        yield from dates(year, month, day, either=match["mark"] == "/")


def dates(year: int, month: int, day: int, *, either: bool = False) -> Iterator[str]:
    """A day in figures, in every order; with ``either`` the month may be the day and the reverse."""
    for m, d in dict.fromkeys([(month, day), *([(day, month)] if either else [])]):
        if 1 <= m <= 12 and 1 <= d <= 31:
            yield f"{year}-{m:02}-{d:02}"
            yield from (f"{d:{w}}.{m:{w}}.{year}" for w in ("02", ""))
            yield from (f"{a:{w}}/{b:{w}}/{year}" for a, b in ((d, m), (m, d)) for w in ("02", ""))


def of_word(word: str) -> Iterator[str]:
    """A capitalised word with umlauts or without, an abbreviation with dots: Müller as Mueller, EFTA as E.F.T.A."""
    if word[:1].isupper() and word.replace("-", "").isalpha():
        if (plain := word.translate(_UMLAUTS)) != word:
            yield plain
        if (umlauts := _TRANSLITERATED.sub(r"\1", word)) != word:
            yield umlauts
        if _ABBREVIATION.fullmatch(word):
            yield ".".join(word)


def figures(text: str) -> Iterator[str]:
    """Short numbers that name something with what stands beside them: of § 12 (3), 70kg, 7×22, 54° 46′."""
    for pattern in _SIZE, _MEASURE, _COORDINATE, _SECTION:
        for match in pattern.finditer(text):
            yield from re.findall(r"\d+", match.group())
