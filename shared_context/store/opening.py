"""Opening a store: made where it is missing, and compared with what it is opened with."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from shared_context.config import StoreConfig, require
from shared_context.errors import StoreFormatError
from shared_context.model.cache import give_back_freed
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.remote.address import is_address
from shared_context.remote.fetching import Checkout, check_out
from shared_context.remote.snapshot import Snapshot
from shared_context.store.about import About, check_window
from shared_context.store.codec import Codec
from shared_context.store.database import Database
from shared_context.store.embedder import Embedder, load_default_embedder
from shared_context.store.encoding import chunk_digest
from shared_context.store.namespaces import Namespace, Namespaces
from shared_context.store.query import Rewrite
from shared_context.store.sqlite_file import is_vacant


@dataclass(frozen=True)
class OpenedStore:
    """What an open store is made of.

    Attributes:
        path: its folder; None in memory.
        config: its settings.
        embedder: None where it has none.
        database: what is kept.
        namespaces: opens those beside its own.
        own: the namespace of its own documents.
        checkout: where it was fetched from, if it was.
        files: closes all of it.
    """

    path: Path | None
    config: StoreConfig
    embedder: Embedder | None
    database: Database
    namespaces: Namespaces
    own: Namespace
    checkout: Checkout | None
    files: ExitStack


def _folder(path: str | Path) -> Path:
    folder = Path(path).absolute()
    try:
        named = b"\0" not in os.fsencode(folder)
    except UnicodeEncodeError:
        named = False
    require(named, "path", str(path), "has characters that no folder's name can have; give another one")
    return folder


def open_store(
    model: SharedLLMModel,
    path: str | Path | None,
    config: StoreConfig | None,
    embedder: Embedder | Literal["auto"] | None,
    rewrite: Rewrite | None,
) -> OpenedStore:
    """Open a store; arguments and errors are those of the store's class."""
    known = embedder is None or embedder == "auto" or isinstance(embedder, Embedder)
    require(known, "embedder", embedder, "must be 'auto', None or an object with name, dimension and encode()")
    device = str(model.device)
    with ExitStack() as files:
        checkout: Checkout | None = None
        if is_address(path):
            checkout = check_out(path, partial(_check_snapshot, model, path))
            files.callback(checkout.release)
            path = checkout.folder
        folder = _folder(path) if path is not None else None
        made_with: Embedder | None = None
        if checkout is not None:
            database = Database(folder, read_only=True)
        elif folder is None or is_vacant(folder):
            made_with = load_default_embedder(device) if embedder == "auto" else embedder
            database = _make(model, folder, config or StoreConfig(), made_with)
        else:
            database = Database(folder, digest=chunk_digest)
        files.enter_context(closing(database))
        # Read back even where it was just made: another process may have been faster.
        with database.decoding():
            about = About.from_bytes(database.get_meta("about"))
        about.check_model(model, folder)
        own_embedder = about.chosen_embedder(embedder, made_with, folder, device)
        config = about.chosen_config(config, folder)
        check_window(model, config)
        database.mend_words(config.tree.leaf_size)
        with database.decoding():
            codec = Codec.from_bytes(database.get_meta("codec"))
            if len(codec.mean) != model.hf_model.config.hidden_size:
                raise ValueError("its codec is another model's")
        namespaces = Namespaces(model, config, codec, own_embedder, database, folder, rewrite, checkout)
        own = namespaces.own()
        namespaces.sweep()
        if own.documents is not None:
            own.documents.mend_headers()  # takes everything in
        own.catalogue.keep()
        return OpenedStore(folder, config, own_embedder, database, namespaces, own, checkout, files.pop_all())


def _check_snapshot(model: SharedLLMModel, place: str, snapshot: Snapshot) -> None:
    """Refuse a snapshot before it is fetched."""
    About.from_dict(snapshot.about).check_model(model, place)
    if len(snapshot.stores) > 1:
        raise StoreFormatError(
            f"{place} is a store of {len(snapshot.stores)} shards: open it with "
            "shared_context.shards.ShardedContextStore."
        )


def _make(model: SharedLLMModel, path: Path | None, config: StoreConfig, embedder: Embedder | None) -> Database:
    """A new store's database. What it needs is made first, so that a failure leaves no half-made store."""
    check_window(model, config)
    about = About.of(model, embedder, config)
    codec = Codec.fit(model, config.code_size)
    give_back_freed()
    return Database(path, {"about": about.to_bytes(), "codec": codec.to_bytes()})
