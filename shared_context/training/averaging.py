"""Several adapters in one: the mean of their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from shared_context.config import require
from shared_context.model.adapter import Adapter
from shared_context.training.card import averaged_card


def average(adapters: Sequence[Adapter], *, ratio: int = 8, figures: Mapping[str, float] | None = None) -> Adapter:
    """The adapter whose weights are the mean of others', as of the stages of one training.

    What each has learned of its own data alone weighs less in it, and it costs no more than one of them (arXiv
    2203.05482, "Model soups"). It is of use where all come from one first stage: others have weights that mean
    different things.

    Args:
        adapters: two or more, made for the same model with the same injection, layers, rank and alpha.
        ratio, figures: of a validation, for its card; :func:`~shared_context.training.validate` gives them for the
            mean that was made without.

    Raises:
        ConfigError: there is one only, or two differ in more than what they have seen.
    """
    require(len(adapters) > 1, "adapters", len(adapters), "must be two or more")
    first = adapters[0]
    for other in adapters[1:]:
        same = replace(other.config, tokens_seen=first.config.tokens_seen) == first.config
        require(same, "adapters", other.config, f"differs from {first.config}, so there is no mean of their weights")
    weights = {
        name: torch.stack([adapter.weights[name].float() for adapter in adapters]).mean(dim=0).to(weight.dtype)
        for name, weight in first.weights.items()
    }
    config = replace(first.config, tokens_seen=max(adapter.config.tokens_seen for adapter in adapters))
    return Adapter(config, weights, averaged_card(config, [a.digest for a in adapters], ratio, figures or {}))
