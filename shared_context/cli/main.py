"""The `shared-context` command: one module per subcommand, gathered here.

Nothing heavy is imported at the top of any module of this folder, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from shared_context import __version__
from shared_context.cli import ask, bench, chat, evaluate, ingest, inspect, models, output, report, stats, train

app = typer.Typer(
    cls=output.Commands,
    help="Whole documents as injected KV: store them once, then ask.",
    epilog=output.EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    ingest.ingest, ask.ask, chat.chat, inspect.inspect, stats.stats, models.models, report.report, train.train,
):  # fmt: skip
    app.command(epilog=output.EXIT_CODES)(command)
app.add_typer(evaluate.app, name="eval")
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"shared-context {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    for stream in filter(None, (sys.stdin, sys.stdout, sys.stderr)):  # one that was closed is None
        stream.reconfigure(errors="backslashreplace")  # one character that cannot pass does not stop the rest


if __name__ == "__main__":
    app()
