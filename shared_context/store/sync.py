"""A folder and what a store holds of it, brought into step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared_context.errors import DocumentError
from shared_context.store.documents import Document
from shared_context.store.files import clip, find_files, resolved
from shared_context.store.loading import TextFile, load_documents


@dataclass(frozen=True)
class SyncPlan:
    """What has to be done for a store to hold a folder as it is now.

    Attributes:
        added, replaced: documents that are new or have another text or other metadata.
        removed: ids of documents whose files are gone.
        unchanged: ids of documents that stay as they are.
        skipped: why files are left out, by their paths; what is stored of them stays.
    """

    added: tuple[Document, ...]
    replaced: tuple[Document, ...]
    removed: tuple[str, ...]
    unchanged: tuple[str, ...]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class SyncReport:
    """What was done for a store to hold a folder as it is now.

    Attributes:
        added, replaced, removed, unchanged: ids of documents.
        skipped: why files were left out, by their paths; what was stored of them stays.
    """

    added: tuple[str, ...]
    replaced: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: tuple[str, ...]
    skipped: Mapping[str, str]


def plan_sync(
    documents: Iterable[Document],
    folder: Path,
    *,
    max_bytes: int,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> SyncPlan:
    """Compare a folder with the documents that were stored from its files, whatever they are called by now.

    A document is of a file where its ``file_path`` leads to it from the working directory. Files that exist and are
    not taken this time, because patterns leave them out or they cannot be read, count as neither new nor gone.

    Args:
        documents: all that are stored.
        folder: what they are compared with.
        max_bytes: a larger file is refused.
        include, exclude: patterns of the files that are taken.
        metadata: merged over the metadata of every document.

    Raises:
        DocumentError: it is no folder, or cannot be read: nothing is taken for gone then.
    """
    if not folder.is_dir():
        raise DocumentError(f"{clip(folder.as_posix())} is no folder: give the one whose files the store is to hold")
    files, others = find_files(folder, include, exclude)
    skipped = {file.as_posix(): f"file {file.as_posix()!r} {reason}" for file, reason in others.items()}
    ids, stored = _ids_and_files(documents, resolved(folder))
    added: list[Document] = []
    replaced: list[Document] = []
    unchanged: list[str] = []
    for file in files:
        before = stored.get(_place(file))
        try:
            found = TextFile(file, folder=folder)
            (document,) = load_documents(found, metadata=metadata, max_bytes=max_bytes)
        except DocumentError as error:
            skipped[file.as_posix()] = str(error)
            continue
        if before is None:
            (replaced if document.id in ids else added).append(document)
            continue
        own = {name: value for name, value in document.metadata.items() if name not in ("file_name", "file_path")}
        document = replace(before, text=document.text, metadata={**before.metadata, **own})
        if document == before:
            unchanged.append(document.id)
        else:
            replaced.append(document)
    removed = [document.id for path, document in stored.items() if not path.exists()]
    return SyncPlan(tuple(added), tuple(replaced), tuple(removed), tuple(unchanged), skipped)


def _ids_and_files(documents: Iterable[Document], folder: Path) -> tuple[set[str], dict[Path, Document]]:
    """All ids, and the documents that were stored from files of a folder, by the files' absolute paths."""
    ids, files = set(), {}
    for document in documents:
        ids.add(document.id)
        given = document.metadata.get("file_path")
        # A file's name has no NUL, whatever metadata say.
        if isinstance(given, str) and "\0" not in given and (path := _place(given)).is_relative_to(folder):
            files[path] = document
    return ids, files


def _place(path: str | Path) -> Path:
    """The one path of a file, whatever folder it is told from; a link is another file than what it leads to."""
    absolute = Path(path).absolute()
    return resolved(absolute.parent) / absolute.name
