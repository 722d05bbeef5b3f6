"""A file that keeps what queries are compared with, so that opening a store costs what is not in it.

It is made of the database and may be missing: it lies beside it, each document in it bears the checksum that the
database has of the same, and none is taken that has another one. Codes and embeddings are mapped into memory, not read
into it, and checked when they are first read. What a document leaves behind is overwritten when it is deleted.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from shared_context.store.header_index import KeptHeaders
from shared_context.store.leaves import Arrays, KeptLeaves, document_edges
from shared_context.store.mapped_rows import MappedRows, Restore, as_bytes, block_sums
from shared_context.store.node_data import NodeShape
from shared_context.store.node_index import NodeIndex, count_leaves
from shared_context.store.sqlite_file import UNFINISHED

FILE = "leaves.safetensors"
"""In the folder of a store or namespace."""

FORMAT = 3
"""Raised by one where files that were written before are not to be read any more."""

LEAST_TOKENS = 1 << 18
"""Of a store; one of fewer is read about as fast from its database."""

SHARE = 8
"""The file is written anew where one token of so many is not in it, or is in it and was deleted."""

DOCUMENTS_TOGETHER = 4096
"""Documents whose rows are in memory at once while a file is written."""

DOCUMENTS_CHECKED = 64
"""Documents whose rows have checksums together: of more, one that is asked for or deleted would have more read."""

_DIRECTORY = (
    "written", "keys", "tokens", "lines", "bound", "header_tokens", "header_spans", "header_terms", "own", "frequency",
)  # fmt: skip
"""What is read into memory; it has a checksum together. ``own`` are those of the rows: of DOCUMENTS_CHECKED documents
one for each of _ROWS."""
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
    def read(cls, path: Path, shape: NodeShape, restore: Restore) -> LeafFile | None:
        """What a file holds; None where there is none that can be used, or what is read of it now is damaged.

        Args:
            path: the file's.
            shape: of the node data.
            restore: of a document by its key, what the database has that the rows are a copy of.
        """
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
                mapped = {name: tensors.get_tensor(name) for name in (*_ROWS, *_DIRECTORY, "checksum")}
        except (OSError, SafetensorError, ValueError):
            return None
        rows, edges = {name: mapped[name].numpy() for name in _ROWS}, _edges(directory, shape)
        if any(rows[name].shape != (int(edges[name][-1]), *_row_shape(name, shape)) for name in _ROWS):
            return None

        def own_now() -> np.ndarray | None:
            # Copied, for another process may be writing.
            now = {name: mapped[name].numpy().copy() for name in _DIRECTORY}
            return _by_block(now["own"]) if mapped["checksum"].tolist() == [_checksum(now.values())] else None

        checked = MappedRows(
            rows, edges, DOCUMENTS_CHECKED, directory["keys"], _by_block(directory["own"]), own_now, restore
        )
        # In memory: statistics need the ids of a document after its rows here are gone.
        if not checked.fits("ids"):
            return None
        held = directory["keys"] > 0
        keys = np.maximum.accumulate(directory["keys"])
        headed = np.flatnonzero(directory["header_tokens"])
        arrays = Arrays(*(mapped[name] for name in ("codes", "scales", "embeddings")))
        leaves = KeptLeaves(
            keys, held, directory["tokens"], directory["frequency"], rows["ids"].copy(), arrays, checked
        )
        tokens, spans, terms = (directory[name][headed] for name in _COUNTS)
        codes, scales, embeddings = (rows[f"header_{name}"] for name in ("codes", "scales", "embeddings"))
        headers = KeptHeaders(keys[headed], tokens, spans, terms, codes, scales, embeddings, rows["figures"], checked)
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
        "own": np.zeros(_own_sums(len(keys)), np.int64),
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
                data = {of: as_bytes(blocks[of].astype(_DTYPES[of], copy=False)) for of in _ROWS}
                for of in _ROWS:
                    file.seek(places[of][0] + int(at[of][0]) * _width(of, shape))
                    file.write(data[of])
                within_block = {of: at[of] - at[of][0] for of in _ROWS}
                checked = slice(some.start // DOCUMENTS_CHECKED, -(-some.stop // DOCUMENTS_CHECKED))
                _by_block(directory["own"])[checked] = block_sums(
                    partial(_part, data, shape), within_block, DOCUMENTS_CHECKED, range(checked.stop - checked.start)
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

        def rows(of: str, first: int, end: int) -> bytes:
            file.seek(places[of][0] + first * _width(of, shape))
            return file.read((end - first) * _width(of, shape))

        blocks = np.unique(np.flatnonzero(gone | changed) // DOCUMENTS_CHECKED)
        own = _by_block(directory["own"])
        if (block_sums(rows, edges, DOCUMENTS_CHECKED, blocks) != own[blocks]).any():
            path.unlink()  # or what is damaged would get a checksum that fits it
            return
        # Should this be cut off, the file is of no use to anybody.
        _put(file, places["checksum"][0], np.array([-1]))
        file.flush()
        os.fsync(file.fileno())
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
        own[blocks] = block_sums(rows, edges, DOCUMENTS_CHECKED, blocks)
        _write_directory(file, places, directory)


def is_regular(path: Path) -> bool:
    """Whether there is a file, no link and no pipe, which might be somebody else's or never end."""
    with suppress(FileNotFoundError):
        return stat.S_ISREG(os.lstat(path).st_mode)
    return False


def _edges(directory: Mapping[str, np.ndarray], shape: NodeShape) -> dict[str, np.ndarray]:
    """The first row of each document, and the one behind the last, by what the rows are, in the order of _ROWS."""
    leaves, spans = document_edges(shape.tree, directory["tokens"])
    counts = {"ids": "tokens", "figures": "header_terms", "header_embeddings": "header_spans"}
    counts |= {"header_scales": "header_tokens", "header_codes": "header_tokens"}
    summed = {of: np.concatenate([[0], np.cumsum(directory[count])]) for of, count in counts.items()}
    found = {"embeddings": spans, "scales": leaves, "codes": leaves, **summed}
    return {of: found[of] for of in _ROWS}


def _own_sums(documents: int) -> int:
    """Checksums of the rows of so many documents."""
    return -(-documents // DOCUMENTS_CHECKED) * len(_ROWS)


def _by_block(own: np.ndarray) -> np.ndarray:
    """The checksums of the rows, a view, [blocks, len(_ROWS)]."""
    return own.reshape(-1, len(_ROWS))


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
    (checksum, *values) = read
    directory = dict(zip(_DIRECTORY, values, strict=True))
    whole = checksum.tolist() == [_checksum(values)] and len(directory["own"]) == _own_sums(len(directory["keys"]))
    return directory if whole else None


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
