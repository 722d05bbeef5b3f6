"""The two injections: how the decoder is shown the compressed context."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from shared_context.kernels import (
    ChunkKV,
    RaggedContext,
    RaggedKV,
    Rotary,
    assemble,
    assemble_ragged,
    attention_by_formula,
    attention_with_lse,
    causal_attention_with_lse,
    joined,
    ragged_attention,
    ragged_attention_by_formula,
    rotate_keys,
)
from shared_context.model.cache import RoomyCache, RoomyLayer
from shared_context.model.importance import ImportanceObserver
from shared_context.model.in_place import EncodingsInPlace, Run, split_runs
from shared_context.model.low_rank import LowRank
from shared_context.model.windows import Positions, PositionsHook, padded

ATTENTION = "shared_context"
"""The name under which this library's attention is registered with transformers."""


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
        span: positions that the context takes; None is as many as it has columns.
    """

    chunks: Sequence[ChunkKV | None]
    rows: Sequence[torch.Tensor]
    token_ids: torch.Tensor
    places: Sequence[torch.Tensor] | None = None
    positions: Sequence[torch.Tensor] | None = None
    coarse: Sequence[CoarseKV | None] | None = None
    span: int | None = None

    @property
    def columns(self) -> int:
        """KV entries that every head has."""
        return len(self.token_ids)

    @property
    def length(self) -> int:
        """Positions that the context takes."""
        return self.columns if self.span is None else self.span

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


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    in_place: EncodingsInPlace | None = None,
    ragged: RaggedContext | None = None,
    observer: ImportanceObserver | None = None,
    sliding_window: int | None = None,
    positions: Positions | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention over a cache whose upper layers do not hold the context.

    The context's columns come first in the cache, so a layer above the injection layers, whose cache is shorter,
    is served by the mask's last columns. Query heads that share a KV head are stacked along the query axis, which
    spares reading, or even repeating, the whole context for every one of them.

    Args:
        query: [batch, heads, queries, head_dim].
        key, value: [batch, kv_heads, keys, head_dim].
        attention_mask: additive [batch, 1, queries, columns >= keys], from :func:`additive_mask`; None is causal.
        in_place: what the first columns of the bottom layers stand for but do not hold; a forward pass of the whole
            model hands it down to here.
        ragged: what the bottom layers attend to beside the cache, other rows in every head; handed down, too.
        observer: watches what is asked of the keys; handed down, too.
        sliding_window: tokens that the layer sees back to.
        positions: where the columns stand; handed down where some layers have windows and a context is injected. Else
            the mask knows of them.
        softcap: of the logits.
        s_aux: attention sinks, a logit for each head [heads] which takes a share of the softmax and gives nothing.

    Returns:
        [batch, queries, heads, head_dim] and None (attention weights are never formed).
    """
    batch, heads, queries, head_dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    if observer is not None:
        out = _observed(module.layer_idx, query, key, value, attention_mask, scaling, observer)
        return out.transpose(1, 2).contiguous(), None
    if in_place is not None and module.layer_idx >= in_place.layers:
        in_place = None
    if ragged is not None and module.layer_idx >= ragged.layers:
        ragged = None
    fused = softcap is None and s_aux is None
    if sliding_window is None:
        positions = None
    if fused and in_place is None and ragged is None and positions is None and attention_mask is None and queries > 1:
        # Without a mask all of the sequence is here; or it is one query, which sees every key.
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=heads != kv_heads
        )
        return out.transpose(1, 2).contiguous(), None
    if in_place is not None:
        key, value = key[:, :, in_place.columns :], value[:, :, in_place.columns :]
    mask, own = attention_mask, key.shape[2]
    if positions is not None:
        mask = positions.mask(sliding_window, own, query.dtype)
    elif mask is None and queries > 1:
        mask = query.new_full((queries, own), torch.finfo(query.dtype).min).triu(1 + own - queries)[None, None]
    if mask is not None:
        mask = mask[..., -own:].expand(-1, 1, queries, own).repeat(1, 1, group, 1)
    packed = query.reshape(batch, kv_heads, group * queries, head_dim)
    if in_place is None and ragged is None and fused:
        out = nn.functional.scaled_dot_product_attention(
            packed, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
    else:
        layer = module.layer_idx
        if softcap is None:
            parts = [attention_with_lse(packed, key, value, mask, scaling)]
        else:
            parts = [attention_by_formula(packed, key, value, mask, scaling, softcap)]
        if ragged is not None:
            # beams and several answers per question repeat the rows of the batch
            times = batch // ragged.counts.shape[1]
            starts, counts = (part[layer].repeat_interleave(times, 0) for part in (ragged.starts, ragged.counts))
            if softcap is None and positions is None:
                parts.append(ragged_attention(packed, ragged.keys, ragged.values, starts, counts, scaling))
            else:
                within = (
                    () if positions is None else (ragged.positions, positions.asked.repeat(1, group), sliding_window)
                )
                rows = (ragged.keys, ragged.values, starts, counts)
                parts.append(ragged_attention_by_formula(packed, *rows, scaling, softcap, *within))
        if s_aux is not None:
            sinks = s_aux.float().view(1, kv_heads, group, 1).expand(batch, -1, -1, queries)
            parts.append((torch.zeros_like(packed), sinks.reshape(batch, kv_heads, group * queries)))
        out = joined(parts) if in_place is None else in_place.attend(layer, packed, parts, scaling)
    return out.reshape(batch, heads, queries, value.shape[-1]).transpose(1, 2).contiguous(), None


def _observed(
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    observer: ImportanceObserver,
) -> torch.Tensor:
    """Attention of a repetition, [batch, heads, queries, head_dim], which the observer takes in on the way.

    What stands in front and the repetition itself are attended to one by one: the denominator of the first is what
    importance is a share of.
    """
    (batch, _, queries, head_dim), seen, group = query.shape, observer.seen, query.shape[1] // key.shape[1]
    packed = query.reshape(batch, -1, group * queries, head_dim)
    in_front = own = None
    # Only sliding windows hide anything that stands in front, and attention without a mask is faster.
    if mask is not None and mask[..., -key.shape[2] :][..., :seen].amin() < 0:
        in_front, own = mask[:1, :, :, -key.shape[2] :].repeat(1, 1, group, 1).tensor_split([seen], dim=-1)
    front = attention_with_lse(packed, key[:, :, :seen], value[:, :, :seen], in_front, scaling)
    observer.see(layer, packed, key[:, :, :seen], front[1], in_front, scaling)
    itself = key[:, :, seen:], value[:, :, seen:]
    if own is None:
        itself = causal_attention_with_lse(query, *(part.repeat_interleave(group, 1) for part in itself), scaling)
        itself = [part.reshape(batch, -1, group * queries, *part.shape[3:]) for part in itself]
    else:
        itself = attention_with_lse(packed, *itself, own, scaling)
    return joined([front, itself]).reshape(query.shape)


def additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor | None:
    """The mask of scaled dot-product attention as numbers to add, made once for all layers.

    A boolean mask would be turned into these numbers in every layer, over all columns of the context.
    """
    seen = sdpa_mask(*args, **kwargs)
    if seen is None:
        return None
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, additive_mask)


class PrefixInjection:
    """Injected KV join the softmax of the decoder's own self-attention, in the bottom M layers.

    Args:
        layers: M.
        rotary: of the model's layers.
        windowed: whether some layers see less than the model's window.
        fused: whether fused kernels compute their attention.
    """

    kind = "prefix"
    in_cache = True

    def __init__(self, layers: int, rotary: Rotary, *, windowed: bool = False, fused: bool = True):
        self.layers = layers
        self.rotary = rotary
        self._windowed = windowed
        self._in_place = fused and not windowed
        self._memory: torch.Tensor | None = None

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
        targets = [[prefix + p.places for p in row] for row in parts] if self._windowed else None
        ragged = assemble_ragged(kv, deltas, self.rotary, model.dtype, model.device, targets)
        hooks: list[AbstractContextManager[None]] = []
        if ragged is not None:
            beyond = [c.length - c.columns if c is not None else 0 for c in contexts]
            hooks.append(RaggedHook(model, ragged, torch.tensor(beyond, device=model.device)))
        if self._windowed and any(c is not None for c in contexts):
            places = [torch.arange(0) if c is None else prefix + torch.cat(c.places_in_order()) for c in contexts]
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
        memory = self._take_memory(math.prod(shape), dtype, device)
        lower = memory[: math.prod(shape)].view(shape)
        runs: list[Run] = []
        for row, context in enumerate(contexts):
            # Padding is masked, but what is masked must still be a number.
            lower[:, :, row, :, : width - (context.columns if context is not None else 0)] = 0
            if context is not None:
                deltas = context.turned_by([prefix + place for place in context.places_in_order()], sink)
                even = [part for part in zip(context.chunks, context.rows, deltas, strict=True) if part[0] is not None]
                chunks, rows, deltas = ([part[i] for part in even] for i in range(3))
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
        give_back = partial(self._keep_memory, memory)
        if not runs:
            return RoomyCache(layers, give_back)
        unread = EncodingsInPlace(runs, self.rotary)
        return RoomyCache(layers, give_back, unread, lower[:, :, 0, :, : unread.columns])

    def _take_memory(self, size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """At least so many elements, with anything in them; on a processor those of an earlier cache.

        Fresh memory costs a page fault every 4 KB there, a fifth of the time to the first token. Accelerators have an
        allocator that keeps memory by itself.
        """
        kept, self._memory = self._memory, None
        if kept is not None and kept.numel() >= size and (kept.dtype, kept.device) == (dtype, device):
            return kept
        return torch.empty(size, dtype=dtype, device=device)

    def _keep_memory(self, memory: torch.Tensor) -> None:
        kept = self._memory
        if memory.device.type == "cpu" and (kept is None or kept.numel() < memory.numel()):
            self._memory = memory


class InTurn(AbstractContextManager[None]):
    """Several context managers, entered one after the other, which may be again and again."""

    def __init__(self, managers: Sequence[AbstractContextManager[None]]):
        self._managers, self._entered = managers, ExitStack()

    def __enter__(self) -> None:
        for manager in self._managers:
            self._entered.enter_context(manager)

    def __exit__(self, *raised: object) -> None:
        self._entered.close()


class RaggedHook(AbstractContextManager[None]):
    """While entered, every forward pass of the model attends to the ragged rows of a batch's contexts, too.

    Args:
        model: the whole causal language model.
        ragged: the rows.
        beyond: for each row of the batch, how many positions more its context takes than the cache has columns.
    """

    def __init__(self, model: PreTrainedModel, ragged: RaggedContext, beyond: torch.Tensor):
        self._model, self._ragged, self._beyond = model, ragged, beyond
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> None:
        def show(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            positions = kwargs["position_ids"]
            times = len(args[0] if args else kwargs["input_ids"]) // len(self._beyond)
            moved = positions + self._beyond.repeat_interleave(times)[:, None]
            return args, {**kwargs, "position_ids": moved, "ragged": self._ragged}

        self._handle = self._model.register_forward_pre_hook(show, with_kwargs=True)

    def __exit__(self, *raised: object) -> None:
        self._handle.remove()


class CrossAttention(nn.Module):
    """The paper's separate attention of one decoder layer: own norm, query and output projection.

    The output projection begins at zero, so an untrained module leaves the model as it was.

    Args:
        hidden_size: of the decoder's states.
        heads, kv_heads, head_dim: as in the decoder's self-attention.
        eps: of the norm.
    """

    def __init__(self, hidden_size: int, heads: int, kv_heads: int, head_dim: int, eps: float):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.norm = nn.RMSNorm(hidden_size, eps=eps)
        self.q_proj = nn.Linear(hidden_size, heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, hidden_size, bias=False)
        nn.init.zeros_(self.o_proj.weight)

    def forward(
        self,
        states: torch.Tensor,
        context: RaggedContext,
        layer: int,
        position: torch.Tensor,
        rotary: Rotary,
    ) -> torch.Tensor:
        """What the layer adds to ``states``.

        Args:
            states: [batch, queries, hidden].
            context: keys, rotated for their chunk's number, and values, of all layers; its batch may be repeated.
            layer: its number.
            position: the position of all queries of a row, its number of chunks, [batch].
            rotary: of the layer.

        Returns:
            [batch, queries, hidden].
        """
        batch, queries, _ = states.shape
        # Trained weights are in float32 whatever the model's dtype.
        own = states.to(self.q_proj.weight.dtype)
        query = self.q_proj(self.norm(own)).view(batch, queries, self.heads, self.head_dim)
        # one position for all queries of a row: the batch stands where rotate_keys expects the tokens
        query = rotate_keys(query.permute(1, 2, 0, 3), position, rotary).permute(2, 1, 0, 3)
        packed = query.reshape(batch, self.kv_heads, self.heads // self.kv_heads * queries, self.head_dim)
        # beams and several answers per question repeat the rows of the batch
        times = batch // context.counts.shape[1]
        starts, counts = (part[layer].repeat_interleave(times, 0) for part in (context.starts, context.counts))
        # A row without context has nothing to attend to and gets nothing.
        out, _ = ragged_attention(packed, context.keys, context.values, starts, counts)
        out = out.view(batch, self.heads, queries, self.head_dim)
        return self.o_proj(out.transpose(1, 2).reshape(batch, queries, -1)).to(states.dtype)


class CrossAttentionInjection(nn.Module):
    """Cross-attention on top of self-attention in each of the bottom M layers, residual, before the MLP.

    Positions are the chunks' (arXiv 2603.04759): keys of the i-th chunk take position i, all queries take n.

    Args:
        model: the whole causal language model; it is hooked while :meth:`installed` is entered, and never edited.
        layers: M.
        rotary: of the model's layers.
    """

    kind = "cross_attention"
    in_cache = False

    def __init__(self, model: PreTrainedModel, layers: int, rotary: Rotary):
        super().__init__()
        config = model.config
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.layers = layers
        self.rotary = rotary
        self.upper: LowRank | None = None
        self.attentions = nn.ModuleList(
            CrossAttention(config.hidden_size, heads, config.num_key_value_heads, head_dim, norm_eps(config))
            for _ in range(layers)
        ).to(device=model.device, dtype=model.dtype)
        for cross, layer in zip(self.attentions, model.base_model.layers, strict=False):
            own = getattr(layer.self_attn, "q_proj", None)
            if own is not None:  # Phi-3 keeps q, k and v in one projection
                cross.q_proj.weight.data.copy_(own.weight.data)

    def adapt_upper(self, model: PreTrainedModel, rank: int | None, alpha: float | None) -> None:
        """Have low-rank updates for the attention of the layers above, which add nothing before they are trained.

        The paper trains that attention beside the injection's own; it is updated behind a context only.

        Args:
            model: the whole causal language model.
            rank, alpha: updates are scaled by ``alpha / rank``; None for none.
        """
        layers = model.config.num_hidden_layers
        self.upper = None if rank is None else LowRank(model, layers, rank, alpha / rank, first=self.layers)

    def installed(
        self, model: PreTrainedModel, contexts: Sequence[ContextKV | None], sink: int, prefix: int
    ) -> AbstractContextManager[None]:
        """Inject the contexts into every forward pass of ``model`` while entered, which may be again and again.

        Args:
            model: the whole causal language model.
            contexts: one per row of the batch; None injects nothing into that row.
            sink: tokens in front of each chunk while it was encoded.
            prefix: of the prompt; positions are the chunks' here, and none is taken by it.
        """
        if all(c is None for c in contexts):
            return nullcontext()
        parts: list[list[RaggedKV]] = []
        deltas: list[list[torch.Tensor]] = []
        for context in contexts:
            parts.append([])
            deltas.append([])
            for number, kv, positions in _by_chunk(context):
                parts[-1].append(kv)
                deltas[-1].append(number - (sink + positions))
        # In the type of what attends to it.
        ragged = assemble_ragged(parts, deltas, self.rotary, self.attentions[0].q_proj.weight.dtype, model.device)
        position = torch.tensor([len(c.chunks) if c is not None else 0 for c in contexts], device=model.device)
        return nullcontext() if ragged is None else CrossAttentionHooks(self, model, ragged, position)


def _by_chunk(context: ContextKV | None) -> Iterator[tuple[int, RaggedKV, torch.Tensor]]:
    """All that a context shows, as ragged rows: the chunk's number, the rows, and which of the encoding they are."""
    if context is None:
        return
    stood = context.positions or context.rows
    for number, (chunk, rows, positions) in enumerate(zip(context.chunks, context.rows, stood, strict=True)):
        if len(rows):
            kept = torch.zeros(chunk.tokens, dtype=torch.bool)
            kept[rows] = True
            heads = chunk.layers * chunk.data.shape[2]
            whole = chunk.ragged(kept.expand(chunk.layers, chunk.data.shape[2], -1))
            yield number, whole, positions.repeat(heads)
    for number, part in enumerate(context.coarse or ()):
        if part is not None:
            yield number, part.kv, part.positions


class CrossAttentionHooks(AbstractContextManager[None]):
    """While entered, every forward pass of the model attends to a batch's contexts in its bottom layers.

    Args:
        injection: whose modules are used.
        model: the whole causal language model.
        context, position: what all layers are given, see :class:`CrossAttention`.
    """

    def __init__(
        self,
        injection: CrossAttentionInjection,
        model: PreTrainedModel,
        context: RaggedContext,
        position: torch.Tensor,
    ):
        self._layers = list(zip(injection.attentions, model.base_model.layers, strict=False))
        self._model, self._upper, self._stack = model, injection.upper, ExitStack()
        self._context, self._position, self._rotary = context, position, injection.rotary
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        if self._upper is not None:
            self._stack.enter_context(self._upper.installed(self._model))
        for number, (cross, layer) in enumerate(self._layers):
            own = self._rotary.of_layer(number)
            residual: dict[str, torch.Tensor] = {}

            def keep_input(_: nn.Module, args: tuple, kwargs: dict, residual: dict = residual) -> None:
                residual["states"] = args[0] if args else kwargs["hidden_states"]

            def add_cross(
                _: nn.Module,
                args: tuple,
                output: object,
                cross: CrossAttention = cross,
                number: int = number,
                rotary: Rotary = own,
                residual: dict = residual,
            ) -> object:
                first = output[0] if isinstance(output, tuple) else output
                states = residual.pop("states") + first
                position = self._position.repeat_interleave(len(states) // len(self._position))
                added = first + cross(states, self._context, number, position, rotary)
                return (added, *output[1:]) if isinstance(output, tuple) else added

            self._handles.append(layer.register_forward_pre_hook(keep_input, with_kwargs=True))
            self._handles.append(attention_output(layer).register_forward_hook(add_cross))

    def __exit__(self, *raised: object) -> None:
        self._stack.close()
        while self._handles:
            self._handles.pop().remove()


def norm_eps(config: PretrainedConfig) -> float:
    """What keeps a model's norms from dividing by zero, by whatever name its family has for it."""
    names = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")
    return next((eps for name in names if (eps := getattr(config, name, None)) is not None), 1e-5)


def attention_output(layer: nn.Module) -> nn.Module:
    """The module of a decoder layer whose output joins the residual stream after self-attention.

    Most families add the attention's output itself; those that norm behind the attention (OLMo-2) add that norm's.
    """
    return layer.self_attn if hasattr(layer, "input_layernorm") else layer.post_attention_layernorm
