"""Files of questions: their rows, and what of them is of no use."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
"""How the names of files of JSON lines end."""


class UnusableError(Exception):
    """Why something of a file cannot be used, as a noun."""


class LeftOut(dict[str, list[str]]):
    """Where in a file there is what cannot be used, by why."""

    @contextmanager
    def unusable(self, at: str) -> Iterator[None]:
        """Leave out what stands at a place where it turns out to be of no use."""
        try:
            yield
        except UnusableError as error:
            self.setdefault(str(error), []).append(at)


def field_of(of: Any, name: str, kind: type[T]) -> T:
    """A field that must be there, and a text not blank."""
    value = of.get(name) if isinstance(of, Mapping) else None
    if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
        raise UnusableError(f"no {name}")
    return value


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, also compressed (``.gz``)."""
    return [json.loads(line) for _, line in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    # Not splitlines: inside a JSON string stand the line separators of Unicode as they are.
    return ((n, line) for n, line in enumerate(content_of(path).split("\n"), start=1) if line.strip())


def rows_of(path: Path, left_out: LeftOut) -> list[tuple[str, Mapping[str, Any]]]:
    """The objects of a file of JSON lines, or of one list, with where they stand."""
    if path.suffix == ".json":
        rows = [(f"row {n}", row) for n, row in enumerate(json.loads(content_of(path)), start=1)]
    else:
        rows = [(f"line {n}", _parsed(line)) for n, line in _lines(path)]
    found = []
    for at, row in rows:
        with left_out.unusable(at):
            if not isinstance(row, Mapping):
                raise UnusableError("no JSON object")
            found.append((at, row))
    return found


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def content_of(path: Path) -> str:
    """The text of a file, also of a compressed one (``.gz``)."""
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
