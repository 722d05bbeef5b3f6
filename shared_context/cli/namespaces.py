"""`shared-context namespaces`: the stores of their own in a store."""

from __future__ import annotations

from typing import Annotated

import typer

from shared_context.cli import output, session
from shared_context.cli.options import JsonOption, ModelOption, StoreArgument


def namespaces(
    path: StoreArgument,
    drop: Annotated[
        str | None, typer.Option("--drop", metavar="NAME", help="Delete this one with all that it holds.")
    ] = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the namespaces of a store, which `ingest --namespace` makes, with their documents."""
    if drop is not None:
        with session.open_store(path, model, namespace=drop) as namespace:
            namespace.drop()
    with session.open_store(path, model) as store:
        found = {name: len(store.namespace(name)) for name in store.namespaces()}
    if as_json:
        output.print_json({"namespaces": [{"name": name, "documents": count} for name, count in found.items()]})
        return
    for name, count in found.items():
        print(f"{output.printable(name)}\t{count:,}")
