"""The file of a catalogue's leaves: when it is taken in, brought up to date and overwritten."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np

from shared_context.errors import SharedContextError
from shared_context.store import leaf_file
from shared_context.store.database import CHANGES_KEPT, Database
from shared_context.store.header import header
from shared_context.store.header_index import figure_number, figures
from shared_context.store.leaf_file import LeafFile
from shared_context.store.lines import Lines
from shared_context.store.mapped_rows import MappedRows
from shared_context.store.node_data import NodeShape
from shared_context.store.node_index import NodeIndex, leaf_arrays


class MappedLeaves:
    """Takes into an index what the file has of its documents, so that only the others are read from the database.

    Args:
        path: the file; None keeps none.
        database: what the file is a copy of.
        namespace: the namespace's key.
        shape: of the node data.
        index: takes in what scoring needs of the documents.
        lines: takes in which documents there are.

    Attributes:
        path: the file; None where none is kept.
        changed: documents of the file that are others now, and are read from the database.
    """

    def __init__(
        self,
        path: Path | None,
        database: Database,
        namespace: int,
        shape: NodeShape,
        index: NodeIndex,
        lines: Lines,
    ):
        self.path = path
        self.changed: list[int] = []
        self._database, self._namespace, self._shape = database, namespace, shape
        self._index, self._lines = index, lines
        self._gone: list[int] = []
        self._due = True
        self._rows: MappedRows | None = None

    def read(self) -> LeafFile | None:
        """What the file holds; None where there is none that can be used."""
        if self.path is None:
            return None
        # Not a method, or this and the rows would hold each other, and the mapped file.
        file = LeafFile.read(self.path, self._shape, partial(_restored, self._database, self._namespace, self._shape))
        self._rows = None if file is None else file.leaves.mapped
        return file

    def adopt(self, file: LeafFile) -> int | None:
        """Take in what the file holds, where the database knows of it and all adds up.

        Returns:
            The version of the database that this is as of; None where nothing was taken in.
        """
        changes = self._database.changes(file.version)
        known_here = file.name == self._database.leaf_file(self._namespace)
        if not known_here or changes is None or not self._database.is_complete(self._namespace):
            return None
        keys, held = file.leaves.keys, file.leaves.held
        described = keys[held & (file.lines < 0)].tolist()
        conversations = self._database.conversation_keys(self._namespace)
        changed = {*changes.documents, *described, *conversations}
        sums = self._database.line_sums(self._namespace, changed)
        same = held & ~np.isin(keys, list(changed))
        # Those that went, and with another process killed before it could tell the file; then those that changed.
        total = int(file.lines[same].sum()) + sum(sums.values())
        if self._database.counted(self._namespace) != (int(same.sum()) + len(sums), total):
            return None
        known = keys[held & ~same]
        there = np.isin(known, list(sums))
        self._gone, self.changed = known[~there].tolist(), sorted({*known[there].tolist()})
        self._due = len(changes.documents) > CHANGES_KEPT // 2
        self._index.adopt(file.leaves, held)
        self._index.headers.adopt(file.headers, same[file.headed])
        self._lines.adopt(keys[held].tolist(), self._database.entries(self._namespace, conversations))
        return file.version

    def adopt_same(self, file: LeafFile | None) -> frozenset[int]:
        """Take in the leaves of those documents that the file holds as they are, and nothing else of it.

        Returns:
            Keys of these documents.
        """
        self._due = True
        if file is None:
            return frozenset()
        there = file.there(self._database.node_sums(self._namespace))
        self._gone, self.changed = file.leaves.keys[file.leaves.held & ~there].tolist(), []
        if there.any():
            self._index.adopt(file.leaves, there)
        return frozenset(file.leaves.keys[there].tolist())

    def keep(self, reading: Callable[[], AbstractContextManager[None]], *, tight: bool) -> None:
        """Bring the file up to date where it pays.

        Args:
            reading: inside of it the index is what the database holds.
            tight: also where little was deleted, to give its space back.

        Raises:
            OSError, SharedContextError: it cannot be written; nothing is lost.
        """
        if self.path is None:
            return
        tokens, (kept, held) = self._index.tokens, self._index.kept_tokens
        if tokens < leaf_file.LEAST_TOKENS:
            self.path.unlink(missing_ok=True)
            return
        changed = max(tokens - kept, held - kept) > (0 if tight else tokens // leaf_file.SHARE)
        damaged = self._rows is not None and self._rows.mended
        if changed or self._due or damaged:
            self._write(self.path, reading)
        elif self._gone or self.changed:
            with self._database.transaction():
                leaf_file.forget(self.path, self._shape, self._gone, self.changed)
            self._gone, self.changed = [], []

    def _write(self, path: Path, reading: Callable[[], AbstractContextManager[None]]) -> None:
        with reading():
            version, name = self._database.version(), secrets.randbits(62)
            path.parent.mkdir(parents=True, exist_ok=True)
            written = leaf_file.write(
                path.parent, self._shape, self._index, self._database.line_sums(self._namespace),
                self._database.node_sums(self._namespace), name, version,
            )  # fmt: skip
        try:
            with self._database.transaction():
                # Else what was deleted meanwhile would come back.
                if self._database.version() == version:
                    os.replace(written, path)
                    self._database.set_leaf_file(self._namespace, name)
                    self._gone, self.changed, self._due = [], [], False
                    mapped = self.read()
                    if mapped is not None:
                        self._index.adopt(mapped.leaves, mapped.leaves.held)
                        self._index.headers.adopt(mapped.headers, np.ones(len(mapped.headed), bool))
        finally:
            written.unlink(missing_ok=True)

    def overwrite(self, keys: Collection[int], described: Collection[int]) -> None:
        """Let nothing be left in the file of documents, and nothing of how others were described before.

        Args:
            keys: documents that are gone.
            described: documents that got other metadata.
        """
        if not (keys or described) or self.path is None or not self.path.exists():
            return
        try:
            with self._database.transaction():
                leaf_file.forget(self.path, self._shape, keys, described)
        except (OSError, SharedContextError):
            self.path.unlink(missing_ok=True)


def _restored(database: Database, namespace: int, shape: NodeShape, key: int) -> dict[str, np.ndarray] | None:
    """What a database has of a document, as rows of the file, which is damaged; None where it has none any more.

    Raises:
        StoreFormatError: it is damaged in the database as well.
    """
    entry = database.entries(namespace, [key]).get(key)
    if entry is None:
        return None
    arrays = leaf_arrays(shape.tree, *database.nodes(key, shape))
    rows = {name: tensor.numpy() for name, tensor in vars(arrays).items()}
    if (of_header := database.headers([key], shape).get(key)) is not None:
        rows |= {f"header_{name}": values for name, values in vars(of_header).items()}
        found = map(figure_number, figures(header(entry.metadata, entry.unsearched_keys)))
        rows["figures"] = np.array(sorted(set(found)), np.int64)
    return rows
