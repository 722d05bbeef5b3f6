"""A prompt as another engine computes it: token ids, and the keys and values of the first of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from shared_context.config import require
from shared_context.errors import ConfigError
from shared_context.model.decoder import InjectingDecoder
from shared_context.model.requests import Request


@dataclass(frozen=True)
class AssembledPrompt:
    """A prompt whose first tokens need not be computed any more.

    Attributes:
        token_ids: the whole prompt: prefix, context, question.
        computed: tokens at its beginning that have keys and values.
        layers: puts these together, one layer after the other: of each [2, computed, kv_heads, head_dim], keys first,
            in the processor's memory, which the next one takes.
    """

    token_ids: tuple[int, ...]
    computed: int
    layers: Callable[[], Iterator[torch.Tensor]]

    @property
    def key_values(self) -> torch.Tensor:
        """Those of all layers, as if the tokens stood side by side from position 0 on; put together at every call.

        Returns:
            [2, layers, computed, kv_heads, head_dim], keys first, in the processor's memory.
        """
        return torch.stack([rows.clone() for rows in self.layers()], dim=1)


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
    prefix, suffix = request.prompt.prefix, request.prompt.suffix
    if context is None:
        nothing = torch.empty(2, 0, 0, 0, dtype=decoder.hf_model.dtype)
        return AssembledPrompt((*prefix, *suffix), 0, lambda: iter([nothing] * total))
    ids = (*prefix, *context.token_ids.tolist(), *suffix)
    return AssembledPrompt(ids, len(prefix) + context.columns, decoder.by_layer(request, context))
