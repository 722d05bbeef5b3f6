"""Prefix injection: the context joins the softmax of the decoder's own self-attention."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from shared_context.config import InjectionKind
from shared_context.kernels import (
    RaggedContext,
    Rotary,
    assemble,
    assemble_ragged,
)
from shared_context.model.attention import ATTENTION
from shared_context.model.cache import KeptMemory, RoomyCache, RoomyLayer
from shared_context.model.context import ContextKV
from shared_context.model.in_place import EncodingsInPlace, Run, split_runs
from shared_context.model.windows import PositionsHook, padded


class PrefixInjection:
    """Injected KV join the softmax of the decoder's own self-attention, in the bottom M layers.

    Args:
        layers: M.
        rotary: of the model's layers.
        windowed: whether some layers see less than the model's window; kept as an attribute.
        fused: whether fused kernels compute their attention.
    """

    attention = ATTENTION
    """What the model has to be loaded with, its ``attn_implementation``."""
    kind: InjectionKind = "prefix"
    in_cache = True

    def __init__(self, layers: int, rotary: Rotary, *, windowed: bool = False, fused: bool = True):
        self.layers = layers
        self.rotary = rotary
        self.windowed = windowed
        self._in_place = fused and not windowed
        self._memory, self._beside = KeptMemory(), KeptMemory()

    def installed(
        self, model: PreTrainedModel, contexts: Sequence[ContextKV | None], sink: int, prefix: int
    ) -> AbstractContextManager[None]:
        """Show what is not in the cache to every forward pass of ``model`` while entered, which may be again and again.

        Args:
            model: the whole causal language model.
            contexts: one per row of the batch; None injects nothing into that row.
            sink: tokens in front of each chunk while it was encoded.
            prefix: tokens of the prompt in front of the context.
        """
        parts = [c.coarse_parts if c is not None else [] for c in contexts]
        deltas = [[prefix + p.places - (sink + p.positions) for p in row] for row in parts]
        kv = [[part.kv for part in row] for row in parts]
        targets = [[prefix + p.places for p in row] for row in parts] if self.windowed else None
        taken: list[torch.Tensor] = []

        def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
            taken.append(self._beside.take(math.prod(shape), dtype, device))
            return taken[0][: math.prod(shape)].view(shape)

        ragged = assemble_ragged(kv, deltas, self.rotary, model.dtype, model.device, targets, allocate)
        if ragged is not None:
            # When the last answer that reads these rows is done, nobody has to say so.
            weakref.finalize(ragged, self._beside.keep, *taken).atexit = False
        hooks: list[AbstractContextManager[None]] = []
        beyond = [c.length - c.columns if c is not None else 0 for c in contexts]
        if ragged is not None or any(beyond):
            hooks.append(RaggedHook(model, ragged, torch.tensor(beyond, device=model.device)))
        if self.windowed and any(c is not None for c in contexts):
            places = [torch.arange(0) if c is None else prefix + torch.cat(list(c.places_in_order())) for c in contexts]
            hooks.append(PositionsHook(model, padded(places, prefix, model.device)))
        return InTurn(hooks) if hooks else nullcontext()

    def cache(
        self,
        contexts: Sequence[ContextKV | None],
        prefix_kv: torch.Tensor,
        sink: int,
        room: int,
        dtype: torch.dtype,
        queries: int | None = None,
    ) -> RoomyCache:
        """The decoder's cache, filled for a batch: the context's columns, padded on the left, then the prefix's.

        Keys take the places of their context behind the prefix, so that a selection stays inside the trained window
        however long its documents are. What coarse nodes show is no part of the cache, see :meth:`installed`.

        Args:
            contexts: one per row of the batch; None injects nothing into that row.
            prefix_kv: keys and values of the prompt's prefix over all N layers, [2, N, kv_heads, prefix, head_dim].
            sink: tokens in front of each chunk while it was encoded.
            room: entries to leave free for the running text and the answer.
            dtype: of the cache.
            queries: tokens of a first pass that may read the encodings where they lie: what is worth it is left there
                until the cache's ``fill`` is called, and whoever runs that pass hands the cache's ``in_place`` to the
                model. For a single context on a processor. None copies everything now.
        """
        _, total_layers, kv_heads, prefix, head_dim = prefix_kv.shape
        width = max((c.columns for c in contexts if c is not None), default=0)
        batch, device = len(contexts), prefix_kv.device
        shape = (2, self.layers, batch, kv_heads, width + prefix + room, head_dim)
        memory = self._memory.take(math.prod(shape), dtype, device)
        lower = memory[: math.prod(shape)].view(shape)
        runs: list[Run] = []
        for row, context in enumerate(contexts):
            # Padding is masked, but what is masked must still be a number.
            lower[:, :, row, :, : width - (context.columns if context is not None else 0)] = 0
            if context is not None:
                chunks, rows, deltas = context.even_parts(prefix, sink)
                if queries is not None and self._in_place and batch == 1 and device.type == "cpu":
                    # The order of columns is nobody's concern: positions are in the keys.
                    runs, (chunks, rows, deltas) = split_runs(chunks, rows, deltas, dtype, queries)
                entries = sum(map(len, rows))
                assemble(chunks, rows, deltas, self.rotary, lower[:, :, row, :, width - entries : width])
        lower[:, :, :, :, width : width + prefix] = prefix_kv[:, : self.layers, None].to(dtype)
        layers = [RoomyLayer(lower[:, i], width + prefix) for i in range(self.layers)]
        upper = torch.empty(
            (2, total_layers - self.layers, batch, kv_heads, prefix + room, head_dim), dtype=dtype, device=device
        )
        upper[:, :, :, :, :prefix] = prefix_kv[:, self.layers :, None].to(dtype)
        layers += [RoomyLayer(upper[:, i], prefix) for i in range(total_layers - self.layers)]
        give_back = partial(self._memory.keep, memory)
        if not runs:
            return RoomyCache(layers, give_back)
        unread = EncodingsInPlace(runs, self.rotary)
        return RoomyCache(layers, give_back, unread, lower[:, :, 0, :, : unread.columns])


class InTurn(AbstractContextManager[None]):
    """Several context managers, entered one after the other, which may be again and again."""

    def __init__(self, managers: Sequence[AbstractContextManager[None]]):
        self.managers, self._entered = managers, ExitStack()

    def __enter__(self) -> None:
        for manager in self.managers:
            self._entered.enter_context(manager)

    def __exit__(self, *raised: object) -> None:
        self._entered.close()


class RaggedHook(AbstractContextManager[None]):
    """While entered, every forward pass of the model attends to the ragged rows of a batch's contexts, too.

    Its queries stand behind all positions that the contexts take.

    Args:
        model: the whole causal language model.
        ragged: the rows; None where no context has any.
        beyond: for each row of the batch, how many positions more its context takes than the cache has columns.

    Attributes:
        ragged, beyond: as above.
    """

    def __init__(self, model: PreTrainedModel, ragged: RaggedContext | None, beyond: torch.Tensor):
        self._model, self.ragged, self.beyond = model, ragged, beyond

    def __enter__(self) -> None:
        def show(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            positions = kwargs["position_ids"]
            times = len(args[0] if args else kwargs["input_ids"]) // len(self.beyond)
            moved = positions + self.beyond.repeat_interleave(times)[:, None]
            return args, {**kwargs, "position_ids": moved, "ragged": self.ragged}

        self._handle = self._model.register_forward_pre_hook(show, with_kwargs=True)

    def __exit__(self, *raised: object) -> None:
        self._handle.remove()


def beside(injected: AbstractContextManager[None]) -> tuple[RaggedContext | None, torch.Tensor | int]:
    """What :meth:`PrefixInjection.installed` shows beside the cache: the rows, and the positions beyond its columns."""
    hook = next((m for m in getattr(injected, "managers", ()) if isinstance(m, RaggedHook)), None)
    return (None, 0) if hook is None else (hook.ragged, hook.beyond)
