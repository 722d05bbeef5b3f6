"""Checking a store for damage, and keeping what is whole of it. No model is needed for either."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from shared_context.errors import SharedContextError, StoreFormatError
from shared_context.store.about import About
from shared_context.store.codec import Codec
from shared_context.store.database import LEAF_FILE, Database
from shared_context.store.format import OF_CONVERSATION, OF_NAMESPACE
from shared_context.store.leaf_words import LeafWords
from shared_context.store.node_data import NodeShape, Part
from shared_context.store.sqlite_file import FILE, UNFINISHED, access, give_name
from shared_context.store.word_index import FIRST_NAMESPACE, KEYS

ANY_TOKEN = 1 << 31
"""Token ids lie below it whatever the model is."""


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        documents: how many are whole.
        conversations: how many are whole.
        damage: what is hurt or missing, each in a sentence.
        repaired: whether the store holds what is whole, and nothing else, now.
    """

    documents: int = 0
    conversations: int = 0
    damage: list[str] = field(default_factory=list)
    repaired: bool = False


def check(folder: Path, *, repair: bool = False) -> CheckReport:
    """Read all that a store holds and compare it with its checksums.

    Args:
        folder: the store's.
        repair: where something is hurt, keep the rest: the file is made anew of all that is whole. No other process
            may be using the store.

    Raises:
        StoreFormatError: the folder holds no store, or one of which nothing can be read.
        StoreUnavailableError: it cannot be read or written now.
    """
    report = CheckReport()
    database = Database(folder)
    try:
        with database.decoding():
            about = About.from_bytes(database.get_meta("about"))
            size = Codec.from_bytes(database.get_meta("codec")).size
        shape = NodeShape(about.config.tree, size, about.dimension, ANY_TOKEN)
        whole = _Whole(database, shape, report)
        if not repair:
            whole.meta()
            for _ in whole.all():
                pass
            return report
        with _made(folder, whole.meta(), whole.all()) as made:
            if report.damage:
                database.close()
                for log in (f"{FILE}-wal", f"{FILE}-shm"):
                    (folder / log).unlink(missing_ok=True)
                os.replace(made, folder / FILE)
                report.repaired = True
        return report
    finally:
        database.close()


def copy_namespace(database: Database, namespace: int, shape: NodeShape, folder: Path) -> None:
    """Write a namespace into another folder, whose own documents its documents become.

    Args:
        database: where it is; nothing is being read or written there by this thread, or one snapshot is.
        namespace: its key.
        shape: of the node data.
        folder: as :func:`~shared_context.store.sqlite_file.is_vacant`.

    Raises:
        StoreFormatError: something in it is damaged.
        StoreUnavailableError: the folder cannot be written.
    """
    report = CheckReport()
    whole = _Whole(database, shape, report)
    meta = {key: database.get_meta(key) for key in ("about", "codec")}
    with access(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _made(folder, meta, whole.of_namespace(namespace, "", FIRST_NAMESPACE)) as made:
        if report.damage:
            raise StoreFormatError(f"The namespace is damaged ({report.damage[0]}); `shared-context check` tells more.")
        with access(folder):
            give_name(made, folder / FILE)


@contextmanager
def _made(folder: Path, meta: Mapping[str, bytes], steps: Iterable[Callable[[Database], object]]) -> Iterator[Path]:
    """A store's file in a folder, under a name that is nobody's; it goes unless it is given another."""
    temporary = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}copy.", dir=folder))
    try:
        copy = Database(temporary / "store", meta)
        try:
            with copy.transaction():
                for put in steps:
                    put(copy)
        finally:
            copy.close()
        yield temporary / "store" / FILE
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Whole:
    """What of a store is whole, as steps that write it into another one; what is not is reported."""

    def __init__(self, database: Database, shape: NodeShape, report: CheckReport):
        self._database, self._shape, self._report = database, shape, report

    def meta(self) -> dict[str, bytes]:
        """The values of the store as a whole; without those that it opens with nothing can be read."""
        values = {}
        with self._database.snapshot():
            for key in self._database.meta_keys():
                if key == KEYS or key.startswith((LEAF_FILE, OF_NAMESPACE, OF_CONVERSATION)):
                    continue  # made anew, or written with what they are of
                try:
                    values[key] = self._database.get_meta(key)
                except StoreFormatError as error:
                    if key in ("about", "codec"):
                        raise
                    self._report.damage.append(_reason(error, key))
        return values

    def all(self) -> Iterator[Callable[[Database], object]]:
        """Steps in the order in which they have to be taken."""
        with self._database.snapshot():
            for line in self._database.integrity():
                self._report.damage.append(f"the file: {line}")
            if not self._database.words.is_whole(self._shape.tree.leaf_size, thorough=True):
                self._report.damage.append("the index of words: its checksum is wrong")
            else:
                self._report.damage += self._database.numbering()
            told = self._database.told_namespaces()
            rows = self._database.namespace_rows()
            names = {name for name, _ in told.values()}
            for namespace in sorted(told | rows):
                if namespace not in told and rows[namespace][0] in names:
                    continue  # one of these, under another number
                name, salt, count = rows.get(namespace) or (*told[namespace], 0)
                if namespace not in rows or told.get(namespace, (name, salt)) != (name, salt):
                    name, salt = told[namespace]
                    self._report.damage.append(f"namespace {name!r}: its row is missing or says something else")
                yield from self._of_namespace(namespace, name, salt, count, namespace)

    def of_namespace(self, namespace: int, name: str, new: int) -> Iterator[Callable[[Database], object]]:
        """Those of one namespace, inside of a snapshot.

        Args:
            namespace: its key.
            name: its name in the other store.
            new: its key there.
        """
        _, salt, expected = self._database.namespace_rows()[namespace]
        yield from self._of_namespace(namespace, name, salt, expected, new)

    def _of_namespace(
        self, namespace: int, name: str, salt: bytes, expected: int, new: int
    ) -> Iterator[Callable[[Database], object]]:
        yield lambda copy: copy.restore_namespace(new, name, salt)
        found = 0
        for key in self._database.readable_keys(namespace):
            step = self._step(namespace, key, new)
            found += 1
            if step is not None:
                yield step
        if found < expected:
            self._report.damage.append(f"{expected - found} documents are missing")
        for id in self._database.conversations(namespace):
            if (step := self._conversation(namespace, id, new)) is not None:
                yield step

    @cached_property
    def _header_keys(self) -> dict[int, int]:
        return self._database.header_keys()

    def _step(self, namespace: int, key: int, new: int) -> Callable[[Database], object] | None:
        database = self._database
        try:
            (entry,) = database.entries(namespace, [key]).values()
            texts = database.texts(key)
            parts = database.parts(key, self._shape)
            header = database.header(self._header_keys.get(key, key), self._shape)
        except (SharedContextError, ValueError, sqlite3.DatabaseError) as error:
            self._report.damage.append(_reason(error, f"document number {key}"))
            return None
        words = LeafWords.of_chunks([(stored.text, stored.tokens) for stored in texts], self._shape.tree.leaf_size)
        named = [
            (digest, Part(stored, replace(nodes, words=own)))
            for stored, (digest, nodes), own in zip(texts, parts, words, strict=True)
        ]
        if entry.kind == "document":
            self._report.documents += 1
        return lambda copy: copy.insert(new, entry, named, header)

    def _conversation(self, namespace: int, id: str, new: int) -> Callable[[Database], object] | None:
        try:
            messages = self._database.messages(namespace, id)
            recent = self._database.messages(namespace, id, recent=True)
        except (SharedContextError, sqlite3.DatabaseError) as error:
            self._report.damage.append(_reason(error, f"conversation {id!r}"))
            return None
        self._report.conversations += 1

        def put(copy: Database) -> None:
            for row in messages:
                copy.add_message(new, id, row.message, row.tokens)
            copy.mark_compressed(new, id, len(messages) - len(recent))

        return put


def _reason(error: Exception, what: str) -> str:
    if isinstance(error, StoreFormatError) and "(" in str(error):
        return str(error).split("(", 1)[1].split("). ", 1)[0]
    return f"{what}: {error}"
