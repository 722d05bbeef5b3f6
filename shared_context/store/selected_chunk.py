"""What is shown of a chunk: its cut, and the keys and values of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from shared_context.config import Rows
from shared_context.kernels import ChunkKV, RaggedKV
from shared_context.store.selected import SelectedNode
from shared_context.tree import ContextTree, GrainedNode, cut_rows


@dataclass(frozen=True)
class SelectedChunk:
    """The cut of one chunk, with all that is needed to encode the chunk again, should its KV be gone.

    Attributes:
        token_ids: of the whole chunk and its lead-in, int32 [lead_in + tokens].
        lead_in: tokens before the chunk that it is encoded behind.
        begin: the first token that its tree spans: that of the chunk or, where this lies within a word, the one in the
            lead-in that the word begins with.
        tree: the chunk's context tree.
        cut: the grained nodes that are shown, from left to right.
        nodes: the same as the user sees them.
        text: of the whole document, for showing the nodes where they stand.
    """

    token_ids: np.ndarray
    lead_in: int
    begin: int
    tree: ContextTree
    cut: tuple[GrainedNode, ...]
    nodes: tuple[SelectedNode, ...]
    text: str = field(repr=False)

    def rows(self, rows: Rows) -> list[int]:
        """Those of ``token_ids`` that every head shows: of nodes at ratio 1, and by stride of all others, too."""
        even = [grained for grained in self.cut if rows == "stride" or grained.ratio == 1]
        return [self.begin + row for row in cut_rows(self.tree, even)]

    def coarse_spans(self, rows: Rows) -> list[tuple[int, int, int]]:
        """Spans of ``token_ids`` of which every head shows rows of its own: first, end and ratio of each."""
        if rows == "stride":
            return []
        spans = ((*self.tree.span(node), ratio) for node, ratio in self.cut if ratio is not None and ratio > 1)
        return [(self.begin + start, self.begin + end, ratio) for start, end, ratio in spans]


class ShownChunk(NamedTuple):
    """Keys and values that are shown of a chunk.

    Attributes:
        kv: rows of every head; None where all that is shown is coarse.
        rows: those of ``kv`` that are shown, [n].
        coarse: what coarse nodes show; None where there are none.
    """

    kv: ChunkKV | None
    rows: torch.Tensor
    coarse: RaggedKV | None
