"""The two injections: how the decoder is shown the compressed context."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from shared_context.kernels import ChunkKV, assemble, rotate_keys
from shared_context.model.cache import RoomyCache, RoomyLayer
from shared_context.model.in_place import EncodingsInPlace, Run, split_runs
from shared_context.model.low_rank import LowRank

ATTENTION = "shared_context"
"""The name under which this library's attention is registered with transformers."""


@dataclass(frozen=True)
class ContextKV:
    """What a selection hands to the decoder, still in the chunks' own encoding.

    Attributes:
        chunks: the encodings of the chunks, in document order.
        rows: for each chunk the rows of its encoding that its cut keeps, [n_i].
        places: for each kept token its place in the order in which the decoder reads them, [n_i], together 0 to
            entries - 1; the last place is next to the prompt. None reads the chunks as they stand. Cross-attention
            tells chunks apart, not tokens, and pays no heed to it.
        positions: for each kept row the row that it is of the whole encoding, [n_i], counted from where encoding began.
            None where encodings are whole.
        token_ids: the ids of the kept tokens, [entries]; the decoder computes nothing from them, but penalties on
            repetition count them.
    """

    chunks: Sequence[ChunkKV]
    rows: Sequence[torch.Tensor]
    token_ids: torch.Tensor
    places: Sequence[torch.Tensor] | None = None
    positions: Sequence[torch.Tensor] | None = None

    @property
    def entries(self) -> int:
        """KV entries per layer."""
        return len(self.token_ids)

    def turned_by(self, targets: Iterable[torch.Tensor | int], sink: int) -> list[torch.Tensor]:
        """By how many positions each kept key is turned, [n_i] for each chunk.

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

    Returns:
        [batch, queries, heads, head_dim] and None (attention weights are never formed).
    """
    batch, heads, queries, head_dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    group = heads // kv_heads
    if in_place is not None and module.layer_idx < in_place.layers:
        key, value = key[:, :, in_place.columns :], value[:, :, in_place.columns :]
        own = key.shape[2]
        mask = None if attention_mask is None else attention_mask[..., -own:].repeat(1, 1, group, 1)
        packed = query.reshape(batch, kv_heads, group * queries, head_dim)
        out = in_place.attend(module.layer_idx, packed, key, value, mask, scaling).reshape(query.shape)
    elif attention_mask is None and queries > 1:
        # Without a mask all of the sequence is here; or it is one query, which sees every key.
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=heads != kv_heads
        )
    else:
        mask = attention_mask
        if mask is not None:
            mask = mask[..., -keys:].expand(batch, 1, queries, keys).repeat(1, 1, group, 1)
        packed = query.reshape(batch, kv_heads, group * queries, head_dim)
        out = nn.functional.scaled_dot_product_attention(
            packed, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
        ).reshape(batch, heads, queries, value.shape[-1])
    return out.transpose(1, 2).contiguous(), None


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
        inv_freq: the model's rotary frequencies [rotary_dim / 2].
    """

    kind = "prefix"
    in_cache = True

    def __init__(self, layers: int, inv_freq: torch.Tensor):
        self.layers = layers
        self.inv_freq = inv_freq
        self._memory: torch.Tensor | None = None

    def installed(
        self, model: PreTrainedModel, contexts: Sequence[ContextKV | None], sink: int
    ) -> AbstractContextManager[None]:
        """Nothing has to be entered: the context is in the cache."""
        return nullcontext()

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

        Keys take contiguous positions behind the prefix, so that a selection stays inside the trained window however
        long its documents are.

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
        width = max((c.entries for c in contexts if c is not None), default=0)
        batch, device = len(contexts), prefix_kv.device
        shape = (2, self.layers, batch, kv_heads, width + prefix + room, head_dim)
        memory = self._take_memory(math.prod(shape), dtype, device)
        lower = memory[: math.prod(shape)].view(shape)
        runs: list[Run] = []
        for row, context in enumerate(contexts):
            # Padding is masked, but what is masked must still be a number.
            lower[:, :, row, :, : width - (context.entries if context is not None else 0)] = 0
            if context is not None:
                places = context.places or torch.arange(context.entries).split([len(r) for r in context.rows])
                deltas = context.turned_by([prefix + place for place in places], sink)
                chunks, rows = context.chunks, context.rows
                if queries is not None and batch == 1 and device.type == "cpu":
                    # The order of columns is nobody's concern: positions are in the keys.
                    runs, (chunks, rows, deltas) = split_runs(chunks, rows, deltas, dtype, queries)
                entries = sum(map(len, rows))
                assemble(chunks, rows, deltas, self.inv_freq, lower[:, :, row, :, width - entries : width])
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
        unread = EncodingsInPlace(runs, self.inv_freq)
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
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor,
        position: torch.Tensor,
        inv_freq: torch.Tensor,
    ) -> torch.Tensor:
        """What the layer adds to ``states``.

        Args:
            states: [batch, queries, hidden].
            keys, values: [batch, kv_heads, entries, head_dim], keys rotated for their chunk's number.
            mask: bool [batch, entries], False where a row of the batch is padded.
            position: the position of all queries of a row, its number of chunks, [batch].
            inv_freq: [rotary_dim / 2].

        Returns:
            [batch, queries, hidden].
        """
        batch, queries, _ = states.shape
        # Trained weights are in float32 whatever the model's dtype.
        own = states.to(self.q_proj.weight.dtype)
        query = self.q_proj(self.norm(own)).view(batch, queries, self.heads, self.head_dim)
        # one position for all queries of a row: the batch stands where rotate_keys expects the tokens
        query = rotate_keys(query.permute(1, 2, 0, 3), position, inv_freq).permute(2, 1, 0, 3)
        out = nn.functional.scaled_dot_product_attention(
            query,
            keys.to(query.dtype),
            values.to(query.dtype),
            attn_mask=mask[:, None, None, :],
            enable_gqa=self.heads != self.kv_heads,
        )
        # A row without context has nothing to attend to; its softmax is undefined, its contribution is none.
        out = torch.where(mask.any(dim=1)[:, None, None, None], out, 0.0)
        return self.o_proj(out.transpose(1, 2).reshape(batch, queries, -1)).to(states.dtype)


class CrossAttentionInjection(nn.Module):
    """Cross-attention on top of self-attention in each of the bottom M layers, residual, before the MLP.

    Positions are the chunks' (arXiv 2603.04759): keys of the i-th chunk take position i, all queries take n.

    Args:
        model: the whole causal language model; it is hooked while :meth:`installed` is entered, and never edited.
        layers: M.
        inv_freq: the model's rotary frequencies [rotary_dim / 2].
    """

    kind = "cross_attention"
    in_cache = False

    def __init__(self, model: PreTrainedModel, layers: int, inv_freq: torch.Tensor):
        super().__init__()
        config = model.config
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.layers = layers
        self.inv_freq = inv_freq
        self.upper: LowRank | None = None
        self.attentions = nn.ModuleList(
            CrossAttention(config.hidden_size, heads, config.num_key_value_heads, head_dim, config.rms_norm_eps)
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
        self, model: PreTrainedModel, contexts: Sequence[ContextKV | None], sink: int
    ) -> AbstractContextManager[None]:
        """Inject the contexts into every forward pass of ``model`` while entered, which may be again and again.

        Args:
            model: the whole causal language model.
            contexts: one per row of the batch; None injects nothing into that row.
            sink: tokens in front of each chunk while it was encoded.
        """
        if all(c is None for c in contexts):
            return nullcontext()
        return CrossAttentionHooks(self, model, *self._gather(contexts, sink, model))

    def _gather(
        self, contexts: Sequence[ContextKV | None], sink: int, model: PreTrainedModel
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Padded KV [2, M, batch, kv_heads, entries, head_dim], its mask and the queries' positions."""
        width = max(c.entries for c in contexts if c is not None)
        shape = next(c.chunks[0].data.shape for c in contexts if c is not None)
        kv = torch.zeros(
            (2, self.layers, len(contexts), shape[2], width, shape[4]), dtype=model.dtype, device=model.device
        )
        mask = torch.zeros((len(contexts), width), dtype=torch.bool, device=model.device)
        for row, context in enumerate(contexts):
            if context is not None:
                deltas = context.turned_by(range(len(context.rows)), sink)
                place = kv[:, :, row, :, : context.entries]
                assemble(context.chunks, context.rows, deltas, self.inv_freq, place)
                mask[row, : context.entries] = True
        position = torch.tensor([len(c.chunks) if c is not None else 0 for c in contexts], device=model.device)
        return kv, mask, position


class CrossAttentionHooks(AbstractContextManager[None]):
    """While entered, every forward pass of the model attends to a batch's contexts in its bottom layers.

    Args:
        injection: whose modules are used.
        model: the whole causal language model.
        kv, mask, position: what all layers are given, see :class:`CrossAttention`; ``kv`` is [2, M, ...].
    """

    def __init__(
        self,
        injection: CrossAttentionInjection,
        model: PreTrainedModel,
        kv: torch.Tensor,
        mask: torch.Tensor,
        position: torch.Tensor,
    ):
        self._layers = list(zip(injection.attentions, model.base_model.layers, kv.unbind(1), strict=False))
        self._model, self._upper, self._stack = model, injection.upper, ExitStack()
        self._mask, self._position, self._inv_freq = mask, position, injection.inv_freq
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        if self._upper is not None:
            self._stack.enter_context(self._upper.installed(self._model))
        for cross, layer, kv in self._layers:
            residual: dict[str, torch.Tensor] = {}

            def keep_input(_: nn.Module, args: tuple, kwargs: dict, residual: dict = residual) -> None:
                residual["states"] = args[0] if args else kwargs["hidden_states"]

            def add_cross(
                _: nn.Module,
                args: tuple,
                output: object,
                cross: CrossAttention = cross,
                kv: torch.Tensor = kv,
                residual: dict = residual,
            ) -> object:
                first = output[0] if isinstance(output, tuple) else output
                states = residual.pop("states") + first
                # beams and several answers per question repeat the rows of the batch
                times = len(states) // len(self._mask)
                added = first + cross(
                    states,
                    *kv.repeat_interleave(times, 1),
                    self._mask.repeat_interleave(times, 0),
                    self._position.repeat_interleave(times, 0),
                    self._inv_freq,
                )
                return (added, *output[1:]) if isinstance(output, tuple) else added

            self._handles.append(layer.register_forward_pre_hook(keep_input, with_kwargs=True))
            self._handles.append(attention_output(layer).register_forward_hook(add_cross))

    def __exit__(self, *raised: object) -> None:
        self._stack.close()
        while self._handles:
            self._handles.pop().remove()


def attention_output(layer: nn.Module) -> nn.Module:
    """The module of a decoder layer whose output joins the residual stream after self-attention.

    Most families add the attention's output itself; those that norm behind the attention (OLMo-2) add that norm's.
    """
    return layer.self_attn if hasattr(layer, "input_layernorm") else layer.post_attention_layernorm
