"""`shared-context stats`: what a store holds, and how many bytes that takes."""

from __future__ import annotations

from rich.filesize import decimal
from rich.table import Table

from shared_context.cli import output, session
from shared_context.cli.options import JsonOption, ModelOption, NamespaceOption, PlaceArgument


def stats(
    path: PlaceArgument,
    model: ModelOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a store holds: documents, tokens, bytes, cache."""
    with session.open_store(path, model, namespace=namespace) as store:
        figures = store.stats()
    if as_json:
        output.print_json(figures)
        return
    cached = figures["kv_cache"]["disk"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in {
        "store": str(path),
        "model": figures["model"],
        "embedder": figures["embedder"] or "none",
        "documents": f"{figures['documents']:,}",
        "conversations": f"{figures['conversations']:,}",
        "tokens": f"{figures['tokens']:,} in {figures['chunks']:,} chunks",
        "documents and codes": decimal(figures["database_bytes"]),
        "KV cache": f"{decimal(cached['bytes'])} of {decimal(cached['limit_bytes'])}, {cached['entries']:,} chunks",
    }.items():
        table.add_row(name, output.printable(value))
    output.results().print(table)
