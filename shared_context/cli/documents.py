"""`shared-context list`, `show`, `rm` and `export`: the documents of a store."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from shared_context.cli import output, session
from shared_context.cli.options import (
    FilterOption,
    JsonOption,
    ModelOption,
    NamespaceOption,
    PlaceArgument,
    StoreArgument,
    parse_filters,
    to_be_written,
)

if TYPE_CHECKING:
    from shared_context import Document

ConversationsOption = Annotated[
    bool, typer.Option("--conversations", help="Conversations that `chat --conversation` keeps, not documents.")
]


def list_documents(
    path: PlaceArgument,
    filters: FilterOption = None,
    conversations: ConversationsOption = False,
    model: ModelOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the documents of a store: ids, characters, metadata."""
    wanted = parse_filters(filters)
    with session.open_store(path, model, namespace=namespace) as store:
        if conversations:
            rows: list[dict[str, Any]] = [
                {"id": id, "messages": len(store.conversation(id).messages())} for id in store.conversations()
            ]
        else:
            rows = [_line(store.get(id)) for id in store.ids(wanted)]
    if as_json:
        output.print_json({"conversations" if conversations else "documents": rows})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("id", overflow="fold")
    table.add_column("messages" if conversations else "characters", justify="right")
    if not conversations:
        table.add_column("metadata", overflow="fold", style="dim")
    for row in rows:
        cells = [row["id"], f"{row['messages' if conversations else 'characters']:,}"]
        if not conversations:
            cells.append(", ".join(f"{key}={value}" for key, value in _told(row["metadata"]).items()))
        table.add_row(*map(output.printable, cells))
    output.results().print(table)


def show(
    path: PlaceArgument,
    id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    conversation: Annotated[
        bool, typer.Option("--conversation", help="ID is that of a conversation: show what was said.")
    ] = False,
    model: ModelOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a document as it is stored, or a conversation."""
    with session.open_store(path, model, namespace=namespace) as store:
        if conversation:
            _check(path, [id], store.conversations(), "conversation", "list --conversations")
            messages = store.conversation(id).messages()
            if as_json:
                output.print_json({"id": id, "messages": messages})
            else:
                for message in messages:
                    print(output.printable(f"{message['role']}: {message['content']}"))
            return
        _check(path, [id], store.ids(), "document", "list")
        document = store.get(id)
    if as_json:
        output.print_json({**_line(document), "text": document.text})
    else:
        print(output.printable(document.text))


def rm(
    path: StoreArgument,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Documents; all go or none.", show_default=False)
    ] = None,
    filters: FilterOption = None,
    conversations: ConversationsOption = False,
    model: ModelOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove documents from a store, with their keys and values; `compact` then gives the space back."""
    wanted = parse_filters(filters)
    if bool(ids) == (wanted is not None):
        raise typer.BadParameter("name documents, or choose them with --filter.", param_hint="ID...")
    with session.open_store(path, model, namespace=namespace) as store:
        removed = list(dict.fromkeys(ids or store.ids(wanted)))
        if conversations:
            _check(path, removed, store.conversations(), "conversation", "list --conversations")
            for id in removed:
                store.conversation(id).clear()
        else:
            _check(path, removed, store.ids(), "document", "list")
            store.delete(removed)
    if as_json:
        output.print_json({"removed": removed})
        return
    for id in removed:
        print("-", output.printable(id))
    print(f"{len(removed)} removed")


def export(
    path: PlaceArgument,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSONL to write; - is standard output.", show_default=False),
    ],
    filters: FilterOption = None,
    model: ModelOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Write the documents of a store to a file, a line of JSON each: id, text, metadata."""
    wanted = parse_filters(filters)
    to_stdout = str(file) == "-"
    if not to_stdout:
        to_be_written(file)
    with session.open_store(path, model, namespace=namespace) as store:
        ids = store.ids(wanted)
        # Written beside it and moved, so that a file of before is whole until the new one is.
        beside = None if to_stdout else file.with_name(f".{file.name}.new")
        with nullcontext(sys.stdout) if beside is None else beside.open("w", encoding="utf-8") as lines:
            for id in ids:
                document = store.get(id)
                row = {"id": document.id, "text": document.text, "metadata": dict(document.metadata)}
                print(json.dumps(row), file=lines)
        if beside is not None:
            beside.replace(file)
    output.messages().print(f"wrote {len(ids)} documents", soft_wrap=True)


def _line(document: Document) -> dict[str, Any]:
    return {"id": document.id, "characters": len(document.text), "metadata": dict(document.metadata)}


def _told(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata without what a file's id says already."""
    return {key: value for key, value in metadata.items() if key not in ("file_name", "file_path")}


def _check(path: Path, ids: list[str], known: list[str], what: str, command: str) -> None:
    unknown = [id for id in ids if id not in set(known)]
    if unknown:
        output.complain(
            f"{path} has no {what} {', '.join(map(repr, unknown))}: `shared-context {command} {path}` shows the "
            f"{len(known)} it has"
        )
        raise typer.Exit(output.FAILED)
