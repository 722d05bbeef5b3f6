"""What reads a long text instead of a store: full attention, a stream, an encoder-decoder layout; one model for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import DynamicLayer

from shared_context import SharedLLMModel
from shared_context.config import require
from shared_context.kernels import ChunkKV, RaggedContext, Rotary, assemble, rotate_keys
from shared_context.model.attention import additive_mask
from shared_context.model.cache import CACHE_ARGUMENT, RoomyLayer, pages
from shared_context.model.cross_attention import CrossAttentionHooks, CrossAttentionInjection

SINKS = 4
"""First tokens that a stream keeps, as many as StreamingLLM (arXiv 2309.17453) does."""

ATTENTION = "shared_context_reading"
"""The name under which the attention of these readers is registered with transformers."""


class Reader(Protocol):
    """Reads a text step by step."""

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Read on.

        Args:
            ids: the next token ids, [tokens].

        Returns:
            Logits [vocabulary] after the last of them.
        """


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention of many queries over many keys.

    Neither the mask is repeated for each group of heads, as the library's own attention does it for the few queries
    of a question, nor the keys for each head, as transformers does it: a step of 1,024 tokens over 8,192 keys takes
    little more than half of either's time on a processor.

    Args:
        query: [batch, heads, queries, head_dim].
        key, value: [batch, kv_heads, keys, head_dim].
        attention_mask: additive, [batch, 1, queries, keys]; None is causal.

    Returns:
        [batch, queries, heads, head_dim] and None.
    """
    out = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        is_causal=attention_mask is None and query.shape[2] > 1,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, additive_mask)


class FullAttention(Reader):
    """The base model with the keys and values of everything it has read.

    Args:
        model: whose base model reads; an adapter has no part in it.
        capacity: tokens that room is made for, so that no step copies what was read before.
    """

    def __init__(self, model: SharedLLMModel, capacity: int):
        self._model = model.hf_model
        room = pages(kv_shape(model, capacity), model.dtype, model.device)
        self._cache = Cache(layers=[RoomyLayer(part, 0) for part in room.unbind(1)])

    @torch.inference_mode()
    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Read on; takes and returns what :meth:`Reader.read` says."""
        at = self._cache.get_seq_length()
        return _step(self._model, ids, at, self._cache, None)


class Stream(Reader):
    """The base model with keys and values of the first tokens and of the last ones (StreamingLLM, arXiv 2309.17453).

    Positions are those inside the cache. Attention with rotary positions depends on distances alone, so it is not the
    window that moves back after each step but the sinks that move on, a few keys instead of thousands; and the window
    is a ring, in which a step's keys take the places of the oldest. So a step copies nothing and turns next to nothing.

    Args:
        model: whose base model reads; an adapter has no part in it.
        window: tokens in sight at most, sinks and the step itself included; None is the model's own window.
        sinks: first tokens that stay.

    Raises:
        ConfigError: the window is larger than the model's, or holds no more than the sinks.
    """

    def __init__(self, model: SharedLLMModel, window: int | None = None, sinks: int = SINKS):
        window = model.context_window if window is None else window
        require(
            sinks < window <= model.context_window,
            "window",
            window,
            f"must hold more than the {sinks} sinks and no more than the model's {model.context_window} tokens",
        )
        self.window, self.sinks = window, sinks
        self._model = model.hf_model
        self._read = 0
        room = torch.empty(kv_shape(model, window), dtype=model.dtype, device=model.device)
        rotary = model.injection.rotary
        self._layers = [_RingLayer(part, sinks, rotary.of_layer(i)) for i, part in enumerate(room.unbind(1))]
        self._cache = Cache(layers=self._layers)

    @torch.inference_mode()
    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Read on, at most as many tokens as the window holds beside the sinks.

        Takes and returns what :meth:`Reader.read` says.

        Raises:
            ConfigError: these are more.
        """
        new, most = len(ids), self.window - self.sinks
        require(new <= most, "tokens of a step", new, f"the window holds {most} beside the sinks")
        end = self._read + new
        numbers = torch.arange(self._read, end, device=ids.device)
        places = torch.where(numbers < self.sinks, numbers, self.sinks + (numbers - self.sinks) % most)
        for layer in self._layers:
            layer.next_step(places, min(end, self.window), max(0, end - self.window))
        hidden = torch.finfo(self._model.dtype).min
        mask = torch.zeros((new, min(end, self.window)), dtype=self._model.dtype, device=ids.device)
        mask[:, places] = torch.full((new, new), hidden, dtype=mask.dtype, device=ids.device).triu_(1)
        logits = _step(self._model, ids, self._read, self._cache, mask[None, None])
        self._read = end
        return logits


class _RingLayer(DynamicLayer):
    """One layer of a :class:`Stream`.

    Args:
        room: [2, 1, kv_heads, window, head_dim].
        sinks: entries that are never overwritten.
        rotary: of the layer.
    """

    def __init__(self, room: torch.Tensor, sinks: int, rotary: Rotary):
        super().__init__()
        self.dtype, self.device = room.dtype, room.device
        self.is_initialized = True
        self._room, self._rotary = room, rotary
        self._sinks = room[0, :, :, :0]
        self._most_sinks = sinks

    def next_step(self, places: torch.Tensor, length: int, moved: int) -> None:
        """Where the next keys go, how many entries are then in sight, and how far the sinks have moved by then."""
        self._places, self._length, self._moved = places, length, moved

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._room
        keys.index_copy_(2, self._places, key_states)
        values.index_copy_(2, self._places, value_states)
        if self._moved:
            # from where they were at first, so that no rounding adds up
            delta = torch.full((self._most_sinks,), self._moved, device=self.device)
            keys[:, :, : self._most_sinks] = rotate_keys(self._sinks, delta, self._rotary)
        else:
            self._sinks = keys[:, :, : self._most_sinks].clone()
        return keys[:, :, : self._length], values[:, :, : self._length]


class EncoderDecoder:
    """The layout of CEPE (arXiv 2402.16617): chunks encoded side by side, every layer of the decoder attends to all.

    Made of the library's own parts, the paper's cross-attention over all layers and every token of every chunk. It is
    not trained, so that its answers mean nothing: it is here for what it costs.

    Args:
        model: whose base model encodes and decodes; an adapter has no part in it.
        chunk_size: tokens.
    """

    def __init__(self, model: SharedLLMModel, chunk_size: int):
        self._model = SharedLLMModel(model.hf_model, model.tokenizer, name=model.name, injection="cross_attention")
        self._chunk_size = chunk_size

    @property
    def injection(self) -> CrossAttentionInjection:
        """The cross-attention of all layers."""
        assert isinstance(self._model.injection, CrossAttentionInjection)
        return self._model.injection

    @torch.inference_mode()
    def first_token(self, ids: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """Encode a text and read a prompt that attends to it.

        Args:
            ids: of the text, [tokens].
            prompt: of what is asked, [tokens].

        Returns:
            Logits [vocabulary] after the prompt.
        """
        model, injection = self._model.hf_model, self.injection
        sink = len(self._model.prompt_format.prefix)
        chunks = ids.split(self._chunk_size)
        kv = pages(kv_shape(self._model, len(ids)), model.dtype, model.device)
        at = 0
        for number, chunk in enumerate(chunks):
            rows = torch.arange(len(chunk))
            place = kv[:, :, 0, :, at : at + len(chunk)]
            encoded = ChunkKV(self._model.compressor.key_values([chunk])[:, :, 0])
            assemble([encoded], [rows], [number - (sink + rows)], injection.rotary, place)
            at += len(chunk)
        counts = torch.full((kv.shape[1], 1, kv.shape[3]), len(ids))
        starts = torch.arange(counts.numel()).view(counts.shape) * len(ids)
        context = RaggedContext(kv[0].flatten(0, 3), kv[1].flatten(0, 3), starts, counts)
        position = torch.tensor([len(chunks)], device=model.device)
        with CrossAttentionHooks(injection, model, context, position):
            return model(input_ids=prompt[None], use_cache=False, logits_to_keep=1).logits[0, -1]


def kv_shape(model: SharedLLMModel, tokens: int) -> tuple[int, ...]:
    """Of keys and values of all layers: [2, N, 1, kv_heads, tokens, head_dim]."""
    config = model.hf_model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2, config.num_hidden_layers, 1, config.num_key_value_heads, tokens, head_dim


@contextmanager
def reading(model: SharedLLMModel, implementation: str = ATTENTION) -> Iterator[None]:
    """While entered, the model attends in another way: as :func:`attention` does, which suits long steps best.

    Args:
        model: whose base model does.
        implementation: a name that is registered with transformers.
    """
    config = model.hf_model.config
    own, config._attn_implementation = config._attn_implementation, implementation
    try:
        yield
    finally:
        config._attn_implementation = own


def _step(model: nn.Module, ids: torch.Tensor, at: int, cache: Cache, mask: torch.Tensor | None) -> torch.Tensor:
    """Logits [vocabulary] after these tokens, the first of which has the position ``at``."""
    positions = torch.arange(at, at + len(ids), device=ids.device)[None]
    out = model(
        input_ids=ids[None], position_ids=positions, attention_mask=mask, logits_to_keep=1, **{CACHE_ARGUMENT: cache}
    )
    return out.logits[0, -1]
