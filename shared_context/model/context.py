"""What a selection hands to the decoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from shared_context.kernels import (
    ChunkKV,
    RaggedKV,
)


@dataclass(frozen=True)
class CoarseKV:
    """The rows of a chunk that its coarse nodes show, other ones in every head.

    Attributes:
        kv: the rows, their keys as they stood while the chunk was encoded.
        places: of each row its place among the positions of the context, int64 [rows].
        positions: for each row the row that it is of the whole encoding, int64 [rows].
    """

    kv: RaggedKV
    places: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True)
class ContextKV:
    """What a selection hands to the decoder, still in the chunks' own encoding.

    Attributes:
        chunks: the encodings of the chunks, in document order; None for one of which every head shows other rows.
        rows: for each chunk the rows of its encoding that its cut keeps in every head, [n_i].
        token_ids: the ids of those rows' tokens, [columns]; the decoder computes nothing from them, but penalties on
            repetition count them.
        places: for each of those rows its place among the positions of the context, [n_i]; the last place is next to
            the prompt. None reads the chunks as they stand. Cross-attention tells chunks apart, not tokens, and pays
            no heed to it.
        positions: for each of those rows the row that it is of the whole encoding, [n_i], counted from where encoding
            began. None where encodings are whole.
        coarse: for each chunk what its coarse nodes show; None for chunks without any, or where none has any.
        extent: positions that the context takes; None is as many as it has columns.
    """

    chunks: Sequence[ChunkKV | None]
    rows: Sequence[torch.Tensor]
    token_ids: torch.Tensor
    places: Sequence[torch.Tensor] | None = None
    positions: Sequence[torch.Tensor] | None = None
    coarse: Sequence[CoarseKV | None] | None = None
    extent: int | None = None

    @property
    def columns(self) -> int:
        """KV entries that every head has."""
        return len(self.token_ids)

    @property
    def length(self) -> int:
        """Positions that the context takes."""
        return self.columns if self.extent is None else self.extent

    @property
    def coarse_parts(self) -> list[CoarseKV]:
        """What coarse nodes show, chunk by chunk."""
        return [part for part in self.coarse or () if part is not None]

    def places_in_order(self) -> Sequence[torch.Tensor]:
        """The places of the rows that every head has, [n_i] for each chunk."""
        return self.places or torch.arange(self.columns).split([len(rows) for rows in self.rows])

    def turned_by(self, targets: Iterable[torch.Tensor | int], sink: int) -> list[torch.Tensor]:
        """By how many positions each key that every head keeps is turned, [n_i] for each chunk.

        Args:
            targets: for each chunk the positions that its kept keys are turned to, or the one for all of them.
            sink: tokens in front of each chunk while it was encoded.
        """
        stood = self.positions or self.rows
        return [target - (sink + positions) for target, positions in zip(targets, stood, strict=True)]

    def even_parts(self, prefix: int, sink: int) -> tuple[list[ChunkKV], list[torch.Tensor], list[torch.Tensor]]:
        """What every head keeps, as :func:`~shared_context.kernels.assemble` takes it: chunks, rows, deltas.

        Args:
            prefix: tokens in front of the context where it is read.
            sink: tokens in front of each chunk while it was encoded.
        """
        deltas = self.turned_by([prefix + place for place in self.places_in_order()], sink)
        parts = zip(self.chunks, self.rows, deltas, strict=True)
        even = [(chunk, shown, delta) for chunk, shown, delta in parts if chunk is not None]
        return [chunk for chunk, _, _ in even], [shown for _, shown, _ in even], [delta for _, _, delta in even]
