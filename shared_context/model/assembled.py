"""A prompt as another engine computes it: token ids, and the keys and values of the first of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shared_context.config import require
from shared_context.errors import ConfigError
from shared_context.model.cache import CACHE_ARGUMENT, pages
from shared_context.model.decoder import InjectingDecoder, release
from shared_context.model.requests import Request

CPU = torch.device("cpu")


@dataclass(frozen=True)
class AssembledPrompt:
    """A prompt whose first tokens need not be computed any more.

    Attributes:
        token_ids: the whole prompt: prefix, context, question.
        key_values: of the first ``computed`` of them over all layers, as if they stood side by side from position 0
            on: [2, layers, computed, kv_heads, head_dim], keys first, in the processor's memory.
    """

    token_ids: tuple[int, ...]
    key_values: torch.Tensor

    @property
    def computed(self) -> int:
        """Tokens at the prompt's beginning that have keys and values."""
        return self.key_values.shape[2]


def assembled(decoder: InjectingDecoder, request: Request) -> AssembledPrompt:
    """A request's prefix and context, put together.

    Raises:
        ConfigError: the context cannot stand in another engine's cache as it is.
    """
    injection, total = decoder.injection, decoder.hf_model.config.num_hidden_layers
    whole = injection.in_cache and injection.layers == total
    require(whole, "injection_layers", injection.layers, f"another engine's cache holds all {total} layers")
    (context,) = decoder.contexts([request], 0)
    if context is not None and (context.coarse_parts or context.length != context.columns):
        raise ConfigError(
            "The context has grains coarser than 1, which keep other rows in every head or leave positions out; "
            "another engine's cache has one row a token for all heads: select without ratio, fine or coarse."
        )
    if context is None:
        ids = (*request.prompt.prefix, *request.prompt.suffix)
        return AssembledPrompt(ids, torch.empty(2, total, 0, 0, 0, dtype=decoder.hf_model.dtype))
    with decoder.lock, torch.inference_mode():
        inputs, _ = decoder.inputs([request], [context], room=0)
        columns, prefix, layers = context.columns, len(request.prompt.prefix), inputs[CACHE_ARGUMENT].layers
        _, kv_heads, _, head_dim = layers[0].keys.shape
        key_values = pages((2, total, prefix + columns, kv_heads, head_dim), layers[0].keys.dtype, CPU)
        for i, layer in enumerate(layers):
            for part, rows in zip(key_values[:, i], (layer.keys[0], layer.values[0]), strict=True):
                # In the decoder's cache the context comes first; its positions are behind the prefix all the same.
                part[:prefix] = rows[:, columns : columns + prefix].transpose(0, 1)
                part[prefix:] = rows[:, :columns].transpose(0, 1)
        release(inputs)
    ids = (*request.prompt.prefix, *context.token_ids.tolist(), *request.prompt.suffix)
    return AssembledPrompt(ids, key_values)
