"""`shared-context gc`, `compact`, `copy` and `check`: what a store takes on disk, and whether it is whole."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from shared_context.cli import output, session
from shared_context.cli.options import (
    JsonOption,
    KvLimitOption,
    ModelOption,
    NamespaceOption,
    StoreArgument,
    parse_bytes,
)


def gc(
    path: StoreArgument,
    keep: Annotated[
        str | None,
        typer.Option("--keep", metavar="SIZE", help="Of the others keep so many bytes, those used last; 0 drops all."),
    ] = None,
    kv_limit: KvLimitOption = None,
    model: ModelOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop keys and values that no document needs any more. What is dropped of others is computed again when asked."""
    most, limit = parse_bytes(keep, "--keep"), parse_bytes(kv_limit, "--kv-limit")
    before = _bytes(path / "kv")  # opening the store may drop what no document has, too
    with session.open_store(path, model, namespace=namespace) as store:
        if limit is not None:
            store.limit_kv(limit)
        store.gc(most)
        kept = store.stats()["kv_cache"]["disk"]
    freed = before - _bytes(path / "kv")
    if as_json:
        output.print_json({"freed_bytes": freed, "kv_cache": kept})
        return
    print(f"{decimal(freed)} freed, {output.kept(kept)}")


def compact(path: StoreArgument, model: ModelOption = None, as_json: JsonOption = False) -> None:
    """Give the space of removed documents back to the file system."""
    with session.open_store(path, model) as store:
        before = _bytes(path)
        store.compact()
        after = _bytes(path)
    if as_json:
        output.print_json({"before_bytes": before, "after_bytes": after})
        return
    print(f"{decimal(before)} before, {decimal(after)} now")


def copy(
    path: StoreArgument,
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Folder of the copy, new or empty.", show_default=False)],
    model: ModelOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Copy a store; keys and values are left behind and computed again. Others may use the store meanwhile."""
    if new.resolve() == path.resolve():
        raise typer.BadParameter(f"{new} is the store itself; name another folder.", param_hint="NEW")
    with session.open_store(path, model, namespace=namespace) as store:
        store.persist(new)
        count = len(store)
    print(f"{count} documents copied to {output.printable(str(new))}")


def _bytes(path: Path) -> int:
    """What the files in a folder take; 0 where there is none."""
    total = 0
    for file in path.rglob("*"):
        with suppress(FileNotFoundError):  # others use the store meanwhile
            status = file.stat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def check(
    path: StoreArgument,
    repair: Annotated[bool, typer.Option("--repair", help="Keep what is whole, and only that.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look for damage in a store: every document is read and compared with its checksums."""
    from shared_context.store import check as damage

    report = damage.check(path, repair=repair)
    if as_json:
        output.print_json(vars(report))
    else:
        for line in report.damage:
            print(output.printable(line))
        kept = "kept" if report.repaired else "whole"
        print(f"{report.documents} documents and {report.conversations} conversations are {kept}.")
    if report.damage and not report.repaired:
        raise typer.Exit(1)
