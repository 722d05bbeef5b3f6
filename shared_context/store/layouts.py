"""Layouts of numbers: amounts with and without marks, account and telephone numbers in groups or in one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

SHORTEST_GROUP = 3
"""Characters; a shorter group stands in too many other numbers."""

SHORTEST_SOLID, LONGEST_SOLID = 7, 40
"""Characters of groups that are looked up as one, too."""

MOST_RUNS = 5
"""Of letters and of digits, by turns; what has more of them is a checksum or the like, which nobody parts."""

LONGEST_TELEPHONE = 13
"""Digits."""

_PARTED = re.compile(r"[^\W_]+(?:([-.:/])[^\W_]+)(?:\1[^\W_]+)*")
_FIGURES = re.compile(r"[\dA-Fa-f]+(?:([-.:])[\dA-Fa-f]+){2,}[Xx]?")
_GROUP = r"[A-Za-z]{0,2}\d[^\W_]*"
_GROUPS = re.compile(rf"(?<!\w){_GROUP}(?:[-./() ]{{1,2}}{_GROUP})+(?:[- ][Xx])?(?![\w:])")
_RUNS = re.compile(r"\d+|[^\W\d_]+")
_IBAN = re.compile(r"[A-Za-z]{2}\d{2}[A-Za-z\d]{11,30}")
_MAC = re.compile(r"(?=.*[A-Fa-f])[\dA-Fa-f]{12}")
_TELEPHONE = re.compile(r"\d*(\d{3})(\d{3})(\d{4})")
_UUID = re.compile(r"(?=.*[A-Fa-f])([\dA-Fa-f]{8})([\dA-Fa-f]{4})([\dA-Fa-f]{4})([\dA-Fa-f]{4})([\dA-Fa-f]{12})")
_CARD = re.compile(r"\d{16}")
_ISBN = re.compile(
    # The country's or language's group is known by its first digits.
    r"(97[89])?(?=\d{9}[\dXx]$)([0-57]|65|8\d|9[0-4]|6[0-4]\d|9[5-8]\d|99[0-8]\d|999\d\d)(\d+)([\dXx])"
)
_DAY = re.compile(r"((?:19|20)\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_AMOUNT = re.compile(r"(\d{1,3}(?:([.,'’])\d{3})(?:\2\d{3})?|\d{5,9}|\d{4}(?=[.,]))(?:(?!\2)([.,])(\d{1,2}))?")
_MARKS = ("", ".", ",", "'", "’")


def layouts(text: str, names: Sequence[str]) -> Iterator[str]:
    """What numbers of a query may look like elsewhere.

    Args:
        text: the query.
        names: the identifiers and numbers in it, as they are written there.
    """
    for name in names:
        if amount := _AMOUNT.fullmatch(name):
            yield from _amounts(amount)
        elif parted := _PARTED.fullmatch(name):
            yield from _groups(name, parted[1])
        yield from (*_parted(name), *_of_runs(name))
        if _IBAN.fullmatch(name):
            yield from _pieces(name, 4)
        if day := _DAY.fullmatch(name):
            yield "-".join(day.groups())
        if len(name) <= LONGEST_TELEPHONE and (telephone := _TELEPHONE.fullmatch(name)):
            yield from (*telephone.groups(), "-".join(telephone.groups()[1:]))
        if _MAC.fullmatch(name):
            yield from (mark.join(_pieces(name, 2)) for mark in ":-")
    for match in _GROUPS.finditer(text):
        solid = "".join(filter(str.isalnum, match.group()))
        if SHORTEST_SOLID <= len(solid) <= LONGEST_SOLID:
            yield solid
            yield from _parted(solid)


def _parted(solid: str) -> Iterator[str]:
    """A number of a book or a card, or an identifier, that was written as one, in the groups that it has."""
    if book := _ISBN.fullmatch(solid):
        prefix, group, rest, check = book.groups()
        for at in range(1, len(rest)):
            publisher, title = rest[:at], rest[at:]
            yield "-".join(filter(None, (prefix, group, publisher, title, check)))
            # Where spaces part the groups, those that are long enough to tell books apart.
            yield from (part for part in (publisher, title) if len(part) > SHORTEST_GROUP + 1)
    if identifier := _UUID.fullmatch(solid):
        yield "-".join(identifier.groups())
    if _CARD.fullmatch(solid):
        yield from ("-".join(_pieces(solid, 4)), *_pieces(solid, 4))


def _of_runs(solid: str) -> Iterator[str]:
    """An identifier of letters and digits by turns as one would part it: LB52XKT is LB52 XKT or LB-52-XKT, too."""
    runs = _RUNS.findall(solid)
    if not 3 <= len(runs) <= MOST_RUNS or "".join(runs) != solid:
        return
    yield "-".join(runs)
    for first, second in pairwise(runs):
        yield from (f"{first}{mark}{second}" for mark in ("", "-") if len(first + second) > SHORTEST_GROUP)
    yield from (run for run in runs if run.isdigit() and len(run) >= SHORTEST_GROUP)


def _pieces(name: str, size: int) -> list[str]:
    return [name[at : at + size] for at in range(0, len(name), size)]


def _groups(name: str, mark: str) -> Iterator[str]:
    """The groups of a number, what stands behind the first ones (556-4266 of 134-556-4266), and it with other marks."""
    groups = name.split(mark)
    numbered = [group for group in groups if any(map(str.isdigit, group))]
    if len(numbered) < 2:
        return
    for group in numbered:
        yield from (group for group in {group, group.lstrip("0")} if len(group) >= SHORTEST_GROUP)
    yield from (mark.join(groups[first:]) for first in range(1, len(groups) - 1))
    if _FIGURES.fullmatch(name):
        yield from (name.replace(mark, other) for other in "-.:" if other != mark)


def _amounts(amount: re.Match[str]) -> Iterator[str]:
    """An amount with every kind of mark and with none, and its last group, where spaces part the others."""
    whole, point, decimals = "".join(filter(str.isdigit, amount[1])), amount[3], amount[4]
    groups = [whole[max(0, end - 3) : end] for end in range(len(whole), 0, -3)][::-1]
    for mark in _MARKS:
        if point is None:
            yield mark.join(groups)
        else:
            yield from (f"{mark.join(groups)}{other}{decimals}" for other in ".," if other != mark)
    if point is not None:
        yield from (f"{groups[-1]}{other}{decimals}" for other in ".,")
