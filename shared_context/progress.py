"""How far something is, on stderr: a bar on a terminal, and a line now and then where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

Advance = Callable[[int, int, str], None]
"""Called with how much is done, of how much, and what it is."""

LINE_SECONDS = 10.0
"""Between two lines, where there is no terminal; what takes less says nothing."""


@contextmanager
def progress(every: float = LINE_SECONDS) -> Iterator[Advance]:
    """A function that shows how far something is.

    Args:
        every: seconds between two lines where stderr is no terminal.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield _lines(every)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what, visible=True)


def with_progress(items: Sequence[T], what: str, every: float = LINE_SECONDS) -> Iterable[T]:
    """The items, with how many of them are done shown on stderr."""
    with progress(every) as advance:
        for done, item in enumerate(items, start=1):
            yield item
            advance(done, len(items), what)


def _lines(every: float) -> Advance:
    started = said = time.monotonic()

    def advance(done: int, total: int, what: str) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said < every or not done:
            return
        said = now
        left = (now - started) / done * (total - done)
        print(f"{what}: {done:,} of {total:,}, about {left:,.0f} s left", file=sys.stderr, flush=True)

    return advance
