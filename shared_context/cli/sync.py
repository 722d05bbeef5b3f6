"""`shared-context sync`: a store that holds a folder as it is now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared_context.cli import output, session
from shared_context.cli.options import (
    DeviceOption,
    DtypeOption,
    ExcludeOption,
    IncludeOption,
    JsonOption,
    KvLimitOption,
    ModelOption,
    NamespaceOption,
    StoreArgument,
    parse_bytes,
    parse_metadata,
)
from shared_context.cli.wording import in_words_of_commands
from shared_context.progress import progress

if TYPE_CHECKING:
    from shared_context import SharedLLMContextStore


def sync(
    path: StoreArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Whose files to hold.", show_default=False)],
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="KEY=VALUE", help="Metadata of every document; VALUE is JSON or a string."),
    ] = None,
    model: ModelOption = None,
    namespace: NamespaceOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    kv_limit: KvLimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold a folder's files as they are now: add new ones, replace changed ones, remove those that are gone.

    Unchanged files cost nothing. The store is made where there is none. Documents from elsewhere stay, and so does what
    is stored of a file that cannot be read now: it is named, and the exit code is 3.
    """
    options = {"include": include or (), "exclude": exclude or (), "metadata": parse_metadata(metadata)}
    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is no folder.", param_hint="FOLDER")
    limit = parse_bytes(kv_limit, "--kv-limit")
    loading: session.Loading = {"dtype": dtype, "device": device}
    opened = (
        session.open_store(path, model, **loading, namespace=namespace)
        if dry_run
        else session.open_or_make_store(path, model, kv_limit=limit, **loading, namespace=namespace)
    )
    with opened as store:
        report = _planned(store, folder, options) if dry_run else _done(store, folder, options)
    for reason in report["skipped"].values():
        output.messages().print(output.printable(f"skipped: {in_words_of_commands(reason)}"), soft_wrap=True)
    if as_json:
        output.print_json(report)
    else:
        for mark, what in ("+", "added"), ("~", "replaced"), ("-", "removed"):
            for id in report[what]:
                print(mark, output.printable(id))
        counts = ", ".join(f"{len(report[what])} {what}" for what in ("added", "replaced", "removed", "unchanged"))
        print(f"{counts}{' (nothing was changed: --dry-run)' if dry_run else ''}")
    if report["skipped"]:
        raise typer.Exit(output.SKIPPED)


def _done(store: SharedLLMContextStore, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    with progress() as advance:
        report = store.sync(folder, **options, progress=advance)
    return {
        "added": list(report.added),
        "replaced": list(report.replaced),
        "removed": list(report.removed),
        "unchanged": list(report.unchanged),
        "skipped": dict(report.skipped),
    }


def _planned(store: SharedLLMContextStore, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    from shared_context.store.sync import plan_sync

    plan = plan_sync(store, folder, max_bytes=store.config.max_document_bytes, **options)
    return {
        "added": [document.id for document in plan.added],
        "replaced": [document.id for document in plan.replaced],
        "removed": list(plan.removed),
        "unchanged": list(plan.unchanged),
        "skipped": dict(plan.skipped),
    }
