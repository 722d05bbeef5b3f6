"""`shared-context ingest`: files and folders into a store."""

from __future__ import annotations

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
    new: list[Document] = []
    old: list[Document] = []
    tokens = 0
    if documents and (skip_bad or not failures):
        with session.open_or_make_store(path, model, config=config, use_embedder=not no_embedder) as store:
            for document in documents:
                (old if replace and document.id in store else new).append(document)
            while refused := _add(store, new):
                failures |= refused
                new = [document for document in new if skip_bad and document.id not in refused]
            old = old if skip_bad or not failures else []
            refused = _update(store, old)
            old = [document for document in old if document.id not in refused]
            failures |= refused
            tokens = sum(len(store.model.tokenize(document.text)) for document in (*new, *old))
            if warm and (new or old):
                with _bar() as progress:
                    store.warm(progress=progress)
    _report(
        {
            "store": str(path),
            "added": [document.id for document in new],
            "replaced": [document.id for document in old],
            "refused": {name: str(error) for name, error in failures.items()},
            "tokens": tokens,
            "seconds": time.perf_counter() - started,
        },
        as_json,
    )
    if any(isinstance(error, DuplicateDocumentError) for error in failures.values()):
        output.messages().print("--replace updates documents that are there already.", soft_wrap=True)
    if failures:
        raise typer.Exit(output.SKIPPED if new or old else output.FAILED)


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


def _add(store: SharedLLMContextStore, documents: Sequence[Document]) -> Failures:
    """Add new documents, all or none; returns why some were refused."""
    if not documents:
        return {}
    try:
        with _bar() as progress:
            store.add(documents, progress=progress)
    except BatchError as error:
        return error.failures
    except DocumentError as error:
        return {documents[0].id: error}
    return {}


def _update(store: SharedLLMContextStore, documents: Sequence[Document]) -> Failures:
    """Replace documents one by one, new metadata merged over the stored; returns why some were refused."""
    failures: Failures = {}
    with _bar() as progress:
        for done, document in enumerate(documents, start=1):
            metadata = {**store.get(document.id).metadata, **document.metadata}
            try:
                store.update(document.id, document.text, metadata)
            except DocumentError as error:
                failures[document.id] = error
            progress(done, len(documents), "documents replaced")
    return failures


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
