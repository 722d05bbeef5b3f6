"""`shared-context ingest`: files and folders into a store."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared_context.cli import output, ray_ingest, session
from shared_context.cli.options import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    ExcludeOption,
    IncludeOption,
    JsonOption,
    KvLimitOption,
    ModelOption,
    NamespaceOption,
    PlaceArgument,
    folder_of,
    parse_bytes,
    parse_metadata,
)
from shared_context.errors import BatchError, DocumentError, DuplicateDocumentError, SnapshotNotFoundError
from shared_context.progress import progress

if TYPE_CHECKING:
    from shared_context import Document, SharedLLMContextStore, StoreConfig
    from shared_context.store.loading import TextFile

    Failures = dict[str, DocumentError]


def ingest(
    path: PlaceArgument,
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Files, and folders, of which all files with text are taken.", show_default=False
        ),
    ],
    model: ModelOption = None,
    namespace: NamespaceOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Update documents that are there already; --metadata is merged over theirs."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Store nothing where one file is empty, broken or there already.")
    ] = False,
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
    kv_limit: KvLimitOption = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Fill a store of shards, in a folder or published at an address, by the actors of a Ray cluster; auto "
            "takes the one that is there or this machine. What is stored as it is is passed over, what has changed is "
            "replaced.",
        ),
    ] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, metavar="N", help="With --ray: of a new store.")
    ] = None,
    staging: Annotated[
        Path | None,
        typer.Option(
            "--staging",
            metavar="FOLDER",
            help="With --ray and an address: where the store is filled before it is published, for all machines to "
            "reach.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add documents to a store, which is made where there is none.

    A document's id is the path of its file as it is given here. HTML, PDF, DOCX, XLSX, PPTX, EPUB and notebooks are
    read as text; what is left out is named with the reason.
    """
    started = time.perf_counter()
    config, limit = _config(chunk_size), parse_bytes(kv_limit, "--kv-limit")
    patterns = {"include": include or (), "exclude": exclude or ()}
    loading: session.Loading = {"adapter": adapter, "dtype": dtype, "device": device}
    if ray is not None:
        alone = {"--namespace": namespace, "--strict": strict, "--warm": warm, "--kv-limit": kv_limit}
        for option in (name for name, value in alone.items() if value):
            raise typer.BadParameter("not with --ray: leave it out.", param_hint=option)
        files, failures, skipped = _find_files(sources, patterns)
        report = ray_ingest.ingest(
            path,
            _read_files(files, parse_metadata(metadata), _largest_document(path), failures),
            total=len(files),
            ray=ray,
            shards=shards,
            staging=staging,
            model=model,
            config=config,
            use_embedder=not no_embedder,
            loading=loading,
        )
        refused = {name: str(error) for name, error in failures.items()} | dict(report.refused)
        _report_counts(
            {
                "store": str(path),
                "stored": report.stored,
                "known": report.known,
                "refused": refused,
                "skipped": skipped,
                "seconds": time.perf_counter() - started,
            },
            as_json,
        )
        if refused:
            raise typer.Exit(output.SKIPPED if report.stored else output.FAILED)
        return
    if shards is not None or staging is not None:
        raise typer.BadParameter("--shards and --staging are of stores that --ray fills.", param_hint="--ray")
    folder = folder_of(path)
    files, failures, skipped = _find_files(sources, patterns)
    # Before a model is loaded.
    documents = list(_read_files(files, parse_metadata(metadata), _largest_document(folder), failures))
    stored: list[Document] = []
    known: set[str] = set()
    tokens = 0
    if documents and not (strict and failures):
        with session.open_or_make_store(
            folder,
            model,
            config=config,
            use_embedder=not no_embedder,
            kv_limit=limit,
            namespace=namespace,
            **loading,
        ) as store:
            known = {document.id for document in documents if document.id in store}
            if replace:
                documents = [
                    _over_stored(store, document) if document.id in known else document for document in documents
                ]
            else:
                failures |= {id: _stored_already(id) for id in known}
                documents = [document for document in documents if document.id not in known]
            if not (strict and failures):
                stored = _add(store, documents, replace, strict, failures)
            tokens = sum(len(store.model.tokenize(document.text)) for document in stored)
            if warm and stored:
                with progress() as advance:
                    store.warm(progress=advance)
    _report(
        {
            "store": str(path),
            "added": [document.id for document in stored if document.id not in known],
            "replaced": [document.id for document in stored if document.id in known],
            "refused": {name: str(error) for name, error in failures.items()},
            "skipped": skipped,
            "tokens": tokens,
            "seconds": time.perf_counter() - started,
        },
        as_json,
    )
    if failures:
        raise typer.Exit(output.SKIPPED if stored else output.FAILED)


def _largest_document(path: Path | str) -> int:
    """Bytes of UTF-8."""
    from shared_context.config import StoreConfig
    from shared_context.shards.opening import made_with

    with suppress(SnapshotNotFoundError):
        if session.is_store(path):
            return made_with(path)["config"]["max_document_bytes"]
    return StoreConfig().max_document_bytes


def _config(chunk_size: int | None) -> StoreConfig | None:
    from shared_context.config import StoreConfig, TreeConfig

    return None if chunk_size is None else StoreConfig(tree=TreeConfig(chunk_size=chunk_size))


def _find_files(
    paths: Sequence[Path], patterns: Mapping[str, Sequence[str]]
) -> tuple[list[TextFile], Failures, dict[str, str]]:
    """All files under the paths, why paths have none, and what of folders holds no text."""
    from shared_context.store.files import find_files
    from shared_context.store.loading import TextFile

    found: dict[Path, TextFile] = {}  # a file named twice, itself and by its folder, is one document
    failures: Failures = {}
    skipped: dict[str, str] = {}
    for path in paths:
        try:
            files, others = find_files(path, **patterns) if path.is_dir() else ([path], {})
        except DocumentError as error:
            failures[str(path)] = error
            continue
        skipped |= {file.as_posix(): f"it {reason}" for file, reason in others.items()}
        if not files:
            failures[str(path)] = DocumentError(f"the folder {path} has no file that is read")
        folder = path if path.is_dir() else None
        found |= {file: TextFile(file, folder=folder) for file in files}
    return list(found.values()), failures, skipped


def _read_files(
    files: Sequence[TextFile], metadata: Mapping[str, Any] | None, max_bytes: int, failures: Failures
) -> Iterator[Document]:
    """Their documents, read as they are needed; notes in ``failures`` why others cannot be read."""
    from shared_context.store.loading import load_documents

    for file in files:
        try:
            # One that was named itself may not be there: a path says so in words of its own.
            named = file if file.folder is not None else file.path
            yield from load_documents(named, metadata=metadata, max_bytes=max_bytes)
        except DocumentError as error:
            failures[file.path.as_posix()] = error


def _stored_already(id: str) -> DuplicateDocumentError:
    return DuplicateDocumentError(f"{id} is stored already: --replace updates it")


def _over_stored(store: SharedLLMContextStore, document: Document) -> Document:
    """The document with its metadata merged over those of the one that it replaces."""
    return dataclasses.replace(document, metadata={**store.get(document.id).metadata, **document.metadata})


def _add(
    store: SharedLLMContextStore, documents: Sequence[Document], replace: bool, strict: bool, failures: Failures
) -> list[Document]:
    """Add documents; returns those that are stored, and notes in ``failures`` why others are not."""
    if not documents:
        return []
    try:
        with progress() as advance:
            ids = store.add(
                documents, replace=replace, on_error="raise" if strict else failures.__setitem__, progress=advance
            )
    except BatchError as error:
        failures |= error.failures
        return []
    except DocumentError as error:
        failures[documents[0].id] = error
        return []
    return [document for document in documents if document.id in set(ids)]


def _report_counts(report: dict[str, Any], as_json: bool) -> None:
    output.say_what_is_left_out(report)
    if as_json:
        output.print_json(report)
        return
    print(
        f"{report['stored']} stored, {report['known']} there already, {len(report['refused'])} refused, "
        f"{report['seconds']:.1f} s"
    )


def _report(report: dict[str, Any], as_json: bool) -> None:
    output.say_what_is_left_out(report)
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
