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
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from shared_context.store.header_index import KeptHeaders
from shared_context.store.leaves import Arrays, KeptLeaves, document_edges
from shared_context.store.node_data import NodeShape
from shared_context.store.node_index import NodeIndex, count_leaves
from shared_context.store.sqlite_file import UNFINISHED

FILE = "leaves.safetensors"
"""In the folder of a store or namespace."""

FORMAT = 2
"""Raised by one where files that were written before are not to be read any more."""

LEAST_TOKENS = 1 << 18
"""Of a store; one of fewer is read about as fast from its database."""

SHARE = 8
"""The file is written anew where one token of so many is not in it, or is in it and was deleted."""

DOCUMENTS_TOGETHER = 4096
"""Documents whose rows are in memory at once while a file is written."""

DOCUMENTS_CHECKED = 64
"""Documents whose rows have one checksum: of more, deleting one would read more, and of fewer, opening take longer."""

_DIRECTORY = (
    "written", "keys", "tokens", "lines", "bound", "header_tokens", "header_spans", "header_terms", "own", "frequency",
)  # fmt: skip
"""What is read into memory; it has a checksum together. Rows of DOCUMENTS_CHECKED documents have one each."""
_COUNTS = ("header_tokens", "header_spans", "header_terms")
_HEADERS = ("figures", "header_embeddings", "header_scales", "header_codes")
_ROWS = ("figures", "embeddings", "header_embeddings", "ids", "scales", "header_scales", "codes", "header_codes")
_DTYPES = {
    "figures": "<i8", "embeddings": "<f4", "header_embeddings": "<f4", "ids": "<i4", "scales": "<f2",
    "header_scales": "<f2", "codes": "i1", "header_codes": "i1",
}  # fmt: skip
_SAFETENSORS = {"<i8": "I64", "<f4": "F32", "<i4": "I32", "<f2": "F16", "i1": "I8"}
_INT64 = np.dtype("<i8")


@dataclass(frozen=True)
class LeafFile:
    """What a file holds.

    Attributes:
        leaves: of its documents.
        headers: of those of its documents that were written with one.
        headed: places of these among the documents, int64 [headers].
        lines: the checksum that the database had of each document's line, int64 [documents]; -1 where that has changed
            since, and the header with it.
        bound: that which it has of what scoring needs of each, int64 [documents].
        name: what the database knows the file by.
        version: of the database when the file was written.
    """

    leaves: KeptLeaves
    headers: KeptHeaders
    headed: np.ndarray
    lines: np.ndarray
    bound: np.ndarray
    name: int
    version: int

    @classmethod
    def read(cls, path: Path, shape: NodeShape) -> LeafFile | None:
        """What a file holds; None where there is none that can be used, or a part of it is damaged."""
        try:
            if not is_regular(path):
                return None
            with open(path, "rb") as file:
                layout = _layout(file)
                if layout is None or layout[0] != _described(shape):
                    return None
                directory = _directory(file, layout[1])
            if directory is None:
                return None
            with safe_open(path, "pt") as tensors:  # maps the file
                mapped = {name: tensors.get_tensor(name) for name in _ROWS}
        except (OSError, SafetensorError, ValueError):
            return None
        rows, edges = {name: tensor.numpy() for name, tensor in mapped.items()}, _edges(directory, shape)
        if any(rows[name].shape != (int(edges[name][-1]), *_row_shape(name, shape)) for name in _ROWS):
            return None
        own = _sums(lambda name, first, end: _bytes(rows[name][first:end]), edges, range(len(directory["own"])))
        if own != directory["own"].tolist():
            return None
        held = directory["keys"] > 0
        keys = np.maximum.accumulate(directory["keys"])
        headed = np.flatnonzero(directory["header_tokens"])
        # In memory: statistics need the ids of a document after its rows here are gone.
        arrays = Arrays(*(mapped[name] for name in ("codes", "scales", "embeddings")))
        leaves = KeptLeaves(keys, held, directory["tokens"], directory["frequency"], rows["ids"].copy(), arrays)
        headers = KeptHeaders(
            keys[headed],
            *(directory[name][headed] for name in _COUNTS),
            *(rows[name] for name in ("header_codes", "header_scales", "header_embeddings", "figures")),
        )
        name, version = directory["written"].tolist()
        return cls(leaves, headers, headed, directory["lines"], directory["bound"], name, version)

    def there(self, bound: Mapping[int, int]) -> np.ndarray:
        """Which of its documents are in the database as they are here, bool [documents].

        Args:
            bound: the checksum of each document there, by its key.
        """
        known = np.array([bound.get(key, -1) for key in self.leaves.keys.tolist()], np.int64)
        return self.leaves.held & (known == self.bound)


def write(
    folder: Path, shape: NodeShape, index: NodeIndex, lines: Mapping[int, int], bound: Mapping[int, int],
    name: int, version: int,
) -> Path:  # fmt: skip
    """Write what an index holds into a file that has no name yet.

    Args:
        folder: where it lies.
        index: at least one document.
        lines, bound: the checksums that the database has of each document's line and of what scoring needs of it.
        name: what the database will know the file by.
        version: of the database.

    Returns:
        Its path, which is nobody else's.
    """
    keys, ids, leaves = index.keys(), index.token_ids(), index.leaves()
    headers = [index.headers.sizes(key) for key in keys.tolist()]
    directory = {
        "written": np.array([name, version]),
        "keys": keys,
        "tokens": np.array([len(ids[key]) for key in keys.tolist()]),
        "lines": np.array([lines[key] for key in keys.tolist()]),
        "bound": np.array([bound[key] for key in keys.tolist()]),
        **{of: np.array(counts) for of, counts in zip(_COUNTS, zip(*headers, strict=True), strict=True)},
        "own": np.zeros(-(-len(keys) // DOCUMENTS_CHECKED), np.int64),
        "frequency": index.frequency,
    }
    edges = _edges(directory, shape)
    shapes = {
        "checksum": (1,),
        **{of: directory[of].shape for of in _DIRECTORY},
        **{of: (int(edges[of][-1]), *_row_shape(of, shape)) for of in _ROWS},
    }
    path = folder / f"{UNFINISHED}{secrets.token_hex(8)}.{FILE}"
    try:
        with open(path, "wb") as file:
            places = _write_header(file, shapes, shape)
            for first in range(0, len(keys), DOCUMENTS_TOGETHER):
                some = slice(first, min(first + DOCUMENTS_TOGETHER, len(keys)))
                at = {of: edges[of][some.start : some.stop + 1] for of in _ROWS}
                within = (slice(int(at[of][0]), int(at[of][-1])) for of in ("codes", "embeddings"))
                blocks = {of: rows.numpy() for of, rows in vars(leaves.rows(*within)).items()}
                blocks["ids"] = np.concatenate([ids[key] for key in keys[some].tolist()])
                blocks |= _header_rows(index, keys[some], shape)
                data = {of: _bytes(blocks[of].astype(_DTYPES[of], copy=False)) for of in _ROWS}
                for of in _ROWS:
                    file.seek(places[of][0] + int(at[of][0]) * _width(of, shape))
                    file.write(data[of])
                within_block = {of: edge - edge[0] for of, edge in at.items()}
                checked = slice(some.start // DOCUMENTS_CHECKED, -(-some.stop // DOCUMENTS_CHECKED))
                directory["own"][checked] = _sums(
                    partial(_part, data, shape), within_block, range(checked.stop - checked.start)
                )
            _write_directory(file, places, directory)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _header_rows(index: NodeIndex, keys: np.ndarray, shape: NodeShape) -> dict[str, np.ndarray]:
    """What there is of the headers of documents, one after the other."""
    found = [index.headers.header(key) for key in keys.tolist()]
    held = [header for header, _ in found if header is not None]
    empty = {of: np.zeros((0, *_row_shape(of, shape)), _DTYPES[of]) for of in _HEADERS}
    rows = {of: [getattr(header, of.removeprefix("header_")) for header in held] for of in _HEADERS[1:]}
    rows["figures"] = [np.array(sorted(figures), np.int64) for _, figures in found]
    return {of: np.concatenate([empty[of], *rows[of]]) for of in _HEADERS}


def forget(
    path: Path, shape: NodeShape, keys: Collection[int] | None, described: Collection[int] = (),
    there: Iterable[int] = (),
) -> None:  # fmt: skip
    """Overwrite what a file holds of documents; one that cannot be read goes. No other process may be doing the same.

    Args:
        path: the file's; it may be missing.
        keys: of the documents; None means all but those ``there``.
        described: keys of documents of which only the header goes, for their metadata are others now.
    """
    if not is_regular(path):
        return
    with open(path, "r+b") as file:
        layout = _layout(file)
        directory = None if layout is None or layout[0] != _described(shape) else _directory(file, layout[1])
        if layout is None or directory is None:
            path.unlink()
            return
        places, held = layout[1], directory["keys"]
        gone = np.isin(held, list(keys)) if keys is not None else ~np.isin(held, list(there)) & (held > 0)
        changed = np.isin(held, list(described)) & ~gone
        if not (gone | changed).any():
            return
        edges = _edges(directory, shape)
        # Should this be cut off, the file is of no use to anybody.
        _put(file, places["checksum"][0], np.array([-1]))
        file.flush()
        os.fsync(file.fileno())

        def rows(of: str, first: int, end: int) -> bytes:
            file.seek(places[of][0] + first * _width(of, shape))
            return file.read((end - first) * _width(of, shape))

        for document in np.flatnonzero(gone | changed).tolist():
            for of in _ROWS if gone[document] else _HEADERS:
                first, end = edges[of][document : document + 2].tolist()
                if of == "ids":
                    ids = np.frombuffer(rows(of, first, end), "<i4")
                    count_leaves(directory["frequency"], ids, shape.tree.leaf_size, -1)
                file.seek(places[of][0] + first * _width(of, shape))
                file.write(bytes((end - first) * _width(of, shape)))
        directory["keys"][gone] = directory["bound"][gone] = 0
        directory["lines"][gone | changed] = -1
        blocks = np.unique(np.flatnonzero(gone | changed) // DOCUMENTS_CHECKED)
        directory["own"][blocks] = _sums(rows, edges, blocks.tolist())
        _write_directory(file, places, directory)


def is_regular(path: Path) -> bool:
    """Whether there is a file, no link and no pipe, which might be somebody else's or never end."""
    with suppress(FileNotFoundError):
        return stat.S_ISREG(os.lstat(path).st_mode)
    return False


def _edges(directory: Mapping[str, np.ndarray], shape: NodeShape) -> dict[str, np.ndarray]:
    """The first row of each document, and the one behind the last, by what the rows are."""
    leaves, spans = document_edges(shape.tree, directory["tokens"])
    counts = {"ids": "tokens", "figures": "header_terms", "header_embeddings": "header_spans"}
    counts |= {"header_scales": "header_tokens", "header_codes": "header_tokens"}
    summed = {of: np.concatenate([[0], np.cumsum(directory[count])]) for of, count in counts.items()}
    return {"embeddings": spans, "scales": leaves, "codes": leaves, **summed}


def _bytes(rows: np.ndarray) -> memoryview:
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data


def _row_shape(name: str, shape: NodeShape) -> tuple[int, ...]:
    """Of a row of the leaves, spans, tokens or figures."""
    of_leaf, of_token = (shape.tree.leaf_size,), (shape.code_size,)
    return {
        "embeddings": (shape.dimension,), "header_embeddings": (shape.dimension,), "scales": of_leaf,
        "codes": (*of_leaf, *of_token), "header_codes": of_token,
    }.get(name, ())  # fmt: skip


def _width(name: str, shape: NodeShape) -> int:
    """Bytes of a row."""
    return int(np.prod(_row_shape(name, shape), dtype=np.int64)) * np.dtype(_DTYPES[name]).itemsize


def _part(data: Mapping[str, memoryview], shape: NodeShape, name: str, first: int, end: int) -> memoryview:
    """Some of the rows in ``data``."""
    return data[name][first * _width(name, shape) : end * _width(name, shape)]


def _sums(
    rows: Callable[[str, int, int], memoryview | bytes], edges: Mapping[str, np.ndarray], blocks: Iterable[int]
) -> list[int]:
    """The checksum of the rows of DOCUMENTS_CHECKED documents, for each of these blocks of them.

    Args:
        rows: by their name, the first one and the one behind the last, as bytes.
        edges: as :func:`_edges` gives them.
    """
    sums = []
    for block in blocks:
        total = 0
        for name in _ROWS:
            edge = edges[name][block * DOCUMENTS_CHECKED :][: DOCUMENTS_CHECKED + 1]
            total = zlib.crc32(rows(name, int(edge[0]), int(edge[-1])), total)
        sums.append(total)
    return sums


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
        dtype = _DTYPES.get(name, "<i8")
        end = at + int(np.prod(sizes, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[name] = {"dtype": _SAFETENSORS[dtype], "shape": list(sizes), "data_offsets": [at, end]}
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


def _directory(file: BinaryIO, places: dict[str, tuple[int, int]]) -> dict[str, np.ndarray] | None:
    """The directory of a file; None where it is damaged."""
    read = []
    for name in ("checksum", *_DIRECTORY):
        start, end = places[name]
        file.seek(start)
        read.append(np.frombuffer(bytearray(file.read(max(0, end - start))), _INT64))
    (checksum, *directory) = read
    return dict(zip(_DIRECTORY, directory, strict=True)) if checksum.tolist() == [_checksum(directory)] else None


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
