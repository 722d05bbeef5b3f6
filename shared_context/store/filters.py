"""Metadata filters: which documents a query may see.

They are no boundary between people who may not see each other's documents: scores tell which words all documents have,
and ids are shared. A namespace of the store is one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shared_context.errors import FilterError
from shared_context.store.json_values import json_form

Predicate = Callable[[Mapping[str, Any]], bool]


def compile_filter(filters: Mapping[str, Any] | None) -> Predicate:
    """A function from a document's metadata to whether the filter lets it through.

    ``{"year": 2024}`` asks for equality, ``{"year": {"$gte": 2020, "$lt": 2025}}`` for every operator at once;
    several keys must all match. ``{"$and": [...]}``, ``{"$or": [...]}`` and ``{"$not": {...}}`` take whole filters.
    None and ``{}`` let everything through.

    ========================= ================================================================ ==============
    operator                  true when the metadata value                                     key is missing
    ========================= ================================================================ ==============
    ``$eq``, ``$ne``          equals the operand, or does not                                  false, true
    ``$gt $gte $lt $lte``     compares so with it; numbers with numbers, strings with strings  false
    ``$in``, ``$nin``         equals one of the operand's list, or none                        false, true
    ``$contains``             is a list that holds the operand, or a string that includes it   false
    ``$icontains``            is a string that includes the operand, in capitals or not        false
    ``$exists``               is there (operand True) or not (operand False)                   as asked
    ========================= ================================================================ ==============

    Equality is of whole values, as in vector stores: ``{"tags": "a"}`` does not match the tags ``["a", "b"]``, which
    is what ``$contains`` is for. Values of unlike types are unequal and never compare; True is not 1, but 1 is 1.0.
    Dates, paths and the like are taken as they are stored, see :func:`~shared_context.store.json_values.json_form`:
    dates compare as ISO 8601 text, in which a day is before all times of that day.

    Raises:
        FilterError: an unknown operator or a malformed filter; names the operator, where it stands and what exists.
    """
    try:
        return _compile(filters if filters is not None else {}, "filters")
    except RecursionError as error:
        raise FilterError("filters contain themselves, or are nested too deeply") from error


def _compile(filters: Any, where: str) -> Predicate:
    if not isinstance(filters, Mapping):
        raise FilterError(f"{where} is {_kind(filters)}: expected a dict of metadata keys and operators")
    parts = [_compile_entry(key, value, where) for key, value in filters.items()]
    return _all_of(parts)


def _compile_entry(key: Any, value: Any, where: str) -> Predicate:
    here = f"{where}[{key!r}]"
    if not isinstance(key, str):
        raise FilterError(f"{here}: metadata keys are strings, this one is {_kind(key)}")
    if key in ("$and", "$or"):
        if not isinstance(value, list | tuple) or not value:
            raise FilterError(f"{here} needs a non-empty list of filters, not {value!r}")
        parts = [_compile(part, f"{here}[{position}]") for position, part in enumerate(value)]
        return _all_of(parts) if key == "$and" else _any_of(parts)
    if key == "$not":
        part = _compile(value, here)
        return lambda metadata: not part(metadata)
    if key.startswith("$"):
        raise _unknown(key, where)
    if not isinstance(value, Mapping):
        return _field(key, "$eq", value, here)
    if not value or not any(isinstance(name, str) and name.startswith("$") for name in value):
        raise FilterError(
            f"{here} is a dict without operators: use one of {', '.join(_OPERATORS)}; "
            f'to compare with a dict write {{"$eq": {{...}}}}'
        )
    for name in value:
        if name not in _OPERATORS:
            raise _unknown(name, here)
    return _all_of([_field(key, name, operand, f"{here}[{name!r}]") for name, operand in value.items()])


def _field(key: str, name: str, operand: Any, here: str) -> Predicate:
    check, matches, missing = _OPERATORS[name]
    operand = check(operand, here)

    def predicate(metadata: Mapping[str, Any]) -> bool:
        return matches(metadata[key], operand) if key in metadata else missing(operand)

    return predicate


def _all_of(parts: list[Predicate]) -> Predicate:
    return parts[0] if len(parts) == 1 else lambda metadata: all(part(metadata) for part in parts)


def _any_of(parts: list[Predicate]) -> Predicate:
    return lambda metadata: any(part(metadata) for part in parts)


# ---- operands, checked where the filter is compiled


def _json_value(operand: Any, here: str) -> Any:
    operand = json_form(operand)
    if operand is None or isinstance(operand, bool | int | float | str):
        return operand
    if isinstance(operand, list | tuple):
        return [_json_value(item, here) for item in operand]
    if isinstance(operand, Mapping):
        return {key: _json_value(item, here) for key, item in operand.items()}
    raise FilterError(
        f"{here}: metadata holds JSON values and never {_kind(operand)}; pass a string, a number, True, False, None, "
        f"a date, a list or a dict"
    )


def _ordered_value(operand: Any, here: str) -> int | float | str:
    operand = json_form(operand)
    if isinstance(operand, bool) or not isinstance(operand, int | float | str):
        raise FilterError(f"{here} needs a number or a string to compare with, not {operand!r}")
    return operand


@dataclass(frozen=True)
class _Values:
    """The operands of ``$in``: those that have a hash as a set, so that many cost no more than one.

    Attributes:
        hashed: values by whether they are True or False, which are not 1 and 0.
        others: lists and dicts.
    """

    hashed: frozenset[tuple[bool, Any]]
    others: list[Any]

    def holds(self, value: Any) -> bool:
        """Whether a metadata value equals one of them."""
        if isinstance(value, list | tuple | Mapping):
            return any(_equal(value, other) for other in self.others)
        return (isinstance(value, bool), value) in self.hashed


def _text(operand: Any, here: str) -> str:
    if not isinstance(operand, str):
        raise FilterError(f"{here} needs a string to look for, not {operand!r}")
    return operand.casefold()


def _list_of_values(operand: Any, here: str) -> _Values:
    if not isinstance(operand, list | tuple | set | frozenset):
        raise FilterError(f"{here} needs a list of values, not {operand!r}")
    values = [_json_value(item, here) for item in operand]
    nested = [value for value in values if isinstance(value, list | dict)]
    return _Values(frozenset((isinstance(v, bool), v) for v in values if not isinstance(v, list | dict)), nested)


def _flag(operand: Any, here: str) -> bool:
    if not isinstance(operand, bool):
        raise FilterError(f"{here} needs True or False, not {operand!r}")
    return operand


# ---- comparisons of a metadata value with an operand


def _equal(value: Any, operand: Any) -> bool:
    if isinstance(value, bool) or isinstance(operand, bool):
        return value is operand
    if isinstance(value, list | tuple):
        return (
            isinstance(operand, list)
            and len(value) == len(operand)
            and all(_equal(a, b) for a, b in zip(value, operand, strict=True))
        )
    if isinstance(value, Mapping):
        return (
            isinstance(operand, dict)
            and value.keys() == operand.keys()
            and all(_equal(value[key], operand[key]) for key in operand)
        )
    return bool(value == operand)


def _one_of(value: Any, operands: _Values) -> bool:
    return operands.holds(value)


def _contains(value: Any, operand: Any) -> bool:
    if isinstance(value, str):
        return isinstance(operand, str) and operand in value
    return isinstance(value, list | tuple) and any(_equal(item, operand) for item in value)


def _includes(value: Any, operand: str) -> bool:
    return isinstance(value, str) and operand in value.casefold()


def _comparing(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def matches(value: Any, operand: Any) -> bool:
        if isinstance(value, bool):
            return False
        alike = str if isinstance(operand, str) else (int, float)
        return isinstance(value, alike) and compare(value, operand)

    return matches


def _never(operand: Any) -> bool:
    return False


def _always(operand: Any) -> bool:
    return True


# name: (check of the operand, value against operand, result where the key is missing)
_OPERATORS: dict[str, tuple[Callable[[Any, str], Any], Callable[[Any, Any], bool], Callable[[Any], bool]]] = {
    "$eq": (_json_value, _equal, _never),
    "$ne": (_json_value, lambda value, operand: not _equal(value, operand), _always),
    "$gt": (_ordered_value, _comparing(operator.gt), _never),
    "$gte": (_ordered_value, _comparing(operator.ge), _never),
    "$lt": (_ordered_value, _comparing(operator.lt), _never),
    "$lte": (_ordered_value, _comparing(operator.le), _never),
    "$in": (_list_of_values, _one_of, _never),
    "$nin": (_list_of_values, lambda value, operands: not _one_of(value, operands), _always),
    "$contains": (_json_value, _contains, _never),
    "$icontains": (_text, _includes, _never),
    "$exists": (_flag, lambda value, wanted: wanted, lambda wanted: not wanted),
}


def _unknown(name: Any, where: str) -> FilterError:
    return FilterError(
        f"{name!r} is no operator that can stand in {where}: a metadata key takes {', '.join(_OPERATORS)}; "
        f"whole filters are joined by $and, $or, $not"
    )


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
