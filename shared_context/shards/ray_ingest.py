"""Ingestion by Ray actors: each holds the model and the embedder once and writes shards of one store."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shared_context.config import StoreConfig, require, require_count
from shared_context.errors import (
    BatchError,
    ConfigError,
    DocumentError,
    ShardUnavailableError,
    SnapshotNotFoundError,
)
from shared_context.model.pretrained import cache_folder
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.remote.address import Address
from shared_context.remote.fetching import pull
from shared_context.remote.publishing import push
from shared_context.remote.snapshot import Snapshot
from shared_context.shards.ray_workers import import_ray
from shared_context.shards.store import ShardedContextStore
from shared_context.shards.writing import shard_for
from shared_context.store.documents import Document, check_document
from shared_context.store.embedder import Embedder
from shared_context.store.shard_folders import is_sharded, shard_folders
from shared_context.store.store import SharedLLMContextStore

BATCH_CHARACTERS = 1 << 18
"""Of the documents that an actor is given at a time: about as many tokens as a store computes together."""

WAITING = 2
"""Batches that an actor is given ahead."""


@dataclass(frozen=True)
class IngestReport:
    """What became of documents.

    Attributes:
        stored: how many were stored now.
        known: how many were there already as they are, from a run before.
        refused: why others are not stored, by their ids.
    """

    stored: int = 0
    known: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: IngestReport) -> IngestReport:
        """Both together."""
        return IngestReport(self.stored + other.stored, self.known + other.known, {**self.refused, **other.refused})


class Writer:
    """Writes the shards that it is given documents for.

    Args:
        load: loads the model.
        folders: of all shards.
        use_embedder: whether the store has one, which is loaded by its name.
    """

    def __init__(self, load: Callable[[], SharedLLMModel], folders: Sequence[Path], use_embedder: bool):
        self._model, self._folders = load(), folders
        self._embedder: Embedder | Literal["auto"] | None = "auto" if use_embedder else None
        self._stores: dict[int, SharedLLMContextStore] = {}

    def add(self, number: int, documents: Sequence[Document]) -> IngestReport:
        """Store those of a batch that are not there as they are; doing it again changes nothing."""
        if number not in self._stores:
            self._stores[number] = SharedLLMContextStore(self._model, self._folders[number], embedder=self._embedder)
            self._embedder = self._stores[number].embedder
        store, refused = self._stores[number], dict[str, str]()
        new = [document for document in documents if document.id not in store or store.get(document.id) != document]
        try:
            stored = store.add(new, replace=True, on_error=lambda id, e: refused.setdefault(id, str(e))) if new else []
        except BatchError as error:
            stored, refused = [], refused | {id: str(each) for id, each in error.failures.items()}
        except DocumentError as error:
            stored, refused = [], refused | {new[0].id: str(error)}
        return IngestReport(len(stored), len(documents) - len(new), refused)


def ingest(
    load: Callable[[], SharedLLMModel],
    folder: str | Path,
    documents: Iterable[Document],
    *,
    shards: int,
    actors: int | None = None,
    config: StoreConfig | None = None,
    embedder: Literal["auto"] | None = "auto",
    progress: Callable[[IngestReport], object] = lambda report: None,
    **options: Any,
) -> IngestReport:
    """Store documents in a store of shards, by Ray actors; what a run that was cut off has stored stays.

    A document lands whole or not at all. One that is there already as it is is passed over, so that a second run goes
    on where the first one ended; an actor that dies is started again and given its batch again.

    Args:
        load: loads the model, once in every actor, and here where the store has to be made.
        folder: of the store, made where there is none; reachable on every machine.
        documents: with ids; bad ones are reported and left out.
        shards: how many there are.
        actors: at most so many; None takes as many as there are shards or processors, whichever is fewer.
        config: of a new store.
        embedder: "auto" takes the default one for a new store; None takes none.
        progress: called with what has become of the documents so far.
        **options: of the actors, see ``ray.remote``: ``num_cpus``, ``num_gpus`` and so on.

    Raises:
        ConfigError: Ray is not installed, or the store has another number of shards.
        ShardUnavailableError: an actor died too often.
    """
    require_count("shards", shards, "shards")
    ray, folder = import_ray(), Path(folder).absolute()
    if not is_sharded(folder):
        ShardedContextStore.create(load(), folder, shards, config=config, embedder=embedder).close()
    folders = shard_folders(folder)
    require(
        shards == len(folders), "shards", shards,
        f"{folder} has {len(folders)}, and that stays; leave it so, or ingest into a new folder",
    )  # fmt: skip
    count = min(shards, actors or max(1, int(ray.cluster_resources().get("CPU", 1))))
    writer = ray.remote(Writer).options(max_restarts=3, max_task_retries=3, **options)
    pool = [writer.remote(load, folders, embedder is not None) for _ in range(count)]
    report, waiting = IngestReport(), []
    try:
        for batch in _batches(documents, shards):
            if isinstance(batch, IngestReport):
                report += batch
                continue
            number, together = batch
            # A shard has one writer, so that none waits for another.
            waiting.append(pool[number % count].add.remote(number, together))
            if len(waiting) >= WAITING * count:
                report += _first(ray, waiting)
                progress(report)
        while waiting:
            report += _first(ray, waiting)
            progress(report)
    finally:
        for actor in pool:
            ray.kill(actor)
    return report


def ingest_published(
    load: Callable[[], SharedLLMModel],
    address: str,
    documents: Iterable[Document],
    *,
    shards: int,
    staging: str | Path | None = None,
    **options: Any,
) -> tuple[IngestReport, Snapshot]:
    """:func:`ingest` into the store that is published at an address, or into a new one, and publish that.

    Args:
        load, documents, shards: as :func:`ingest` takes them.
        address: ``s3://bucket/name`` or the like.
        staging: folder in which the store is filled, reachable on every machine, new or left by a run that was cut off,
            which is gone on with; None takes one of this machine. It is removed once it is published.
        **options: further ones of :func:`ingest`.

    Raises:
        SnapshotConflictError: another one has published there meanwhile; the folder stays.
        StoreUnavailableError, StoreFormatError: the address or the folder cannot be used.
        ConfigError, ShardUnavailableError: as :func:`ingest`.
    """
    at = Address(address)
    if staging is None:
        folder = cache_folder() / "staging" / hashlib.sha256(str(at).encode()).hexdigest()[:16]
        if not is_sharded(folder):  # a store that was not made in full holds no document
            shutil.rmtree(folder, ignore_errors=True)
    else:
        folder = Path(staging)
    if not is_sharded(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(SnapshotNotFoundError):
            pull(str(at), folder)
    report = ingest(load, folder, documents, shards=shards, **options)
    snapshot = push(folder, str(at))
    shutil.rmtree(folder)
    return report, snapshot


def _first(ray: Any, waiting: list[Any]) -> IngestReport:
    """What the first to be done reports, which waits no more."""
    (done,), waiting[:] = ray.wait(waiting, num_returns=1)
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise ShardUnavailableError(
            f"An actor that writes shards died too often ({str(error).partition(chr(10))[0]}). What it has stored "
            "stays: look for the reason, memory perhaps, and ingest again."
        ) from error


def _batches(documents: Iterable[Document], shards: int) -> Iterator[tuple[int, list[Document]] | IngestReport]:
    """Documents that go to one shard together, and reports of those that cannot be stored anywhere."""
    filling: dict[int, list[Document]] = {}
    sizes: dict[int, int] = {}
    for given in documents:
        try:
            document = check_document(given, max_bytes=StoreConfig().max_document_bytes, name=f"document {given.id!r}")
        except DocumentError as error:
            yield IngestReport(refused={str(given.id): str(error)})
            continue
        number = shard_for(document.id, shards)
        filling.setdefault(number, []).append(document)
        sizes[number] = sizes.get(number, 0) + len(document.text)
        if sizes[number] >= BATCH_CHARACTERS:
            yield number, filling.pop(number)
            del sizes[number]
    yield from filling.items()


def documents_of(
    dataset: Any, *, text: str = "text", id: str = "id", metadata: Sequence[str] = ()
) -> Iterator[Document]:
    """The rows of a Ray data set as documents, read as they come.

    Args:
        dataset: a ``ray.data.Dataset``.
        text, id: names of the columns.
        metadata: names of those that become metadata.

    Raises:
        ConfigError: a column is missing.
    """
    missing = {text, id, *metadata} - set(dataset.columns())
    if missing:
        raise ConfigError(f"the data set has no column {', '.join(sorted(missing))}; it has {dataset.columns()}")
    for row in dataset.iter_rows():
        yield Document(row[text], str(row[id]), {name: row[name] for name in metadata})
