"""The `shared-context` command: its subcommands, gathered from the modules of this folder.

Nothing heavy is imported at the top of any module of this folder, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from shared_context import __version__
from shared_context.cli import (
    ask,
    bench,
    chat,
    documents,
    evaluate,
    export_lora,
    grains,
    ingest,
    inspect,
    models,
    namespaces,
    output,
    probe,
    publish,
    report,
    search,
    serve,
    stats,
    sync,
    train,
    upkeep,
)

app = typer.Typer(
    cls=output.Commands,
    help="Whole documents as injected KV: store them once, then ask.",
    epilog=output.EXIT_CODES,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "ingest": ingest.ingest,
    "sync": sync.sync,
    "ask": ask.ask,
    "chat": chat.chat,
    "search": search.search,
    "inspect": inspect.inspect,
    "list": documents.list_documents,
    "show": documents.show,
    "rm": documents.rm,
    "export": documents.export,
    "stats": stats.stats,
    "namespaces": namespaces.namespaces,
    "gc": upkeep.gc,
    "compact": upkeep.compact,
    "copy": upkeep.copy,
    "push": publish.push,
    "pull": publish.pull,
    "prune": publish.prune,
    "check": upkeep.check,
    "models": models.models,
    "serve": serve.serve,
    "grains": grains.grains,
    "probe": probe.probe,
    "export-lora": export_lora.export_lora,
    "report": report.report,
    "train": train.train,
}
for name, command in COMMANDS.items():
    app.command(name, epilog=output.EXIT_CODES)(command)
app.add_typer(evaluate.app, name="eval")
app.add_typer(bench.app, name="bench")
app.add_typer(serve.keys_app, name="keys")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"shared-context {__version__}")
        raise typer.Exit


@app.callback()
def main(  # noqa: D103 (it would be the command's help, which the app has)
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    for stream in filter(None, (sys.stdin, sys.stdout, sys.stderr)):  # one that was closed is None
        stream.reconfigure(errors="backslashreplace")  # one character that cannot pass does not stop the rest


if __name__ == "__main__":
    app()
