"""A file that keeps how the prefilter divides a store's spans into lists, so that few processes have to learn it.

It has no embeddings, which are in the store: of each list it has the mean direction of its spans, and of each span its
list and a sum of the bits of its embedding, by which it is known again. What a deleted document leaves behind goes: its
spans are taken out, and the directions of their lists computed anew without them.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from shared_context.errors import SharedContextError
from shared_context.store.database import Database
from shared_context.store.leaf_file import is_regular
from shared_context.store.node_data import NodeShape
from shared_context.store.node_index import NodeIndex
from shared_context.store.sqlite_file import UNFINISHED

logger = logging.getLogger(__name__)

FILE = "spans.safetensors"
"""In the folder of a store or namespace."""

FORMAT = 1
"""Raised by one where files that were written before are not to be read any more."""

SPAN_BITS = 24
"""Lowest bits of a span's id, which say which span of its document it is; the others are the document's key."""


Embeddings: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Of spans by their documents' keys and their numbers there, float32 [spans, dimension]."""


@dataclass(frozen=True)
class SpanLists:
    """How spans are divided into lists.

    Attributes:
        directions: of unit length, of each list the mean of its spans, float32 [lists, dimension]; zeros where it has
            none.
        ids: of the spans, rising, int64 [spans].
        lists: of each its list, int64 [spans].
        sums: of each :func:`bit_sums` of its embedding, int64 [spans].
        learned: how many spans there were when the lists were made, int64 [1].
    """

    directions: np.ndarray
    ids: np.ndarray
    lists: np.ndarray
    sums: np.ndarray
    learned: np.ndarray

    def of(self, ids: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """The lists of spans with these sums, int64 [ids]; -1 of those that are not known."""
        if not len(self.ids):
            return np.full(len(ids), -1)
        places = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        return np.where((self.ids[places] == ids) & (self.sums[places] == sums), self.lists[places], -1)

    def without(self, gone: np.ndarray, embeddings: Embeddings) -> SpanLists:
        """The same after spans went.

        Args:
            gone: which of them, bool [spans].
            embeddings: of spans that stay.
        """
        directions, stays = self.directions.copy(), ~gone
        for number in np.unique(self.lists[gone]).tolist() if len(directions) else ():
            ids = self.ids[stays & (self.lists == number)]
            directions[number] = 0
            if len(ids):
                found = embeddings(ids >> SPAN_BITS, ids & (1 << SPAN_BITS) - 1)
                directions[number] = mean_directions([(found, np.zeros(len(ids), np.int64))], (1, found.shape[1]))[0]
        return replace(self, directions=directions, ids=self.ids[stays], lists=self.lists[stays], sums=self.sums[stays])


def mean_directions(batches: Iterable[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int]) -> np.ndarray:
    """The mean of the embeddings in each list, of unit length, float32 ``shape``; zeros where there is none.

    Args:
        batches: embeddings, float32 [spans, dimension], and of each its list, int64 [spans].
        shape: lists and dimension.
    """
    sums = torch.zeros(shape)
    for embeddings, lists in batches:
        sums.index_add_(0, torch.from_numpy(lists), torch.from_numpy(embeddings))
    return torch.nn.functional.normalize(sums, dim=1).numpy()


def bit_sums(embeddings: np.ndarray) -> np.ndarray:
    """Of each embedding the sum of its numbers' bits, taken as integers, int64 [spans]."""
    return np.ascontiguousarray(embeddings, np.float32).view(np.uint32).sum(axis=1, dtype=np.int64)


class SpanFile:
    """The file of a store's or namespace's span lists.

    Args:
        folder: where it lies.
        embedder: the name of what made the embeddings.
        shape: of the node data.
        database: of the store, in whose transactions it is written.

    Attributes:
        path: its path; it may be missing.
    """

    def __init__(self, folder: Path, embedder: str, shape: NodeShape, database: Database):
        self._database = database
        self.path = folder / FILE
        tokens = shape.tree.leaf_size * shape.tree.embedded_leaves
        self._described = json.dumps([FORMAT, embedder, shape.dimension, tokens, SPAN_BITS])

    def read(self) -> SpanLists | None:
        """What it holds; None where it is missing, damaged or another store's, which the log says."""
        held = self._held()
        if held is None:
            logger.info("%s is made anew: it is missing, damaged or of other spans.", self.path)
        return held

    def _held(self) -> SpanLists | None:
        try:
            if not is_regular(self.path):
                return None
            with safe_open(self.path, "np") as file:
                about = file.metadata() or {}
                found = SpanLists(*(file.get_tensor(field.name) for field in fields(SpanLists)))
        except (OSError, SafetensorError, ValueError):
            return None
        return found if about == self._about(found) else None

    def write(self, lists: Callable[[], SpanLists], true: Callable[[], bool]) -> None:
        """Put other lists in its place; nothing is lost where that fails.

        Args:
            lists: gives them.
            true: whether they are of what there is, asked while nobody else writes.
        """
        if self._database.read_only:
            return
        unfinished = self.path.parent / f"{UNFINISHED}{secrets.token_hex(8)}.{FILE}"
        try:
            with self._database.transaction():
                if not true() or (self.path.exists() and not is_regular(self.path)):
                    return
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(unfinished, "wb") as file:
                    file.write(self._bytes(lists()))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(unfinished, self.path)
        except (OSError, SharedContextError) as error:
            logger.debug("%s cannot be written (%s); the next process learns it anew.", self.path, error)
        finally:
            unfinished.unlink(missing_ok=True)

    def forget(self, index: NodeIndex) -> None:
        """Overwrite what it holds of documents that are gone; one that is damaged goes.

        Args:
            index: of the documents that are there.
        """
        held = self._held()
        if not is_regular(self.path) or (held is not None and not _gone(held, index).any()):
            return
        try:
            with self._database.transaction():
                # Looked at again, for another process may have been writing.
                held = self._held()
                if held is None:
                    self.path.unlink(missing_ok=True)
                elif (gone := _gone(held, index)).any():
                    self._overwrite(held.without(gone, index.embeddings))
        except (OSError, SharedContextError):
            self.path.unlink(missing_ok=True)

    def _overwrite(self, lists: SpanLists) -> None:
        data = self._bytes(lists)
        with open(self.path, "r+b") as file:
            # Should this be cut off, the file is of no use to anybody.
            file.write(bytes(8))
            file.flush()
            os.fsync(file.fileno())
            file.write(data[8:])
            file.write(bytes(max(0, os.fstat(file.fileno()).st_size - file.tell())))
            file.truncate(len(data))
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            file.write(data[:8])

    def _bytes(self, lists: SpanLists) -> bytes:
        return save(vars(lists), self._about(lists))

    def _about(self, lists: SpanLists) -> dict[str, str]:
        return {"spans": self._described, "checksum": _checksum(lists)}


def _gone(held: SpanLists, index: NodeIndex) -> np.ndarray:
    """Which spans are of documents that an index has not, bool [spans]."""
    return ~np.isin(held.ids >> SPAN_BITS, index.keys())


def _checksum(lists: SpanLists) -> str:
    total = 0
    for values in vars(lists).values():
        total = zlib.crc32(np.ascontiguousarray(values).tobytes(), zlib.crc32(repr(values.shape).encode(), total))
    return str(total)
