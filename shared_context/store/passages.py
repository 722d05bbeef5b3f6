"""Passages as text: what is read or handed to another model begins and ends at sentences, lines or rows.

Sentences are found by rules, which need no data: splitters that are kept well load a model of each language. A sentence
ends at a full stop, a question mark or an exclamation mark, with closing quotes and brackets, behind which a space and
no lower-case letter stands; not behind an initial, an abbreviation or the number of a list or a date. A line ends where
it breaks, unless it looks like a line of wrapped prose, and a row of a table is a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

REACH = 240
"""Characters that a passage is widened by at most, at either edge; to a word's edge where no sentence or line ends."""

LONGEST_WORD = 64
"""Characters; what is longer may be cut."""

HEADING_REACH = 50_000
"""Characters before a passage in which its heading is looked for."""

HEADING_LENGTH = 1_000
"""Characters of the longest line that is read as a heading, or as names of columns."""

CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_GAP = re.compile(
    # Behind these scripts an ASCII mark ends a sentence without a space; a full stop may be one of a name or number.
    rf"\s+|(?:[。！？｡．‼⁉]+|(?<=[{CJK}])(?:[!?]+|\.(?=[{CJK}「『“（])))[」』”’）)\"\]]*\s*"
)
_STOP = re.compile(r"([.!?…؟।]+)[\"'’”»)\]*_]*$")
_ABBREVIATED = re.compile(
    r"(?:^|[\s(\[\"'“„«])(?:[^\W\d_]|(?:\w\.)+\w|dr|mrs?|ms|prof|st|no|nos|nr|vol|vs|approx|ca|cf|fig|eq|sec|art|ed|eds|"
    r"pp|inc|ltd|co|corp|jr|sr|dept|est|gen|col|capt|lt|rev|hon|bzw|usw|vgl|abs|str|tel|inkl|zzgl|mme|mlle|etc)$",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"(?:^|\n)[ \t]*\d{1,3}$")
_DAY = re.compile(r"(?:^|\s)\d{1,2}$")
_MONTH = re.compile(r"(?:jan|feb|mär|mar|apr|ma[iy]|jun|jul|aug|sep|o[kc]t|nov|de[zc])", re.IGNORECASE)
_LIST = re.compile(r"(?:[-*+>#|•]|\d{1,3}[.)]\s|[\w ]{1,20}:\s)")
_SCRIPTS_WITHOUT_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
# Marks of vowels are part of a word although \w knows only some of them.
_MARKS = r"\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0dff\u200c\u200d"
_LETTER = rf"(?:[^\W{_SCRIPTS_WITHOUT_SPACES}]|(?!\w)[{_MARKS}])"
# Between two numbers of a row a comma is none of a number, hence no other one may stand beside them.
_DECIMAL = "|".join(rf"(?<=^{digits}),|(?<=[^\w,]{digits})," for digits in (r"\d" * n for n in range(1, 5)))
_COMMA = rf"(?<=\d),(?=\d{{3}}(?!\d))|(?<=\.\d{{3}}),(?=\d{{1,2}}(?!\d))|(?:{_DECIMAL})(?=\d{{1,2}}(?!\d|,\w))"
_WORD = re.compile(rf"{_LETTER}+(?:(?:[.:/@'’\-&?=]|://|{_COMMA}){_LETTER}+)*")
_RUN = re.compile(rf"{_LETTER}+")
"""A word, a number or an address: ``3.14``, ``1,024``, ``1.024,50``, ``06:40``, ``well-known`` and ``it's`` are one."""
_IN_QUOTES = re.compile(r'"[^"]*"')
_HEADING = re.compile(
    r"^(?:(?P<fence>```|~~~)|(?P<hashes>#{1,6})[ \t]+(?P<title>\S.*?)[ \t#\r]*$|(?P<underline>={3,}|-{3,})[ \t\r]*$)",
    re.MULTILINE,
)


def whole(text: str, start: int, end: int) -> tuple[int, int]:
    """The characters of a passage, widened to whole sentences, lines or rows.

    White space at the edges is left out, but for a line's indentation. A paragraph's end is never crossed.

    Args:
        text: the document's.
        start, end: characters of the passage; blank ones stay as they are.
    """
    if not text[start:end].strip():
        return start, end
    first = start + len(text[start:end]) - len(text[start:end].lstrip())
    last = start + len(text[start:end].rstrip())
    begins = [begin for ended, begin in _breaks(text, first - REACH, first + 1) if begin <= first]
    ends = (ended for ended, _ in _breaks(text, last, last + REACH) if ended >= last)
    return begins[-1] if begins else word_start(text, first), next(ends, word_end(text, last))


def word_start(text: str, at: int) -> int:
    """Where the word begins that a character stands within; the character itself where it stands between words."""
    return _word_around(text, at)[0]


def word_end(text: str, at: int) -> int:
    """Where the word ends that a character stands within; the character itself where it stands between words."""
    return _word_around(text, at)[1]


def _word_around(text: str, at: int) -> tuple[int, int]:
    if not 0 < at < len(text) or text[at - 1].isspace() or text[at].isspace():
        return at, at  # no word has white space in it
    begin = max(0, at - LONGEST_WORD)
    # From a word's beginning, or what the window cuts off would be read as one.
    while begin > 0 and begin > at - 2 * LONGEST_WORD and not text[begin - 1].isspace():
        begin -= 1
    # Of an address or a row that is too long its parts are whole.
    for words in _WORD, _RUN:
        for word in words.finditer(text, begin, at + LONGEST_WORD + 1):
            if word.start() >= at:
                return at, at
            if word.end() > at:
                if word.end() - word.start() <= LONGEST_WORD:
                    return word.span()
                break
    return at, at


def _breaks(text: str, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Where sentences, lines and rows end between two characters, each with where the next one begins."""
    first, last = max(first, 0), min(last, len(text))
    if first == 0:
        yield 0, len(text) - len(text.lstrip())
    # A gap is looked at whole.
    while first > 0 and text[first - 1].isspace():
        first -= 1
    for gap in _GAP.finditer(text, first):
        if gap.start() > last:
            return
        space = gap.group()
        if not space[0].isspace():
            yield gap.end() - len(space) + len(space.rstrip()), gap.end()
        elif "\n" in space or "\r" in space:
            if _sentence_ends(text, gap) or not _is_wrapped(text, gap):
                yield gap.start(), gap.start() + max(space.rfind("\n"), space.rfind("\r")) + 1
        elif _sentence_ends(text, gap):
            yield gap.span()
    if last == len(text):
        yield len(text.rstrip()), len(text)


def _sentence_ends(text: str, gap: re.Match[str]) -> bool:
    """Whether a sentence ends before a gap."""
    before, after = text[max(0, gap.start() - LONGEST_WORD) : gap.start()], text[gap.end() : gap.end() + 4]
    stop = _STOP.search(before)
    if stop is None or after[:1].islower():
        return False
    said = before[: stop.start()]
    if stop[1] != "." or not said:
        return True
    dated = _DAY.search(said) and _MONTH.match(after)
    return not (_ABBREVIATED.search(said) or _COUNTED.search(said) or dated)


def _is_wrapped(text: str, gap: re.Match[str]) -> bool:
    """Whether the line that ends at a gap goes on in the next one, as prose does that was wrapped at a width."""
    if len(gap.group().splitlines()) > 2 or gap.group().count("\n") > 1:
        return False
    line = text[max(text.rfind("\n", 0, gap.start()) + 1, gap.start() - 160) : gap.start()]
    after = text[gap.end() : gap.end() + 160].partition("\n")[0]
    prose = sum(letter.isalpha() or letter == " " for letter in line) >= 0.8 * len(line)
    row = line.count(",") >= 2 and line.count(",") == after.count(",")
    return 50 <= len(line) <= 140 and len(line.split()) >= 6 and prose and not row and not _LIST.match(after)


def heading_of(text: str, start: int) -> str | None:
    """The heading that a passage stands under, and the column names where it begins within a table.

    Headings are Markdown's, of both kinds; names of columns are the first line of a table in CSV or Markdown.

    Args:
        text: the document's.
        start: the passage's first character, at a line's or sentence's beginning.

    Returns:
        The heading's words, then on a line of its own the names of columns; None where there is neither, or where the
        passage begins with its own heading.
    """
    own = _HEADING.match(text, start)
    if own and own["hashes"]:
        return None
    first = text.rfind("\n", 0, max(0, start - HEADING_REACH)) + 1
    fenced, title = text.count("\n```", 0, first) % 2 == 1, None
    for found in _HEADING.finditer(text, first, start):
        before = _line(text, found.start() - 1)
        if found["fence"]:
            fenced = not fenced
        elif fenced:
            continue
        elif found["hashes"]:
            # A comment of a program begins with one such sign, too, but stands among lines.
            title = found["title"] if len(found["hashes"]) > 1 or not before.strip() else title
        elif before.strip() and not _cells(before) and not _line(text, found.start() - len(before) - 2).strip():
            title = before.strip()
    return "\n".join(filter(None, [title, _columns(text, start)])) or None


def _columns(text: str, start: int) -> str | None:
    """The first line of the table that a passage begins within; None where it begins in none, or with that line."""
    gaps = ((text.rfind(gap, 0, start), len(gap)) for gap in ("\n\n", "\n\r\n"))
    top = max((at + length for at, length in gaps if at >= 0), default=0)
    row, names = _line(text, start), _line(text, top)
    inside = top + len(names) < start and _cells(row) is not None and _cells(row) == _cells(names)
    return names.strip() if inside else None


def _line(text: str, at: int) -> str:
    """The line that a character stands in, no more than ``HEADING_LENGTH`` of it; empty before the text begins."""
    if at < 0:
        return ""
    first = text.rfind("\n", 0, at) + 1
    return text[first : first + HEADING_LENGTH].partition("\n")[0]


def _cells(line: str) -> tuple[str, int] | None:
    """What divides the cells of a row and how often it does; None of a line that is no row."""
    line = _IN_QUOTES.sub("", line)
    for mark, least in (("|", 2), ("\t", 1), (";", 2), (",", 2)):
        count = line.count(mark)
        if count >= least and (mark != "," or line.count(", ") < count):
            return mark, count
    return None
