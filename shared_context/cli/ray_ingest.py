"""`shared-context ingest --ray`: files into a store of shards by Ray actors, in a folder or at an address."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shared_context.cli import session
from shared_context.progress import progress
from shared_context.remote.address import is_address

if TYPE_CHECKING:
    from shared_context import Document, SharedLLMModel, StoreConfig
    from shared_context.shards.ray_ingest import IngestReport

AUTO = "auto"
"""As the address of a cluster: the one that is there, or one of this machine."""


def ingest(
    place: Path | str,
    documents: Iterable[Document],
    *,
    total: int,
    ray: str,
    shards: int | None,
    staging: Path | None,
    model: str | None,
    config: StoreConfig | None,
    use_embedder: bool,
    loading: Mapping[str, Any],
) -> IngestReport:
    """Store documents by Ray actors.

    Args:
        place: a store's folder, or an address where it is published.
        documents: with ids; read as they are needed.
        total: how many there are about.
        ray: address of a cluster, or AUTO.
        shards: of the store; None takes those that it has.
        staging: folder in which a store is filled before it is published.
        model, config, use_embedder: of a new store.
        loading: how the model is loaded besides.
    """
    from shared_context.model.pretrained import DEFAULT_MODEL
    from shared_context.shards.opening import made_with
    from shared_context.shards.ray_ingest import ingest, ingest_published
    from shared_context.shards.ray_workers import import_ray

    known = _shards_of(place)
    if shards is None and known is None:
        raise typer.BadParameter("says how many shards the new store has.", param_hint="--shards")
    if model is None:
        model = DEFAULT_MODEL if known is None else made_with(place)["model"]
    import_ray(None if ray == AUTO else ray)
    with progress() as advance:

        def show(report: IngestReport) -> None:
            advance(report.stored + report.known + len(report.refused), total, "documents")

        options: dict[str, Any] = {
            "shards": shards or known,
            "config": config,
            "embedder": "auto" if use_embedder else None,
            "progress": show,
        }
        load: Callable[[], SharedLLMModel] = partial(session.load_model, model, **loading)
        if is_address(place):
            report, _ = ingest_published(load, str(place), documents, staging=staging, **options)
            return report
        return ingest(load, place, documents, **options)


def _shards_of(place: Path | str) -> int | None:
    """How many shards a store has; None where there is no store."""
    from shared_context.errors import SnapshotNotFoundError
    from shared_context.remote.address import Address
    from shared_context.remote.snapshot import find
    from shared_context.store.shard_folders import is_sharded, shard_folders

    if is_address(place):
        try:
            return len(find(Address(place)).stores)
        except SnapshotNotFoundError:
            return None
    if is_sharded(Path(place)):
        return len(shard_folders(Path(place)))
    if session.is_store(place):
        raise typer.BadParameter(f"{place} is a store of one file: --ray fills stores of shards.", param_hint="STORE")
    return None
