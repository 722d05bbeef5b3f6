"""What is kept of a document, chunk by chunk: text, tokens, and what scoring needs of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np

from shared_context.config import TreeConfig
from shared_context.model.tokenization import TokenizedText
from shared_context.store.leaf_words import LeafWords


@dataclass(frozen=True)
class NodeData:
    """What scoring needs of a document; see :class:`shared_context.store.node_index.NodeIndex`.

    An array here has a line in COLUMNS, and a column of its name in the table of parts.

    Attributes:
        codes: int8 [tokens, code_size].
        scales: float16 [tokens].
        embeddings: float32 [spans, dimension], of ``TreeConfig.embedded_leaves`` leaves each; no columns where there
            is no embedder.
        words: of the leaves; None where the data were read back, for words are looked up where they are kept.
    """

    codes: np.ndarray
    scales: np.ndarray
    embeddings: np.ndarray
    words: LeafWords | None = None


@dataclass(frozen=True)
class HeaderData:
    """What scoring needs of a document's header; see :class:`shared_context.store.header_index.HeaderIndex`.

    Attributes:
        codes: int8 [tokens, code_size].
        scales: float16 [tokens].
        embeddings: float32 [spans, dimension].
    """

    codes: np.ndarray
    scales: np.ndarray
    embeddings: np.ndarray


class Column(NamedTuple):
    """How a field of node data is laid out.

    Attributes:
        dtype: of its numbers.
        per: what it has a row for.
        width: the NodeShape's field that says how many numbers a row has; None where it is one.
    """

    dtype: type[np.generic]
    per: Literal["token", "span"]
    width: str | None


COLUMNS = {
    "codes": Column(np.int8, "token", "code_size"),
    "scales": Column(np.float16, "token", None),
    "embeddings": Column(np.float32, "span", "dimension"),
}


@dataclass(frozen=True)
class StoredText:
    """A document's text with its tokens; it never changes under its key."""

    text: str
    tokens: TokenizedText


@dataclass(frozen=True)
class Part:
    """A chunk of a document, as it is kept in one row.

    Attributes:
        stored: its text with its tokens; the first one begins with the text.
        nodes: what scoring needs of it.
        before: the last characters before it; only where it was read back to be extended.
    """

    stored: StoredText
    nodes: NodeData
    before: str = ""


class NodeShape(NamedTuple):
    """What all node data of a store have in common.

    Attributes:
        tree: the shape of the context trees.
        code_size: dimensions of a token's code.
        dimension: of an embedding; 0 where there is no embedder.
        vocabulary: token ids lie below it.
    """

    tree: TreeConfig
    code_size: int
    dimension: int
    vocabulary: int

    def rows(self, name: str, tokens: int) -> int:
        """Rows that a field has for so many tokens."""
        per = {"token": 1, "span": self.tree.leaf_size * self.tree.embedded_leaves}
        return -(-tokens // per[COLUMNS[name].per])

    def split(self, stored: StoredText, nodes: NodeData) -> list[Part]:
        """A document chunk by chunk."""
        parts, tokens = [], stored.tokens
        for first in range(0, len(tokens), self.tree.chunk_size):
            end = min(first + self.tree.chunk_size, len(tokens))
            start, stop = tokens.characters(first, end)
            own = {name: slice(self.rows(name, first), self.rows(name, end)) for name in COLUMNS}
            assert nodes.words is not None  # what is split has just been made
            words = nodes.words.leaves(first // self.tree.leaf_size, -(-end // self.tree.leaf_size))
            parts.append(
                Part(
                    StoredText(
                        stored.text[start:stop],
                        TokenizedText(tokens.ids[first:end], tokens.bounds[first : end + 1] - start),
                    ),
                    NodeData(**{name: getattr(nodes, name)[rows] for name, rows in own.items()}, words=words),
                )
            )
        return parts

    def decode(self, tokens: int, values: Sequence[bytes]) -> NodeData:
        """Node data from the bytes of its fields.

        Raises:
            ValueError: they have another shape than so many tokens have, or hold infinities or NaN.
        """
        arrays = {name: self._array(name, tokens, value) for name, value in zip(COLUMNS, values, strict=True)}
        return NodeData(**arrays, words=None)

    def decode_headers(self, values: Sequence[Sequence[bytes]]) -> list[HeaderData]:
        """The data of headers from the bytes of the fields of each; errors as in :meth:`decode`.

        All at once, for a store has as many as it has documents.
        """
        if not values:
            return []
        names = [field.name for field in fields(HeaderData)]
        joined = dict(zip(names, (b"".join(of) for of in zip(*values, strict=True)), strict=True))
        sizes = np.array([[len(of) for of in header] for header in values])
        tokens = sizes[:, names.index("scales")] // COLUMNS["scales"].dtype().itemsize
        arrays, edges = [], []
        for name, size in zip(names, sizes.T, strict=True):
            column = COLUMNS[name]
            width = 1 if column.width is None else getattr(self, column.width)
            rows = tokens if column.per == "token" else -(-tokens // (self.tree.leaf_size * self.tree.embedded_leaves))
            if (size != rows * width * column.dtype().itemsize).any():
                raise ValueError(f"its {name} have another size than its tokens ask for")
            array = np.frombuffer(joined[name], column.dtype)
            if np.issubdtype(column.dtype, np.floating) and not np.isfinite(array).all():
                raise ValueError(f"its {name} hold infinities or NaN")
            arrays.append(array if column.width is None else array.reshape(int(rows.sum()), width))
            edges.append([0, *np.cumsum(rows).tolist()])
        return [
            HeaderData(*(array[at[i] : at[i + 1]] for array, at in zip(arrays, edges, strict=True)))
            for i in range(len(values))
        ]

    def _array(self, name: str, tokens: int, value: bytes) -> np.ndarray:
        column = COLUMNS[name]
        rows, width = self.rows(name, tokens), 1 if column.width is None else getattr(self, column.width)
        array = np.frombuffer(value, column.dtype)
        if array.size != rows * width:
            raise ValueError(f"its {name} have {array.size} numbers where {rows * width} belong")
        if np.issubdtype(column.dtype, np.floating) and not np.isfinite(array).all():
            raise ValueError(f"its {name} hold infinities or NaN")
        return array if column.width is None else array.reshape(rows, width)

    def check_ids(self, ids: np.ndarray) -> None:
        """Raise ValueError unless these are token ids of the model."""
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.vocabulary):
            raise ValueError("it holds token ids that the model does not have")


def joined_text(parts: Iterable[StoredText]) -> StoredText:
    """The text of parts that follow one another."""
    parts = list(parts)
    bounds, at = [np.zeros(1, np.int64)], 0
    for part in parts:
        bounds.append(part.tokens.bounds[1:] + at)
        at += len(part.text)
    ids = np.concatenate([part.tokens.ids for part in parts])
    return StoredText("".join(part.text for part in parts), TokenizedText(ids, np.concatenate(bounds)))


def joined_nodes(parts: Sequence[NodeData]) -> NodeData:
    """The node data of parts that follow one another."""
    if len(parts) == 1:
        return parts[0]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    return NodeData(**arrays, words=None)
