"""Layers with a window over an injected context: what they see is told by positions, not by columns of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn
from transformers import PreTrainedModel

NOWHERE = 1 << 40
"""The position of padding: no query stands behind it."""


class Positions:
    """Where the columns of a cache and the queries of one forward pass stand.

    Args:
        columns: [batch, columns], those of the queries among them.
        asked: of the queries, [batch, queries].

    Attributes:
        asked: as above.
    """

    def __init__(self, columns: torch.Tensor, asked: torch.Tensor):
        self._columns, self.asked = columns, asked
        self._masks: dict[tuple[int, int], torch.Tensor] = {}

    def mask(self, window: int, own: int, dtype: torch.dtype) -> torch.Tensor:
        """The additive mask of a layer, [batch, 1, queries, own], made once for all layers that share it.

        Args:
            window: tokens that the layer sees back to, the query's own included.
            own: columns that the layer's cache has, the last ones of all.
            dtype: of the mask.
        """
        if (window, own) not in self._masks:
            places, asked = self._columns[:, None, -own:], self.asked[:, :, None]
            hidden = (places > asked) | (places <= asked - window)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._masks[window, own] = mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]
        return self._masks[window, own]


class PositionsHook(AbstractContextManager[None]):
    """While entered, every forward pass of the model is told where its columns stand, those before and its own.

    Args:
        model: the whole causal language model.
        columns: positions of the cache's columns before the first pass, [batch, columns].
    """

    def __init__(self, model: PreTrainedModel, columns: torch.Tensor):
        self._model, self._columns = model, columns

    def __enter__(self) -> None:
        def tell(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            # beams and several answers per question repeat the rows of the batch
            batch, queries = (args[0] if args else kwargs["input_ids"]).shape
            asked = kwargs["position_ids"].expand(batch, -1)
            own, seen = asked, kwargs.get("attention_mask")
            if seen is not None:
                own = own.masked_fill(seen[:, -queries:] == 0, NOWHERE)
            before = self._columns.repeat_interleave(batch // len(self._columns), 0)
            self._columns = torch.cat([before, own], dim=1)
            return args, {**kwargs, "positions": Positions(self._columns, asked)}

        self._handle = self._model.register_forward_pre_hook(tell, with_kwargs=True)

    def __exit__(self, *raised: object) -> None:
        self._handle.remove()


def padded(places: Sequence[torch.Tensor], prefix: int, device: torch.device) -> torch.Tensor:
    """Positions of a cache's columns: the contexts', padded on the left, then the prefix's, [batch, columns].

    Args:
        places: for each row of the batch the positions of its context's columns, [columns].
        prefix: tokens of the prefix, which stand first.
        device: of the result.
    """
    width = max(map(len, places))
    rows = [torch.cat([torch.full((width - len(of),), NOWHERE), of, torch.arange(prefix)]) for of in places]
    return torch.stack(rows).to(device)
