"""The namespaces of a store: each has documents, statistics, keys and values and conversations of its own."""

from __future__ import annotations

import hashlib
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from shared_context.config import StoreConfig
from shared_context.errors import StoreFormatError
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.remote.fetching import Checkout
from shared_context.store.catalogue import Catalogue
from shared_context.store.codec import Codec
from shared_context.store.conversations import Conversations
from shared_context.store.database import Database
from shared_context.store.document_store import DocumentStore
from shared_context.store.embedder import Embedder
from shared_context.store.encoding import ChunkEncoder, header_ids
from shared_context.store.format import DEFAULT_NAMESPACE
from shared_context.store.ingestion import Ingestion
from shared_context.store.kv_cache import TieredKVCache
from shared_context.store.kv_memory import KVMemory
from shared_context.store.node_data import NodeShape
from shared_context.store.node_index import NodeIndex
from shared_context.store.query import Rewrite
from shared_context.store.selections import Selections

FOLDER = "namespaces"
"""In the store's folder: a folder for each namespace, where lies what is kept of it beside the database."""

NAMESPACES_KEPT = 64
"""Namespaces that stay in memory after they were used."""


@dataclass(eq=False)
class Namespace:
    """The rooms of a namespace.

    Attributes:
        name: empty for the store's own.
        key: in the database.
        folder: where its other files lie; None for a store in memory.
        config: the store's settings with the namespace's own limits.
        cache: its keys and values.
        encoder: encodes its chunks.
        catalogue: what it holds.
        documents: adds and changes them; None where others do.
        selections: selects from them.
        conversations: its conversations; None where it has none.
    """

    name: str
    key: int
    folder: Path | None
    config: StoreConfig
    cache: TieredKVCache
    encoder: ChunkEncoder
    catalogue: Catalogue
    documents: DocumentStore | None
    selections: Selections
    conversations: Conversations | None


class Namespaces:
    """Opens the namespaces of a store.

    Args:
        model: the model that will read the selections.
        config: the store's settings.
        codec: makes codes of what the model encodes.
        embedder: None where the store has none.
        database: where all of them are kept.
        path: the store's folder; None for a store in memory.
        rewrite: makes of a query what is searched for; None takes it as it is.
        checkout: where the store was fetched from, if it was.
    """

    def __init__(
        self,
        model: SharedLLMModel,
        config: StoreConfig,
        codec: Codec,
        embedder: Embedder | None,
        database: Database,
        path: Path | None,
        rewrite: Rewrite | None,
        checkout: Checkout | None = None,
    ):
        self._model, self._config, self._codec, self._embedder = model, config, codec, embedder
        self._database, self._path, self._rewrite, self._checkout = database, path, rewrite, checkout
        # Of a store that was fetched, what is computed here lies beside the snapshots of its address.
        self._beside = path if checkout is None else checkout.kv_folder.parent
        self._memory = KVMemory(config.cache.memory_bytes)
        self._scorer = model.importance_scorer(config.importance)
        # One set of rooms at a time: each takes in what the others wrote only from other connections.
        self._open: WeakValueDictionary[str, Namespace] = WeakValueDictionary()
        self._recent: OrderedDict[str, Namespace] = OrderedDict()

    def names(self) -> list[str]:
        """Of all namespaces but the store's own, in the order of their making."""
        with self._database.snapshot():
            return [name for name, *_ in self._database.namespace_rows().values() if name != DEFAULT_NAMESPACE]

    def open(self, name: str) -> Namespace:
        """A namespace, made where it is not there."""
        with self._database.locked():
            with self._database.snapshot():
                found = self._database.namespace(name)
            if found is None:
                with self._database.transaction():
                    if self._database.namespace(name) is None:  # another process may have been faster
                        self._database.add_namespace(name)
                    found = self._database.namespace(name)
            assert found is not None  # it is made where it was missing
            namespace = self._open.get(name)
            if namespace is None or namespace.key != found[0]:  # dropped and made again by another process
                namespace = self._rooms(name, *found)
                self._open[name] = namespace
            self._recent[name] = namespace
            self._recent.move_to_end(name)
            while len(self._recent) > NAMESPACES_KEPT:
                self._recent.popitem(last=False)
            return namespace

    def own(self) -> Namespace:
        """The store's own, which is made with the store."""
        with self._database.snapshot(), self._database.decoding("the store's own namespace"):
            known = self._database.check_namespaces()
            if self._database.namespace(DEFAULT_NAMESPACE) is None:
                raise ValueError("it is missing")
        if not known and not self._database.read_only:
            with self._database.transaction():
                self._database.note_namespaces()
        return self.open(DEFAULT_NAMESPACE)

    def _rooms(self, name: str, key: int, salt: bytes) -> Namespace:
        model, embedder, codec = self._model, self._embedder, self._codec
        config = self._config if name == DEFAULT_NAMESPACE else self._with_own_limits(key)
        folder = self._folder(name, salt)
        published = self._checkout if name == DEFAULT_NAMESPACE else None
        beside = folder / "kv" if folder is not None else None
        cache = TieredKVCache(
            self._memory,
            beside if published is None else published.kv_folder,
            config.cache.disk_bytes,
            quantize=config.cache.quantize,
            importance_method=self._scorer.method,
            further=published.kv[0] if published is not None else None,
        )
        dimension = embedder.dimension if embedder is not None else 0
        shape = NodeShape(config.tree, codec.size, dimension, model.hf_model.config.vocab_size)
        catalogue = Catalogue(
            self._database,
            key,
            name,
            salt,
            self._new_index(),
            shape,
            cache,
            partial(header_ids, model, config),
            folder,
            "" if embedder is None else embedder.name,
        )
        encoder = ChunkEncoder(model, cache, config, salt, catalogue.has_chunk, self._scorer.score)
        documents = DocumentStore(catalogue, Ingestion(model, codec, embedder, config.tree), config)
        selections = Selections(model, config, codec, embedder, catalogue, encoder, salt, self._rewrite)
        conversations = Conversations(
            model, config, self._database, catalogue, documents, selections, self._new_index, embedder
        )
        return Namespace(name, key, folder, config, cache, encoder, catalogue, documents, selections, conversations)

    def _new_index(self) -> NodeIndex:
        return NodeIndex(self._config.tree, self._model.hf_model.config.vocab_size, self._model.device)

    def _folder(self, name: str, salt: bytes) -> Path | None:
        if self._path is None or self._beside is None or name == DEFAULT_NAMESPACE:
            return self._path
        folder = self._beside / FOLDER / _folder_name(salt)
        for place in (folder.parent, folder):
            if place.is_symlink():
                raise StoreFormatError(
                    f"{place} is a link, and what is kept of the namespace {name!r} would land where it leads. Put a "
                    "folder in its place, or remove it: what lies there is made anew."
                )
        return folder

    def _with_own_limits(self, key: int) -> StoreConfig:
        with self._database.snapshot():
            limit = self._database.find_meta(_limit(key))
        with self._database.decoding(_limit(key)):
            if limit is None:
                return self._config
            if not limit.isdigit():
                raise ValueError("it is no number of bytes")
            return with_disk_bytes(self._config, int(limit))

    def limit_disk(self, namespace: Namespace, disk_bytes: int) -> None:
        """Keep at most so many bytes of keys and values of a namespace on disk, whoever opens it."""
        namespace.cache.limit_disk(disk_bytes)
        namespace.config = with_disk_bytes(namespace.config, disk_bytes)
        with namespace.catalogue.changing():
            self._database.set_meta(_limit(namespace.key), str(disk_bytes).encode())

    def drop(self, namespace: Namespace) -> None:
        """Delete a namespace with all that it holds."""
        with namespace.catalogue.changing() as change:
            namespace.catalogue.remove_all(change)
            if namespace.conversations is not None:
                namespace.conversations.remove_all()
            self._database.set_meta(_limit(namespace.key), None)
            self._database.remove_namespace(namespace.key)
        self._let_go(namespace)
        if namespace.folder is not None:
            shutil.rmtree(namespace.folder, ignore_errors=True)

    def _let_go(self, namespace: Namespace) -> None:
        namespace.cache.clear()
        for held in (self._open, self._recent):
            if held.get(namespace.name) is namespace:
                del held[namespace.name]

    def keep(self) -> None:
        """Bring up to date what the next opening maps, of all that are open."""
        for namespace in list(self._open.values()):
            namespace.catalogue.keep()

    def sweep(self) -> None:
        """Let go of what is left of namespaces that are gone: in memory, and folders where a drop was cut off."""
        folders: Sequence[Path] = ()
        # What a link leads to is somebody else's.
        if self._beside is not None and not (self._beside / FOLDER).is_symlink():
            with suppress(OSError):
                folders = list((self._beside / FOLDER).iterdir())
        # Read after the folders: a namespace is in the database before it has a folder.
        with self._database.snapshot():
            rows = self._database.namespace_rows()
        alive = {_folder_name(salt) for _, salt, _ in rows.values()}
        for folder in folders:
            if folder.name not in alive:
                shutil.rmtree(folder, ignore_errors=True)
        for namespace in list(self._open.values()):
            if namespace.key not in rows:
                self._let_go(namespace)


def with_disk_bytes(config: StoreConfig, disk_bytes: int) -> StoreConfig:
    """The same settings with another limit of what is kept on disk."""
    return replace(config, cache=replace(config.cache, disk_bytes=disk_bytes))


def _folder_name(salt: bytes) -> str:
    """Of a namespace's folder, which tells nothing of its name."""
    return hashlib.sha256(b"folder" + salt).hexdigest()[:32]


def _limit(key: int) -> str:
    """What the limit of a namespace's keys and values on disk is kept under."""
    return f"disk_bytes of namespace {key}"
