"""The attention of every layer: over a cache, encodings read in place and ragged rows, in one softmax."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from shared_context.kernels import (
    RaggedContext,
    attention_by_formula,
    attention_with_lse,
    joined,
    ragged_attention,
    ragged_attention_by_formula,
)
from shared_context.model.importance import ImportanceObserver
from shared_context.model.in_place import EncodingsInPlace
from shared_context.model.steps import CacheOfSeveral
from shared_context.model.windows import Positions

ATTENTION = "shared_context"
"""The name under which this library's attention is registered with transformers."""


class AttentionModule(Protocol):
    """What is known of a model's attention: which layer it is of."""

    layer_idx: int


def attention(
    module: AttentionModule,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    in_place: EncodingsInPlace | None = None,
    ragged: RaggedContext | None = None,
    observer: ImportanceObserver | None = None,
    hidden: torch.Tensor | None = None,
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
        hidden: columns that single heads of the bottom layers do not see, bool [layers, batch, kv_heads, the first
            columns]; handed down in training.
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
        settings = scaling, softcap, s_aux, getattr(module, "o_proj", None)
        out = _observed(observer, module.layer_idx, query, key, value, attention_mask, *settings)
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
    if positions is not None and sliding_window is not None:
        mask = positions.mask(sliding_window, own, query.dtype)
    elif mask is None and queries > 1:
        mask = query.new_full((queries, own), torch.finfo(query.dtype).min).triu(1 + own - queries)[None, None]
    if mask is not None:
        mask = mask[..., -own:].expand(-1, 1, queries, own).repeat(1, 1, group, 1)
    mask = _without(hidden, module.layer_idx, mask, query, own)
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
            parts.append(_sinks(s_aux, packed))
        out = joined(parts) if in_place is None else in_place.attend(layer, packed, parts, scaling)
    return out.reshape(batch, heads, queries, value.shape[-1]).transpose(1, 2).contiguous(), None


def _observed(
    observer: ImportanceObserver,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *settings: Any,
) -> torch.Tensor:
    """Attention of a repetition, [batch, heads, queries, head_dim], which the observer computes and takes in."""
    # Only sliding windows hide anything that stands in front, and from the last token more than from any other.
    seen = None if mask is None else mask[0, 0, :, -key.shape[2] :]
    windowed = seen is not None and bool(seen[-1, : observer.seen].amin() < 0)
    return observer.attend(layer, query, key, value, seen if windowed else None, *settings)


def _without(
    hidden: torch.Tensor | None, layer: int, mask: torch.Tensor | None, query: torch.Tensor, keys: int
) -> torch.Tensor | None:
    """The mask of a layer, which hides from each head columns of its own, too; of none above the injection layers."""
    if hidden is None or layer >= len(hidden):
        return mask
    _, batch, kv_heads, columns = hidden.shape
    rows = query.shape[1] // kv_heads * query.shape[2]
    mask = query.new_zeros(1, 1, rows, keys) if mask is None else mask
    mask = mask.repeat(batch // len(mask), kv_heads, 1, 1)
    mask[..., :columns].masked_fill_(hidden[layer][:, :, None], torch.finfo(query.dtype).min)
    return mask


def _sinks(logits: torch.Tensor, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What attention sinks, logits [heads], give to queries [batch, kv_heads, group * queries, head_dim]: nothing."""
    batch, kv_heads, asked, _ = packed.shape
    taken = logits.float().view(1, kv_heads, -1, 1)
    taken = taken.expand(batch, -1, -1, asked // taken.shape[2]).reshape(batch, kv_heads, asked)
    return torch.zeros_like(packed), taken


def additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor | None:
    """The mask of scaled dot-product attention as numbers to add, made once for all layers.

    A boolean mask would be turned into these numbers in every layer, over all columns of the context.
    """
    seen = sdpa_mask(*args, **kwargs)
    if seen is None:
        return None
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def attention_of_rows(
    module: AttentionModule,
    query: torch.Tensor,
    *others: torch.Tensor | None,
    several: CacheOfSeveral | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """:func:`attention`; of each row by itself where the batch is of answers that have caches of their own.

    Args:
        several: these caches; a forward pass of the whole model hands them down to here.
    """
    if several is None:
        return attention(module, query, *others, **settings)  # type: ignore[arg-type]  # key, value and mask
    return several.attend(partial(attention, module), module.layer_idx, query, **settings)


AttentionInterface.register(ATTENTION, attention_of_rows)
AttentionMaskInterface.register(ATTENTION, additive_mask)
