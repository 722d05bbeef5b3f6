"""Words of a text as they are looked for: stemmed for its language; identifiers and numbers whole and in parts."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import chain, islice, pairwise
from typing import NamedTuple

import Stemmer

from shared_context.store.common_words import COMMON, DEFAULT_LANGUAGE, LANGUAGES
from shared_context.store.layouts import layouts
from shared_context.store.spellings import dates, figures, of_word, spellings

# Chinese, Japanese, Thai, Lao, Burmese and Khmer write no spaces; Korean writes them around whole phrases.
_UNSPACED = (
    r"\u0e01-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff"
)
# Marks of vowels and tones are part of a word although \w knows only some of them.
_MARKS = r"\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0dff\u200c\u200d\u00ad\u200b\u2060\ufeff"
_IN_WORD = rf"(?:[^\W{_UNSPACED}]|[{_MARKS}])"
# Runs of each and not one character after another, which takes half as long again.
_RUN = rf"(?:[^\W{_UNSPACED}]+|[{_MARKS}]+)+"
WORD = re.compile(
    rf"[{_UNSPACED}\u0e31-\u0e4e\u3099\u309a]+"
    # The names of languages, grades and the like: C++, F#, A+.
    rf"|(?<!{_IN_WORD})[A-Za-z](?:\+\+|[+#](?!{_IN_WORD}))"
    # A comma joins digits only, or a row of a table would be one word.
    rf"|{_RUN}(?:(?:[-_./:'’@~\\+&=#]|(?<=\d),(?=\d)){_RUN})*"
)
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
"""Where a word may be broken, or may not: no part of it."""
_UNSPACED_WORD = re.compile(rf"[{_UNSPACED}]")
_PIECES = re.compile(r"[/@\\=&#]|(?<=\d)T(?=\d)")
"""What ends a name inside of a path, an address or a timestamp."""
_PARTS = re.compile(r"[-_./:,'’~+]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LETTERS_AND_DIGITS = re.compile(r"([^\W\d_]+)(\d+)|(\d+)([^\W\d_]+)")
_MARKED = re.compile(r"(?=.*[^\W\d_])(?=.*\d)\w+(?:-\w+)+")
_HASH = re.compile(r"(?=[A-Fa-f]*\d)(?=\d*[A-Fa-f])[\dA-Fa-f]{8,64}")
SHORT_HASH = 7
"""Digits that a long hexadecimal number is shortened to, as git does; more of them are known by these, too."""
_NUMBERED = re.compile(r"[^\W\d_]{1,3}(?=\d)")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_NAME = re.compile(r"[\d_]|[a-z][A-Z]|\w[./:@\\=&#]\w")
_FIGURE = re.compile(r"[0-9_]")
_PLAIN_WORD = re.compile(r"[A-Za-z][a-z]+|[A-Z]{2,}")
"""A word that is no name of several and has no other spelling."""
_QUANTITY = re.compile(r"\d{1,2}|1\d\d\d|20\d\d")

_HEX = re.compile(r"0[xX]([0-9A-Fa-f]+)")
_HOST = re.compile(r"[^:/@]*[.][^:/@]*(?=:\d+)")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_TIME = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?(?![:\d])")
_MONTH_NAMES = "jan feb mar/mär apr may/mai jun jul aug sep oct/okt nov dec/dez"
_MONTHS = {name: number for number, names in enumerate(_MONTH_NAMES.split(), start=1) for name in names.split("/")}
_MONTH = rf"(?:{'|'.join(_MONTHS)})[a-zä]*\.?"
_DATED = re.compile(
    rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th|\.)? (?:of )?(?P<month>{_MONTH}),? (?P<year>\d{{4}})\b"
    rf"|\b(?P<month2>{_MONTH}) (?P<day2>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<year2>\d{{4}})\b",
    re.IGNORECASE,
)

LONGEST_JOINED = 4
MOST_JOINED = 96
"""Words of a query that are looked up as one name, and how many such names: each is looked up in the index."""

MOST_LAYOUTS = 96
"""Of the numbers of a query."""

LONGEST_WORD = 64
"""Characters; a longer one is known by its parts."""

_SCRIPTS = (
    (re.compile(r"[\u0400-\u052f]"), "russian"),
    (re.compile(r"[\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff]"), "arabic"),
    (re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]"), "greek"),
    (re.compile(r"[\u0900-\u097f]"), "hindi"),
    (re.compile(r"[\u0530-\u058f]"), "armenian"),
    (re.compile(r"[\u0b80-\u0bff]"), "tamil"),
)
"""The stemmer of a word that is not in Latin letters. Languages that share a script share its stemmer."""

_FOLDED = re.compile(r"[\u0370-\u05ff\u0600-\u06ff\u1e00-\u1fff\u00c0-\u024fA-Za-z]")
"""Scripts in which what stands above or below a letter may be left out."""

_LANGUAGE_SAMPLE = 20_000
"""Characters at the beginning of a text that its language is known by, so that it stays when the text grows."""


class Word(NamedTuple):
    """A word where it stands in a text.

    Attributes:
        start, end: characters.
        terms: what it is found by: its stem or, of an identifier or number, the whole and its parts; of what is written
            without spaces every two neighbouring characters.
    """

    start: int
    end: int
    terms: frozenset[str]


def words(text: str, language: str = DEFAULT_LANGUAGE) -> Iterator[Word]:
    """The words of a text, in its order.

    Args:
        language: what words in Latin letters are stemmed for, as :func:`language_of` names it.
    """
    for match in WORD.finditer(text):
        yield Word(match.start(), match.end(), terms_of(match.group(), language))


def literals(text: str, language: str) -> list[str]:
    """The terms of what a query names literally: identifiers, file names and numbers, each whole and once.

    A year or a number of one or two digits names nothing by itself.
    """
    return _terms_of_names(_names(text), language)


def other_spellings(text: str, language: str) -> list[str]:
    """The terms of what a query names literally as a text may write it otherwise, each once.

    The pieces of a path, an address or a timestamp, a number without its marks or with others, in groups or in one, a
    day in figures, surnames and abbreviations as others write them, and words that stand together as the one name that
    they may be: ``max retries`` is ``max_retries``, too. Of sections and measures their short numbers.
    """
    names = _names(text)
    pieces = [piece for name in names for piece in (*_PIECES.split(name), *_HOST.findall(name)) if _NAME.search(piece)]
    found = [piece for piece in pieces if piece not in names]
    found += [spelling for piece in pieces for spelling in (*_variants(piece), *_spellings(piece))]
    for day, time in pairwise(names):
        found += [f"{day}T{time}", f"{day}T{time}Z"] if _DAY.fullmatch(day) and _TIME.match(time) else []
    found += _dates(text)
    written = [match.group() for match in WORD.finditer(text)]
    found += (spelling for word in written for spelling in _compounds(word))
    found += islice((layout for layout in layouts(text, names) if layout not in names), MOST_LAYOUTS)
    found += islice(_joined(written, language), MOST_JOINED)
    others = chain(spellings(text, names), (other for word in written for other in of_word(word)))
    found += islice((other for other in others if other not in names), MOST_LAYOUTS)
    terms = _terms_of_names(found, language)
    return [*terms, *(each for each in dict.fromkeys(islice(figures(text), MOST_LAYOUTS)) if each not in terms)]


def _names(text: str) -> list[str]:
    matches = (_plain(match.group()) for match in WORD.finditer(text))
    return [name for name in matches if _NAME.search(name)]


def _plain(word: str) -> str:
    return unicodedata.normalize("NFKC", word).translate(_INVISIBLE)


def _terms_of_names(names: Iterable[str], language: str) -> list[str]:
    terms = dict.fromkeys(_stem(name, language) for name in names if not _QUANTITY.fullmatch(name))
    return [term for term in terms if len(term) <= LONGEST_WORD]


def _spellings(piece: str) -> Iterator[str]:
    """Other ways to write a name that a query has: 06:40:00.250Z as 06:40:00."""
    if match := _TIME.match(piece):
        yield match.group()
        yield f"{match.group()}Z"


def _dates(text: str) -> Iterator[str]:
    """The days that a text names by their month, in figures."""
    for match in _DATED.finditer(text):
        day, month, year = (match[name] or match[f"{name}2"] for name in ("day", "month", "year"))
        yield from dates(int(year), _MONTHS[month[:3].casefold()], int(day))


def _compounds(word: str) -> Iterator[str]:
    """A name of several words as other programs and tables write it: max_retries as max-retries, and the reverse.

    So is maxRetries.
    """
    if word.replace("_", "").isalpha() and "_" in word.strip("_"):
        yield from (word.replace("_", mark) for mark in ("-", ""))
    elif word.replace("-", "").isalpha():
        yield from (word.replace("-", mark) for mark in ("_", "")[: word.count("-")])
        yield from (parted.replace("_", mark) for parted in _humps(word) for mark in "_-")


def _joined(found: Sequence[str], language: str) -> Iterator[str]:
    """Words that stand together as one name, as programs and tables write it."""
    common = _common_terms(language)
    plain = [word.isalnum() and not (terms_of(word, language) <= common) for word in found]
    for first in range(len(found)):
        for end in range(first + 2, min(first + LONGEST_JOINED, len(found)) + 1):
            together = found[first:end]
            if not all(plain[first:end]):
                break
            yield "_".join(together)
            # "long term" is no name because "long-term" is a word.
            if len({word.isdigit() for word in together}) == 2 or len(together) > 2:
                yield "-".join(together)
                yield "".join(together)


def query_terms(text: str, language: str) -> list[str]:
    """The terms of a query, each once, without the commonest words of the language where others are left."""
    terms = list(dict.fromkeys(term for word in _asked(text, language) for term in sorted(terms_of(word, language))))
    common = _common_terms(language)
    return [term for term in terms if term not in common] or terms


def told_apart(text: str, language: str) -> list[tuple[str, frozenset[str]]]:
    """The words of a text in its order, each whole and with its terms; without the commonest ones of the language."""
    common, found = _common_terms(language), WORD.findall(text)
    return [
        (_stem(_plain(word), language), terms) for word in found if not (terms := terms_of(word, language)) <= common
    ]


def parts_told_apart(text: str, language: str) -> list[tuple[str, frozenset[str]]]:
    """The same of the parts that words are made of; none of them is whole."""
    common, found = _common_terms(language), WORD.findall(text)
    parts = (part for word in found for part in _smallest_parts(_plain(word), language))
    return [("", frozenset([part])) for part in parts if part not in common]


def ways_to_write(text: str, language: str) -> list[tuple[frozenset[str], ...]]:
    """The words of a query, each once in every way to write it, without the commonest ones of the language.

    Returns:
        Of each word the ways, of each way the terms that have to be there: of it whole, as it is written and as others
        write it, then all of its parts.
    """
    common = _common_terms(language)
    written = dict.fromkeys(word for word in _asked(text, language) if not terms_of(word, language) <= common)
    return [ways for word in written if (ways := _ways(word, language))]


def _ways(word: str, language: str) -> tuple[frozenset[str], ...]:
    word = _plain(word)
    if _UNSPACED_WORD.match(word):
        return (terms_of(word, language),)
    if _is_capital(word):
        return (frozenset([word]),)
    spelled = (word, *of_word(word))
    ways = [*({_stem(each, language)} for each in spelled), *(_smallest_parts(each, language) for each in spelled)]
    return tuple(dict.fromkeys(frozenset(way) for way in ways if way))


def _smallest_parts(word: str, language: str) -> list[str]:
    parts = [part for piece in _PIECES.split(word) for part in _PARTS.split(piece)]
    runs = [run for part in parts for run in _runs(part) if len(run) > 1 or run.isdigit() or _is_capital(run)]
    return [run if _is_capital(run) else _stem(run, language) for run in runs]


def _runs(part: str) -> list[str]:
    """A part's letters and its digits, where it has both."""
    match = _LETTERS_AND_DIGITS.fullmatch(part)
    return [run for run in match.groups() if run] if match else [part]


def _asked(text: str, language: str) -> Iterator[str]:
    """The words of a query, capitals that are words of the language only where they name something."""
    common, last = _common_terms(language), ""
    for match in WORD.finditer(text):
        word = match.group()
        beside = last != "" and text.startswith(f"{last} ", match.start() - len(last) - 1)
        if word == "I":
            # World War I, chapter I; not "can I".
            named = beside and not last.islower() and not terms_of(last, language) <= common
        else:
            named = beside or not _is_capital(word) or word.casefold() not in common
        if named:
            yield word
        last = word


@cache
def _common_terms(language: str) -> frozenset[str]:
    return frozenset(term for word in words(COMMON[language], language) for term in word.terms)


def language_of(text: str) -> str:
    """The language whose commonest words a text has most of; of those in Latin letters that have a stemmer.

    Where none stands out it is DEFAULT_LANGUAGE. There are stemmers for the languages in ``COMMON`` and for Russian,
    Arabic, Greek, Hindi, Armenian and Tamil, which are told by their script; words of others are compared as they are
    written (Polish, Czech, Vietnamese, Hebrew) or as another language of their script (Ukrainian, Persian).
    """
    found = Counter(WORD.findall(text[:_LANGUAGE_SAMPLE].casefold()))
    of_word, counts = _languages_of_words(), dict.fromkeys(LANGUAGES, 0)
    for word in found.keys() & of_word.keys():
        for language in of_word[word]:
            counts[language] += found[word]
    return max(counts, key=counts.__getitem__)  # of several with as many the first: English


@cache
def _languages_of_words() -> dict[str, list[str]]:
    """Of each of the commonest words the languages that have it, as often as they list it."""
    languages: dict[str, list[str]] = {}
    for language, common in COMMON.items():
        for word in common.split():
            languages.setdefault(word, []).append(language)
    return languages


@lru_cache(maxsize=1 << 16)
def terms_of(word: str, language: str = DEFAULT_LANGUAGE) -> frozenset[str]:
    """What a word is found by; see :class:`Word`."""
    word = _plain(word)
    if _UNSPACED_WORD.match(word):
        return frozenset(word[at : at + 2] for at in range(max(1, len(word) - 1)))
    terms = {_stem(word, language)}
    for piece in () if _PLAIN_WORD.fullmatch(word) else _PIECES.split(word):
        terms |= {_stem(form, language) for form in (piece, *_variants(piece))}
        for part in _PARTS.split(piece):
            terms.add(_stem(part, language))
            if match := _LETTERS_AND_DIGITS.fullmatch(part):
                terms |= {_stem(run, language) for run in match.groups() if run}
    # A single letter of a longer word says nothing.
    kept = {t for t in terms if t and len(t) <= LONGEST_WORD and (len(t) > 1 or t.isdigit() or t == word.rstrip("+#"))}
    # A capital that stands alone is asked for as a small letter, too, and as itself is no article.
    return frozenset(kept | {word, word.casefold()} if _is_capital(word) else kept)


def _is_capital(word: str) -> bool:
    return len(word) == 1 and word.isupper()


def _variants(piece: str) -> Iterator[str]:
    """Other ways to write a number or name: v2.1 as 2.1, 0xff as ff, KT-81 as KT81, 1,024 as 1024.

    So is max_retries maxRetries.
    """
    if match := _NUMBERED.match(piece):
        yield piece[match.end() :].casefold()
    if match := _HEX.fullmatch(piece):
        yield match[1].casefold()
    if _MARKED.fullmatch(piece):
        yield piece.replace("-", "")
    if _THOUSANDS.fullmatch(piece):
        yield piece.replace(",", "")
    if _HASH.fullmatch(piece):
        yield piece[:SHORT_HASH]
    named = piece.strip("_").split("_")
    # No word that somebody spells.
    if len(named) > 1 and all(word.isalpha() and len(word) > 1 for word in named):
        yield "".join(named)
    yield from _humps(piece)


def _humps(name: str) -> Iterator[str]:
    """A name of several words with capitals as one with marks between them: maxRetries as max_Retries; no MacLeod."""
    if name[:1].islower() and name.isalpha() and not name.islower():
        found = _PARTS.split(name)
        if len(found) > 1 and min(map(len, found)) > 1:
            yield "_".join(found)


def _stem(word: str, language: str) -> str:
    word = word.casefold()
    if word.isascii():  # as most are: of those in other scripts more has to be asked
        if not _FIGURE.search(word):
            word = _stemmer(language).stemWord(word)
    elif not any(c.isdigit() or c == "_" for c in word):
        for script, of_script in _SCRIPTS:
            if script.match(word):
                language = of_script
                break
        word = _stemmer(language).stemWord(word)
    if word.isascii() or not _FOLDED.match(word):
        return word
    return "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))


@cache
def _stemmer(language: str) -> Stemmer.Stemmer:
    return Stemmer.Stemmer(language, 0)  # 0: terms_of remembers what it was asked
