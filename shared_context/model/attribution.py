"""Attribution: how much of their attention the tokens of an answer pay to what was injected."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn

from shared_context.errors import ConfigError
from shared_context.model.cache import CACHE_ARGUMENT
from shared_context.model.decoder import InjectingDecoder, release
from shared_context.model.importance import AllSeenError
from shared_context.model.prompt import Prompt
from shared_context.model.requests import Request


class AnswerObserver:
    """Watches an answer being read: what each token that predicts a part of it pays to each row of the context.

    Hand it to a forward pass as ``observer``; the cache holds the context and the prompt's prefix, in this order.

    Args:
        layers: that see the context; nothing above them is computed.
        parts: rows of each part of the context, in order.
        prefix: rows of the prompt's prefix.
        answer: tokens at the end of the pass whose attention counts.
    """

    def __init__(self, layers: int, parts: Sequence[int], prefix: int, answer: int):
        self.seen = sum(parts) + prefix
        self._layers, self._parts, self._prefix, self._answer = layers, parts, prefix, answer
        self._strongest = torch.zeros(len(parts))

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
        scaling: float | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
        output: nn.Module | None = None,
    ) -> torch.Tensor:
        """One layer's attention, as :meth:`ImportanceObserver.attend` takes and gives it; there are no windows."""
        tokens, heads = query.shape[2], query.shape[1]
        keys, values = (part.repeat_interleave(heads // part.shape[1], dim=1) for part in (key, value))
        scores = query.float() @ keys.float().mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        in_front = scores[0, :, -self._answer :, : self.seen].softmax(dim=-1)
        *parts, _ = in_front.split([*self._parts, self._prefix], dim=-1)
        # What is copied is read row by row, so the row that a head looks at most changes from token to token.
        by_part = torch.stack([part.amax(dim=-1).mean(dim=-1).amax() for part in parts])
        self._strongest = torch.maximum(self._strongest, by_part.cpu())
        if layer == self._layers - 1:
            raise AllSeenError
        scores[..., self.seen :] += scores.new_full((tokens, tokens), -torch.inf).triu(1)
        if sinks is not None:
            taken = sinks.float().view(1, heads, 1, 1).expand(len(scores), heads, tokens, 1)
            scores = torch.cat([scores, taken], dim=-1)
        return scores.softmax(dim=-1)[..., : keys.shape[2]].to(value.dtype) @ values

    def strongest(self) -> list[float]:
        """Of each part, between 0 and 1: see :func:`attention_paid`."""
        return self._strongest.tolist()


def attention_paid(
    decoder: InjectingDecoder, request: Request, parts: Sequence[int], answer: Sequence[int]
) -> list[float]:
    """How much attention an answer pays to each part of its context, between 0 and 1.

    For a head that is the largest share that a token pays to any row of the part, on average over the answer's tokens;
    of all heads of all layers the most interested one counts. Most heads look at what is near or at everything alike;
    those that fetch what an answer says, and only those, look at the place where it stands.

    Args:
        decoder: of prefix injection.
        request: with a context.
        parts: entries of each part of it, in order.
        answer: token ids, at least one.

    Raises:
        ConfigError: the context or the model is one whose attention is not watched.
    """
    injection = decoder.injection
    if not injection.in_cache:
        raise ConfigError(f"Attention is watched with prefix injection, and this is {injection.kind} injection.")
    if injection.windowed:
        raise ConfigError("Attention is watched where all layers see the same, and some of this model have windows.")
    # The last token of the prompt predicts the first of the answer.
    suffix = (*request.prompt.suffix, *answer[:-1])
    behind = replace(request, prompt=Prompt(request.prompt.prefix, suffix))
    (context,) = decoder.contexts([behind], 0)
    assert context is not None  # the request has one
    if context.coarse_parts:
        raise ConfigError("Attention to coarse grains is not watched: every head has other rows of them.")
    prefix = len(request.prompt.prefix)
    observer = AnswerObserver(injection.layers, parts, prefix, len(answer))
    with decoder.lock, torch.inference_mode():
        inputs, injected = decoder.inputs([behind], [context], room=0)
        ids, cache = inputs["input_ids"], inputs[CACHE_ARGUMENT]
        known = context.columns + prefix
        positions = torch.arange(known, known + len(suffix), device=ids.device)[None]
        with injected, suppress(AllSeenError):
            decoder.reader(request)(
                ids[:, known:], position_ids=positions, logits_to_keep=1, observer=observer, **{CACHE_ARGUMENT: cache}
            )
        release(inputs)
    return observer.strongest()
