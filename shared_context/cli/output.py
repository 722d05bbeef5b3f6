"""What the commands have in common: exit codes, errors, where things are printed."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from shared_context.cli.wording import in_words_of_commands
from shared_context.errors import SharedContextError

FAILED = 1
SKIPPED = 3
NOTHING_FOUND = 4

EXIT_CODES = (
    "Exit codes: 0 done; 1 an error, named on stderr; 2 wrong usage; 3 done, but bad documents were skipped; "
    "4 no document to answer from; 130 interrupted."
)

_CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Commands(TyperGroup):
    """The subcommands. What this library or the system refuses ends in one message on stderr, not in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (SharedContextError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # the reader of our output has gone
                raise
            complain(str(error))
            raise typer.Exit(FAILED) from error


def results() -> Console:
    """The console for what was asked for: stdout, plain and unwrapped where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 10_000, markup=False, highlight=False, emoji=False)


def messages() -> Console:
    """The console for everything else: stderr."""
    return Console(
        stderr=True, width=None if sys.stderr.isatty() else 10_000, markup=False, highlight=False, emoji=False
    )


def complain(text: str) -> None:
    """Print an error on stderr."""
    messages().print(Text.assemble(("error: ", "bold red"), printable(in_words_of_commands(text))), soft_wrap=True)


def say_what_is_left_out(report: dict[str, Any]) -> None:
    """Name on stderr every file that a command did not take, with the reason."""
    for reason in report["refused"].values():
        complain(reason)
    for name, reason in report["skipped"].items():
        messages().print(printable(f"skipped {name}: {in_words_of_commands(reason)}"), style="dim", soft_wrap=True)


def nothing_found(store: Path, filters: dict[str, Any] | None) -> NoReturn:
    """End the command where there is no document to answer from."""
    reason = "no document passes the filter" if filters else "the store is empty"
    complain(f"{store} has nothing to answer from: {reason}")
    raise typer.Exit(NOTHING_FOUND)


def print_json(value: Any) -> None:
    """Print a value as indented JSON, in ASCII, whatever the encoding of stdout."""
    print(json.dumps(value, indent=2))


def kept(disk: Mapping[str, int]) -> str:
    """What a store keeps of keys and values on disk, and how much it may."""
    from rich.filesize import decimal

    return f"{decimal(disk['bytes'])} of keys and values kept on disk, {decimal(disk['limit_bytes'])} at most"


def printable(text: str) -> str:
    r"""Text that is safe to show: control characters, which could command the terminal, as `\x1b`."""
    return text.replace("\r\n", "\n").translate(_CONTROL_CHARACTERS)


def silence_libraries() -> None:
    """Keep transformers' progress bars and log chatter off stderr; TRANSFORMERS_VERBOSITY brings the latter back."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
