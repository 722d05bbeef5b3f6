"""A file that keeps what queries are compared with, so that opening a store costs what is not in it.

It is made of the database and may be missing: it lies beside it, each document in it bears the checksum that the
database has of the same, and none is taken that has another one. Codes and embeddings are mapped into memory, not read
into it. What a document leaves behind is overwritten when it is deleted.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from shared_context.store.leaves import Arrays, KeptLeaves, Leaves, document_edges
from shared_context.store.node_data import NodeShape
from shared_context.store.node_index import count_leaves
from shared_context.store.sqlite_file import UNFINISHED

FILE = "leaves.safetensors"
"""In the folder of a store or namespace."""

FORMAT = 1
"""Raised by one where files that were written before are not to be read any more."""

LEAST_TOKENS = 1 << 18
"""Of a store; one of fewer is read about as fast from its database."""

SHARE = 8
"""The file is written anew where one token of so many is not in it, or is in it and was deleted."""

DOCUMENTS_TOGETHER = 4096
"""Documents whose rows are in memory at once while a file is written."""

_DIRECTORY = ("keys", "tokens", "bound", "own", "frequency")
"""What is read into memory; it has a checksum together, and each document's rows have one."""
_ROWS = ("embeddings", "ids", "scales", "codes")
_TYPES = {"embeddings": ("F32", 4), "ids": ("I32", 4), "scales": ("F16", 2), "codes": ("I8", 1)}
_INT64 = np.dtype("<i8")


@dataclass(frozen=True)
class LeafFile:
    """What a file holds.

    Attributes:
        leaves: of its documents.
        bound: the checksum that the database has of each, int64 [documents].
        own: that of its rows here, int64 [documents].
        shape: of the node data.
    """

    leaves: KeptLeaves
    bound: np.ndarray
    own: np.ndarray
    shape: NodeShape

    @classmethod
    def read(cls, path: Path, shape: NodeShape) -> LeafFile | None:
        """What a file holds; None where there is none that can be used."""
        try:
            if not _is_regular(path):
                return None
            with open(path, "rb") as file:
                layout = _layout(file)
                if layout is None or layout[0] != _described(shape):
                    return None
                directory = _directory(file, layout[1])
            if directory is None:
                return None
            with safe_open(path, "pt") as tensors:  # maps the file
                rows = {name: tensors.get_tensor(name) for name in _ROWS}
        except (OSError, SafetensorError, ValueError):
            return None
        keys, tokens, bound, own, frequency = directory
        edges = _edges(tokens, shape)
        if any(rows[name].shape != (int(edges[name][-1]), *_row_shape(name, shape)) for name in _ROWS):
            return None
        # In memory: statistics need the ids of a document after its rows here are gone.
        ids = rows.pop("ids").numpy().copy()
        leaves = KeptLeaves(keys, tokens, frequency, ids, Arrays(**rows))
        return cls(leaves, bound, own, shape)

    def there(self, bound: Mapping[int, int]) -> np.ndarray | None:
        """Which of its documents are in the database as they are here, bool [documents].

        Args:
            bound: the checksum of each document there, by its key.

        Returns:
            None where a document of these is damaged here.
        """
        kept = self.leaves
        pairs = zip(kept.keys.tolist(), self.bound.tolist(), strict=True)
        there = np.array([bound.get(key) == own for key, own in pairs], bool)
        own, edges = [0] * len(there), _edges(kept.tokens, self.shape)
        for name in _ROWS:
            rows = kept.ids if name == "ids" else getattr(kept.arrays, name).numpy()
            own = _chained(own, _bytes(rows), _byte_edges(name, edges[name], self.shape))
        return there if (np.array(own)[there] == self.own[there]).all() else None


def write(
    folder: Path, shape: NodeShape, leaves: Leaves, ids: Mapping[int, np.ndarray], bound: Mapping[int, int],
    frequency: np.ndarray,
) -> Path:  # fmt: skip
    """Write what an index holds into a file that has no name yet.

    Args:
        folder: where it lies.
        ids: of each document.
        bound: the checksum that the database has of each.
        frequency: leaves that have a token.

    Returns:
        Its path, which is nobody else's.
    """
    keys = np.array(sorted(ids), np.int64)
    tokens = np.array([len(ids[key]) for key in keys.tolist()], np.int64)
    edges = _edges(tokens, shape)
    shapes = {
        "checksum": (1,),
        **{name: (len(keys),) for name in _DIRECTORY if name != "frequency"},
        "frequency": frequency.shape,
        **{name: (int(edges[name][-1]), *_row_shape(name, shape)) for name in _ROWS},
    }
    path = folder / f"{UNFINISHED}{secrets.token_hex(8)}.{FILE}"
    own = [0] * len(keys)
    try:
        with open(path, "wb") as file:
            places = _write_header(file, shapes, shape)
            for first in range(0, len(keys), DOCUMENTS_TOGETHER):
                some = slice(first, min(first + DOCUMENTS_TOGETHER, len(keys)))
                here = keys[some].tolist()
                within = (slice(*edges[name][[some.start, some.stop]].tolist()) for name in ("codes", "embeddings"))
                blocks = {name: rows.numpy() for name, rows in vars(leaves.rows(*within)).items()}
                blocks["ids"] = np.concatenate([ids[key] for key in here]).astype("<i4")
                for name in _ROWS:
                    at, data = _byte_edges(name, edges[name][some.start : some.stop + 1], shape), _bytes(blocks[name])
                    own[some] = _chained(own[some], data, at - at[0])
                    file.seek(places[name][0] + int(at[0]))
                    file.write(data)
            values = keys, tokens, np.array([bound[key] for key in keys.tolist()], np.int64), np.array(own), frequency
            _write_directory(file, places, dict(zip(_DIRECTORY, values, strict=True)))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def forget(path: Path, shape: NodeShape, keys: Iterable[int] | None, there: Iterable[int] = ()) -> None:
    """Overwrite what a file holds of documents; one that cannot be read goes. No other process may be doing the same.

    Args:
        path: the file's; it may be missing.
        keys: of the documents; None means all but those ``there``.
    """
    if not _is_regular(path):
        return
    with open(path, "r+b") as file:
        layout = _layout(file)
        directory = None if layout is None or layout[0] != _described(shape) else _directory(file, layout[1])
        if layout is None or directory is None:
            path.unlink()
            return
        places, named = layout[1], dict(zip(_DIRECTORY, directory, strict=True))
        held = named["keys"]
        gone = np.isin(held, list(keys)) if keys is not None else ~np.isin(held, list(there)) & (held > 0)
        if not gone.any():
            return
        edges = _edges(named["tokens"], shape)
        # Should this be cut off, the file is of no use to anybody.
        _put(file, places["checksum"][0], np.array([-1]))
        file.flush()
        os.fsync(file.fileno())
        for document in np.flatnonzero(gone).tolist():
            for name in _ROWS:
                start, end = _byte_edges(name, edges[name][document : document + 2], shape).tolist()
                file.seek(places[name][0] + start)
                if name == "ids":
                    ids = np.frombuffer(file.read(end - start), "<i4")
                    count_leaves(named["frequency"], ids, shape.tree.leaf_size, -1)
                    file.seek(places[name][0] + start)
                file.write(bytes(end - start))
        held[gone] = 0
        named["bound"][gone] = named["own"][gone] = 0
        _write_directory(file, places, named)


def _is_regular(path: Path) -> bool:
    """Whether there is a file, no link and no pipe, which might be somebody else's or never end."""
    with suppress(FileNotFoundError):
        return stat.S_ISREG(os.lstat(path).st_mode)
    return False


def _edges(tokens: np.ndarray, shape: NodeShape) -> dict[str, np.ndarray]:
    """The first row of each document, and the one behind the last, by what the rows are."""
    leaves, spans = document_edges(shape.tree, tokens)
    return {"embeddings": spans, "ids": np.concatenate([[0], np.cumsum(tokens)]), "scales": leaves, "codes": leaves}


def _bytes(rows: np.ndarray) -> memoryview:
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data


def _row_shape(name: str, shape: NodeShape) -> tuple[int, ...]:
    """Of a row of the leaves, spans or tokens."""
    leaf = shape.tree.leaf_size
    return {"embeddings": (shape.dimension,), "ids": (), "scales": (leaf,), "codes": (leaf, shape.code_size)}[name]


def _byte_edges(name: str, edges: np.ndarray, shape: NodeShape) -> np.ndarray:
    return edges * int(np.prod(_row_shape(name, shape), dtype=np.int64)) * _TYPES[name][1]


def _chained(sums: Sequence[int], data: memoryview, edges: np.ndarray) -> list[int]:
    """Each document's checksum with its part of ``data`` behind what it is of already."""
    at = edges.tolist()
    return [zlib.crc32(data[at[i] : at[i + 1]], total) for i, total in enumerate(sums)]


def _described(shape: NodeShape) -> str:
    """What the rows of a file hang on."""
    tree = shape.tree
    sizes = tree.chunk_size, tree.leaf_size, tree.embedded_leaves, shape.code_size, shape.dimension, shape.vocabulary
    return json.dumps([FORMAT, *sizes])


def _write_header(file: BinaryIO, shapes: dict[str, tuple[int, ...]], shape: NodeShape) -> dict[str, tuple[int, int]]:
    """Write the beginning of a file of safetensors; returns where each of them begins and ends."""
    header: dict[str, Any] = {"__metadata__": {"shape": _described(shape)}}
    at = 0
    for name, sizes in shapes.items():
        kind, width = _TYPES.get(name, ("I64", 8))
        end = at + int(np.prod(sizes, dtype=np.int64)) * width
        header[name] = {"dtype": kind, "shape": list(sizes), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    first = 8 + len(text)
    file.truncate(first + at)
    return {name: tuple(first + o for o in header[name]["data_offsets"]) for name in shapes}


def _layout(file: BinaryIO) -> tuple[str, dict[str, tuple[int, int]]] | None:
    """What a file of safetensors says of itself, and where each tensor begins and ends; None of something else."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > size - 8:
        return None
    try:
        header = json.loads(file.read(length))
        described = header.pop("__metadata__")["shape"]
        places = {}
        for name in ("checksum", *_DIRECTORY, *_ROWS):
            begin, end = header[name]["data_offsets"]
            places[name] = (8 + length + int(begin), 8 + length + int(end))
        return described, places
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _directory(file: BinaryIO, places: dict[str, tuple[int, int]]) -> list[np.ndarray] | None:
    """The directory of a file; None where it is damaged."""
    read = []
    for name in ("checksum", *_DIRECTORY):
        start, end = places[name]
        file.seek(start)
        read.append(np.frombuffer(bytearray(file.read(max(0, end - start))), _INT64))
    (checksum, *directory) = read
    return directory if checksum.tolist() == [_checksum(directory)] else None


def _write_directory(file: BinaryIO, places: dict[str, tuple[int, int]], directory: dict[str, np.ndarray]) -> None:
    for name, values in directory.items():
        _put(file, places[name][0], values)
    file.flush()
    os.fsync(file.fileno())
    _put(file, places["checksum"][0], np.array([_checksum(directory.values())]))


def _put(file: BinaryIO, at: int, values: np.ndarray) -> None:
    file.seek(at)
    file.write(values.astype(_INT64).tobytes())


def _checksum(directory: Iterable[np.ndarray]) -> int:
    total = 0
    for values in directory:
        total = zlib.crc32(values.astype(_INT64).tobytes(), zlib.crc32(struct.pack("<Q", len(values)), total))
    return total
