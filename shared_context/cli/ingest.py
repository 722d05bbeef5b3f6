"""`shared-context ingest`: files and folders into a store."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared_context.cli import output, session
from shared_context.cli.options import JsonOption, ModelOption, StoreArgument, parse_metadata
from shared_context.errors import BatchError, DocumentError, DuplicateDocumentError

if TYPE_CHECKING:
    from shared_context import Document, SharedLLMContextStore, StoreConfig

    Failures = dict[str, DocumentError]


def ingest(
    path: StoreArgument,
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Text files, and folders, of which the text files are taken.", show_default=False
        ),
    ],
    model: ModelOption = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Update documents that are there already; --metadata is merged over theirs."),
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Add the good ones of a batch; exits with 3.")] = False,
    warm: Annotated[bool, typer.Option("--warm", help="Compute all keys and values now, not when asked.")] = False,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="KEY=VALUE", help="Metadata of every document; VALUE is JSON or a string."),
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option("--chunk-size", help="Tokens per context tree, fixed when the store is made.")
    ] = None,
    no_embedder: Annotated[
        bool, typer.Option("--no-embedder", help="Make the store without an embedder: smaller, finds a little less.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Add documents to a store, which is made where there is none.

    A document's id is the path of its file as it is given here. All of them land or, where one is bad, none.
    """
    started = time.perf_counter()
    config = _config(chunk_size)
    documents, failures = _read(sources, parse_metadata(metadata), _largest_document(path))
    stored: list[Document] = []
    known: set[str] = set()
    tokens = 0
    if documents and (skip_bad or not failures):
        with session.open_or_make_store(path, model, config=config, use_embedder=not no_embedder) as store:
            if replace:
                known = {document.id for document in documents if document.id in store}
                documents = [
                    _over_stored(store, document) if document.id in known else document for document in documents
                ]
            stored = documents
            while refused := _add(store, stored, replace):
                failures |= refused
                stored = [document for document in stored if skip_bad and document.id not in refused]
            tokens = sum(len(store.model.tokenize(document.text)) for document in stored)
            if warm and stored:
                with _bar() as progress:
                    store.warm(progress=progress)
    _report(
        {
            "store": str(path),
            "added": [document.id for document in stored if document.id not in known],
            "replaced": [document.id for document in stored if document.id in known],
            "refused": {name: str(error) for name, error in failures.items()},
            "tokens": tokens,
            "seconds": time.perf_counter() - started,
        },
        as_json,
    )
    if any(isinstance(error, DuplicateDocumentError) for error in failures.values()):
        output.messages().print("--replace updates documents that are there already.", soft_wrap=True)
    if failures:
        raise typer.Exit(output.SKIPPED if stored else output.FAILED)


def _largest_document(path: Path) -> int:
    """Bytes of UTF-8."""
    from shared_context.config import StoreConfig

    if session.is_store(path):
        return session.made_with(path)["config"]["max_document_bytes"]
    return StoreConfig().max_document_bytes


def _config(chunk_size: int | None) -> StoreConfig | None:
    from shared_context.config import StoreConfig, TreeConfig

    return None if chunk_size is None else StoreConfig(tree=TreeConfig(chunk_size=chunk_size))


def _read(paths: Sequence[Path], metadata: Mapping[str, Any] | None, max_bytes: int) -> tuple[list[Document], Failures]:
    """All documents under the paths that can be stored, and why others cannot. Before a model is loaded."""
    from shared_context.store.documents import load_documents, text_files

    documents: dict[str, Document] = {}
    failures: Failures = {}
    for path in paths:
        try:
            files = text_files(path) if path.is_dir() else [path]
        except DocumentError as error:
            failures[str(path)] = error
            continue
        for file in files:
            try:
                (document,) = load_documents(file, metadata=metadata, max_bytes=max_bytes)
                documents[document.id] = document  # a file named twice, itself and by its folder, is one document
            except DocumentError as error:
                failures[file.as_posix()] = error
    return list(documents.values()), failures


def _over_stored(store: SharedLLMContextStore, document: Document) -> Document:
    """The document with its metadata merged over those of the one that it replaces."""
    return dataclasses.replace(document, metadata={**store.get(document.id).metadata, **document.metadata})


def _add(store: SharedLLMContextStore, documents: Sequence[Document], replace: bool) -> Failures:
    """Add documents, all or none; returns why some were refused."""
    if not documents:
        return {}
    try:
        with _bar() as progress:
            store.add(documents, replace=replace, progress=progress)
    except BatchError as error:
        return error.failures
    except DocumentError as error:
        return {documents[0].id: error}
    return {}


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr, where that is a terminal, as the store's progress callback."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=output.messages(), transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what, visible=True)

        yield progress


def _report(report: dict[str, Any], as_json: bool) -> None:
    for reason in report["refused"].values():
        output.complain(reason)
    if as_json:
        output.print_json(report)
        return
    added, replaced = report["added"], report["replaced"]
    if not added and not replaced:
        output.messages().print("Nothing was stored.")
        return
    for mark, id in [("+", id) for id in added] + [("~", id) for id in replaced]:
        print(mark, output.printable(id))
    print(f"{len(added)} added, {len(replaced)} replaced, {report['tokens']:,} tokens, {report['seconds']:.1f} s")
