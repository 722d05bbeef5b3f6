"""`shared-context push`, `pull` and `prune`: stores in object storage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from shared_context.cli import output
from shared_context.cli.options import JsonOption, StoreArgument

if TYPE_CHECKING:
    from shared_context.remote.snapshot import Snapshot

AddressArgument = Annotated[
    str,
    typer.Argument(
        metavar="ADDRESS", help="As s3://bucket/name, gs://..., az://... or file:///...", show_default=False
    ),
]


def push(
    path: StoreArgument,
    address: AddressArgument,
    kv: Annotated[
        bool, typer.Option("--kv", help="Publish keys and values, too: large, but not computed again.")
    ] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="On top of snapshots that the store does not come from; these stay readable."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a store as the next snapshot of an address, whole or not at all."""
    from shared_context.remote import publishing

    with output.messages().status("publishing"):
        snapshot = publishing.push(path, address, kv=kv, replace=replace)
    _report(snapshot, address, as_json)


def pull(
    address: AddressArgument,
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Folder of the store, new or empty.", show_default=False)],
    kv: Annotated[bool, typer.Option("--kv", help="Fetch keys and values, too, where they were published.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch a published store into a folder; ADDRESS@NUMBER is an earlier snapshot."""
    from shared_context.remote import fetching

    with output.messages().status("fetching"):
        snapshot = fetching.pull(address, new, kv=kv)
    _report(snapshot, address, as_json)


def prune(
    address: AddressArgument,
    keep: Annotated[int, typer.Option("--keep", min=1, metavar="N", help="Snapshots that stay, the last N.")],
    as_json: JsonOption = False,
) -> None:
    """Remove earlier snapshots of an address, and what only they are made of once it is a day old."""
    from shared_context.remote import pruning

    with output.messages().status("pruning"):
        pruned = pruning.prune(address, keep=keep)
    if as_json:
        output.print_json(dataclasses.asdict(pruned))
        return
    print(
        f"{len(pruned.snapshots)} snapshots and {pruned.objects} objects removed, {decimal(pruned.bytes)}; "
        f"{len(pruned.kept)} snapshots are left"
    )


def _report(snapshot: Snapshot, address: str, as_json: bool) -> None:
    figures = {
        "snapshot": snapshot.number,
        "documents": snapshot.documents,
        "bytes": snapshot.nbytes,
        "kv_bytes": sum(store.kv_bytes for store in snapshot.stores),
    }
    if as_json:
        output.print_json(figures)
        return
    size = decimal(figures["bytes"] + figures["kv_bytes"])
    print(f"snapshot {snapshot.number} of {output.printable(address)}: {snapshot.documents} documents, {size}")
