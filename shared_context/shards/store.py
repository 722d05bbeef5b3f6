"""A store of shards, with the face of a store."""

from __future__ import annotations

import copy
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from shared_context.config import StoreConfig, require, require_count
from shared_context.errors import StoreFormatError, StoreUnavailableError
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.remote.address import is_address
from shared_context.remote.fetching import Checkout, check_out, store_folders
from shared_context.remote.snapshot import Snapshot
from shared_context.shards.catalogue import ShardedCatalogue
from shared_context.shards.crew import Crew, LocalWorkers, Missing, Workers
from shared_context.shards.documents_only import DocumentsOnly
from shared_context.shards.index import MOST_SHARDS
from shared_context.shards.made import made_together
from shared_context.shards.published_kv import PublishedKV
from shared_context.shards.shard import Place
from shared_context.shards.writing import Writers
from shared_context.store.about import About, check_window
from shared_context.store.catalogue import Catalogue
from shared_context.store.codec import Codec
from shared_context.store.document_store import Progress
from shared_context.store.documents import Document
from shared_context.store.embedder import Embedder
from shared_context.store.encoding import ChunkEncoder
from shared_context.store.filters import compile_filter
from shared_context.store.format import DEFAULT_NAMESPACE
from shared_context.store.kv_cache import TieredKVCache
from shared_context.store.loading import OnError, Source, load_documents
from shared_context.store.namespaces import Namespace
from shared_context.store.part_rows import DIGEST_BYTES
from shared_context.store.query import Rewrite
from shared_context.store.selected import Passage
from shared_context.store.selection import Selection
from shared_context.store.selections import Selections
from shared_context.store.shard_folders import folders_of, note_shards, shard_folders
from shared_context.store.store import SharedLLMContextStore

T = TypeVar("T")


class ShardedContextStore(DocumentsOnly):
    """Several stores as one: a query's selection is that of a single store of all their documents.

    Frequencies of tokens and words and the statistics of scores are those of the whole; what is compared with a query
    stays where the shards are, which are asked side by side. Documents come in the order of the shards.

    It has no conversations; keep these in a store of their own.

    Args:
        model: the model that will read the selections.
        path: a folder made by :meth:`create`, or the address of a published store of shards, for reading only.
        config: settings; None takes the stored ones.
        embedder, rewrite: as in :class:`~shared_context.store.store.SharedLLMContextStore`.
        missing: "raise" fails where a shard does not answer; "answer" answers from the others, and the selection's
            ``missing_shards`` says so.
        workers: where the shards run, given their places and what else a
            :class:`~shared_context.shards.shard.Shard` takes, such as
            :class:`~shared_context.shards.ray_workers.RayWorkers`; None runs them in threads of this process.

    Raises:
        StoreFormatError: the place holds no store of shards, one is missing, or they were made apart.
        ShardUnavailableError: a shard cannot be started.
        ModelMismatchError, ConfigError, StoreUnavailableError, SnapshotNotFoundError: as for a store.
    """

    def __init__(
        self,
        model: SharedLLMModel,
        path: str | Path,
        *,
        config: StoreConfig | None = None,
        embedder: Embedder | Literal["auto"] | None = "auto",
        rewrite: Rewrite | None = None,
        missing: Missing = "raise",
        workers: Callable[[Sequence[Place], int, bool, str], Workers] | None = None,
    ):
        require(missing in ("raise", "answer"), "missing", missing, "must be 'raise' or 'answer'")
        self.model, self._rewrite, self._checkout = model, rewrite, None
        self._opened = ExitStack()
        with ExitStack() as opened:
            self.path, places = self._place(path, opened)
            started = (workers or LocalWorkers)(
                places, model.hf_model.config.vocab_size, self._checkout is not None, str(model.device)
            )
            self._crew = Crew(started, missing)
            opened.callback(self._crew.close)
            self._set_up_shards(config, embedder)
            opened.callback(self._writers.close)
            opened.callback(self._catalogue.close)
            self._crew.answered(self._look)
            self._opened = opened.pop_all()

    def _place(self, path: str | Path, opened: ExitStack) -> tuple[Path, Sequence[Place]]:
        """The folder of the store, and where its shards are."""
        if not is_address(path):
            folder = Path(path).absolute()
            self._folders = shard_folders(folder)
            return folder, self._folders
        checkout = self._checkout = check_out(path, lambda snapshot: self._check(snapshot, path), shards=())
        opened.callback(_release, checkout)
        self._folders = store_folders(checkout.folder, len(checkout.snapshot.stores))
        at = f"{checkout.address}@{checkout.snapshot.number}"
        return checkout.folder, [(at, number) for number in range(len(self._folders))]

    def _check(self, snapshot: Snapshot, place: str) -> None:
        About.from_dict(snapshot.about).check_model(self.model, place)
        if len(snapshot.stores) == 1:
            raise StoreFormatError(f"{place} is a store of one file: open it with SharedLLMContextStore.")

    def _set_up_shards(self, config: StoreConfig | None, embedder: Embedder | Literal["auto"] | None) -> None:
        assert self.path is not None  # shards lie in a folder
        first = made_together(self._crew.answered(partial(self._crew.ask_all, "made_with")), self.place)
        about = About.from_bytes(first[0])
        about.check_model(self.model, self.path)
        self.embedder = about.chosen_embedder(embedder, None, self.path, str(self.model.device))
        self.config = about.chosen_config(config, self.path)
        check_window(self.model, self.config)
        model, cache = self.model, self.config.cache
        scorer = model.importance_scorer(self.config.importance)
        self._cache = TieredKVCache(
            cache.memory_bytes,
            self.path / "kv" if self._checkout is None else self._checkout.kv_folder,
            cache.disk_bytes,
            quantize=cache.quantize,
            importance_method=scorer.method,
            further=None if self._checkout is None else PublishedKV(self._checkout),
        )
        self._catalogue = ShardedCatalogue(self._crew, self.config.tree, model.device)
        self._writers = Writers(self._open_writer, len(self._folders), self._catalogue)
        # It is asked like the catalogue of one store, as far as selections and what they rest on ask one.
        catalogue = cast(Catalogue, self._catalogue)
        self._encoder = ChunkEncoder(model, self._cache, self.config, first[2], self._catalogue.has_chunk, scorer.score)
        self._selections = Selections(
            model,
            self.config,
            Codec.from_bytes(first[1]),
            self.embedder,
            catalogue,
            self._encoder,
            first[2],
            self._rewrite,
        )
        # Documents are changed, and conversations kept, by the stores that the shards are.
        self._namespace = Namespace(
            DEFAULT_NAMESPACE, 0, self.path, self.config, self._cache, self._encoder, catalogue, None,
            self._selections, None,
        )  # fmt: skip
        self._let_go = False

    def _look(self) -> None:
        with self._catalogue.reading():
            pass

    @classmethod
    def create(
        cls,
        model: SharedLLMModel,
        path: str | Path,
        shards: int,
        *,
        config: StoreConfig | None = None,
        embedder: Embedder | Literal["auto"] | None = "auto",
        **options: Any,
    ) -> ShardedContextStore:
        """Make a store of so many empty shards in a new folder, and open it; options as in the class.

        Raises:
            ConfigError: there would be too many shards, or too few.
            StoreFormatError: the folder holds something already.
        """
        require_count("shards", shards, "shards")
        require(shards <= MOST_SHARDS, "shards", shards, f"must be at most {MOST_SHARDS}")
        folder = Path(path).absolute()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreFormatError(f"{folder} holds something already; give a new folder.")
        # Whole under another name first: what is cut off leaves no half of a store.
        unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
        folders = folders_of(unfinished, shards)
        try:
            # All are copies of one, so that their codes compare and their chunks have names in common.
            with SharedLLMContextStore(model, folders[0], config=config, embedder=embedder) as first:
                for other in folders[1:]:
                    first.persist(other)
                chosen = first.embedder
            note_shards(unfinished, shards)
            if folder.exists():
                folder.rmdir()
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return cls(model, folder, embedder=chosen, **options)

    # Answering

    @property
    def missing_shards(self) -> tuple[str, ...]:
        """Names of the shards that have not answered, which the others answer without; see :meth:`recall`."""
        return tuple(self._folders[number].name for number in sorted(self._crew.lost))

    def recall(self) -> None:
        """Ask those shards again that have not answered."""
        self._crew.recall()

    def _at_one_moment(self, ask: Callable[[], T]) -> T:
        """What is asked, again where a document is missing because its shard has changed meanwhile."""
        while True:
            try:
                return self._crew.answered(ask)
            except StoreFormatError:
                if not self._catalogue.changed():
                    raise

    def select(self, query: str | None, **options: Any) -> Selection:
        """Choose what a query is shown; see :meth:`~shared_context.store.store.SharedLLMContextStore.select`."""
        selection = self._at_one_moment(partial(super().select, query, **options))
        selection.missing_shards = self.missing_shards
        return selection

    def retrieve(self, query: str, k: int = 5, **options: Any) -> list[Passage]:
        """The ``k`` best passages; see :meth:`~shared_context.store.store.SharedLLMContextStore.retrieve`."""
        return self._at_one_moment(partial(super().retrieve, query, k, **options))

    def selection_from(self, spans: Iterable[Sequence[Any]], query: str | None = None, **options: Any) -> Selection:
        """The selection of given characters, as for a store."""
        return self._at_one_moment(partial(super().selection_from, list(spans), query, **options))

    # Documents

    def add(
        self,
        source: Source,
        *,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        replace: bool = False,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        on_error: OnError = "skip",
        atomic: bool = False,
        progress: Progress | None = None,
    ) -> list[str]:
        """Store documents whole, each in the shard of its id; arguments as for a store, but that nothing is atomic.

        Raises:
            ConfigError: ``atomic`` is asked for: shards land one after the other.
            DocumentError, BatchError: as for a store.
        """
        require(not atomic, "atomic", atomic, "a store of shards cannot do that: they land one after the other")
        documents = load_documents(
            source,
            id=id,
            metadata=metadata,
            max_bytes=self.config.max_document_bytes,
            stored=() if replace else self,
            include=include,
            exclude=exclude,
            on_error=on_error,
        )
        return self._writers.add(documents, replace=replace, on_error=on_error, progress=progress)

    def _open_writer(self, number: int) -> SharedLLMContextStore:
        if self._checkout is not None:
            raise StoreUnavailableError(
                f"{self.place} is open for reading only: pull it into a folder, change that, and push it."
            )
        return SharedLLMContextStore(self.model, self._folders[number], config=self.config, embedder=self.embedder)

    def update(self, id: str, text: str | None = None, metadata: Mapping[str, Any] | None = None) -> None:
        """Replace a document's text, its metadata, or both; as for a store."""
        self._writers.of_document(id).update(id, text, metadata)

    def append(self, id: str, text: str) -> None:
        """Add text at the end of a document; as for a store."""
        self._writers.of_document(id).append(id, text)

    def delete(self, ids: str | Iterable[str]) -> None:
        """Delete documents; where an id is unknown, none. Shards land one after the other."""
        self._writers.delete([ids] if isinstance(ids, str) else ids)
        self.gc()

    def get(self, id: str) -> Document:
        """A document as it was stored."""
        return self._at_one_moment(partial(self._get, id))

    def _get(self, id: str) -> Document:
        with self._catalogue.reading():
            key = self._catalogue.key(id)
            entry, text = self._catalogue.entry(key), self._catalogue.text(key).text
            return Document(text, id, copy.deepcopy(entry.metadata), entry.unsearched_keys, entry.hidden_keys)

    def ids(self, filters: Mapping[str, Any] | None = None) -> list[str]:
        """Ids of the documents that a filter lets through, in their order."""
        passes = compile_filter(filters)
        return self._at_one_moment(partial(self._ids, passes))

    def _ids(self, passes: Callable[[Mapping[str, Any]], bool]) -> list[str]:
        with self._catalogue.reading():
            entries = self._catalogue.entries(self._catalogue.documents())
            return [entry.id for entry in entries if passes(entry.metadata)]

    def __len__(self) -> int:
        return self._crew.answered(self._count)

    def _count(self) -> int:
        with self._catalogue.reading():
            return len(self._catalogue.documents())

    def __contains__(self, id: object) -> bool:
        return self._crew.answered(partial(self._holds, id))

    def _holds(self, id: object) -> bool:
        with self._catalogue.reading():
            return self._catalogue.find("document", id) is not None

    # The whole store

    def stats(self) -> dict[str, Any]:
        """Sizes and counts of all shards together."""
        with self._catalogue.reading():
            states, index = self._catalogue.states.values(), self._catalogue.index
            leaves = index.leaves()
            return {
                "path": self.place,
                "model": self.model.name,
                "fingerprint": self.model.fingerprint,
                "embedder": self.embedder.name if self.embedder is not None else None,
                "shards": len(self._folders),
                "missing_shards": list(self.missing_shards),
                "documents": len(index),
                "conversations": sum(state.conversations for state in states),
                "tokens": index.tokens,
                "chunks": len(leaves.chunk_length) if leaves is not None else 0,
                "leaves": len(leaves) if leaves is not None else 0,
                "leaf_size": self.config.tree.leaf_size,
                "database_bytes": sum(state.database_bytes for state in states),
                "code_bytes": sum(state.code_bytes for state in states),
                "kv_cache": self._cache.stats(),
            }

    def limit_kv(self, disk_bytes: int) -> None:
        """Keep at most so many bytes of keys and values, from now on; as for a store."""
        self._cache.limit_disk(disk_bytes)
        for writer in self._writers.all():
            writer.limit_kv(disk_bytes)
        self.config = self._writers.of(0).config

    def gc(self, keep: int | None = None) -> None:
        """Drop keys and values that no document has; as for a store."""
        self._cache.retain(self._catalogue.alive, 2 * DIGEST_BYTES)
        if keep is not None:
            self._cache.trim_disk(keep)

    def compact(self) -> None:
        """Give the space of what was deleted back to the file system, shard by shard."""
        for writer in self._writers.all():
            writer.compact()
        self.gc()

    def persist(self, path: str | Path) -> None:
        """Copy the store, without its KV cache, to a new folder; as for a store."""
        folder = Path(path)
        if self.path is not None and folder.resolve() == self.path.resolve():
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreFormatError(f"{folder} holds something already; give a new folder.")
        for writer, shard in zip(self._writers.all(), self._folders, strict=True):
            writer.persist(folder / shard.name)
        note_shards(folder, len(self._folders))

    def close(self) -> None:
        """Close all shards. Everything added is stored already; closing twice does no harm."""
        self._opened.close()


def _release(checkout: Checkout) -> None:
    with suppress(FileNotFoundError):
        checkout.release()
