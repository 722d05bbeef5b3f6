"""Values that JSON does not have, as metadata and filters have them."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np

_PLAIN = (str, int, float, bool, type(None), list, dict)


def json_form(value: Any) -> Any:
    """``value``, or what stands for it where JSON has no such value.

    ===================================== ==============================================================
    value                                 stands there as
    ===================================== ==============================================================
    ``datetime``, ``date``, ``time``      ISO 8601 text; what has a time zone in UTC, so that it compares
    ``PurePath``, ``UUID``                text
    ``Decimal``                           a number
    ``Enum``                              its value
    numpy's numbers and arrays            numbers and lists
    ===================================== ==============================================================

    Anything else is given back as it is; so are the items of lists and dicts.
    """
    if type(value) in _PLAIN:
        return value
    match value:
        case Enum():
            return json_form(value.value)
        case datetime() if value == value:  # pandas has one that is none
            return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat()
        case date() | time() if value == value:
            return value.isoformat()
        case PurePath() | UUID():
            return str(value)
        case Decimal():
            return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
        case np.datetime64() if not np.isnat(value):
            return json_form(value.astype("datetime64[us]").item())
        case np.ndarray():
            return value.tolist()
        case np.bool_() | np.number() if not isinstance(value, np.timedelta64):
            return value.item()
    return value
