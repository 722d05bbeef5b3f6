"""The model card of an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared_context.model.adapter import AdapterConfig
from shared_context.training.config import TrainingConfig


def model_card(
    adapter: AdapterConfig,
    config: TrainingConfig,
    step: int,
    sources: Sequence[str],
    figures: Mapping[str, float],
    start: str | None = None,
) -> str:
    """What a reader should know of an adapter, as Markdown.

    Args:
        adapter: what it was made for.
        config: how it was trained.
        step: at which it was taken.
        sources: names of the data.
        figures: of the last validation (``eval_right``, ``eval_wrong``, ``eval_gain``); empty before the first.
        start: digest of the adapter that training began with.
    """
    updates = f"rank {adapter.rank}, alpha {adapter.alpha:g}, " if adapter.rank else ""
    origin = [
        f"- trained: {updates}stage {config.stage}, {step} steps of {config.batch_size} examples, "
        f"{adapter.tokens_seen:,} tokens, learning rate {config.learning_rate:g}, seed {config.seed}",
        f"- data: {', '.join(sources)}",
        *([f"- a further stage: it began with adapter `{start}`, whose tokens are counted too"] if start else []),
    ]
    return _card(adapter, origin, config.validation_ratio, figures)


def averaged_card(adapter: AdapterConfig, of: Sequence[str], ratio: int, figures: Mapping[str, float]) -> str:
    """The card of an adapter whose weights are the mean of others'.

    Args:
        adapter: what it was made for.
        of: their digests.
        ratio, figures: of a validation, as in :func:`model_card`.
    """
    several = ", ".join(f"`{digest}`" for digest in of)
    seen = f"the one that was trained longest saw {adapter.tokens_seen:,} tokens"
    updates = f"rank {adapter.rank}, alpha {adapter.alpha:g}, " if adapter.rank else ""
    return _card(adapter, [f"- {updates}the mean of the weights of adapters {several}; {seen}"], ratio, figures)


def _card(adapter: AdapterConfig, origin: Sequence[str], ratio: int, figures: Mapping[str, float]) -> str:
    revision = f", revision `{adapter.base_revision}`" if adapter.base_revision else ""
    lines = [
        "---",
        "library_name: shared-context",
        f"base_model: {adapter.base_model}",
        "tags: [shared-context, context-compression]",
        "---",
        "",
        f"# Adapter for {adapter.base_model}",
        "",
        f"Made for `{adapter.base_model}`{revision}, fingerprint `{adapter.base_fingerprint}`; it cannot be loaded "
        "onto another base model.",
        "",
        f"- injection: {adapter.injection} over the bottom {adapter.injection_layers} layers",
        *origin,
        f"- ratios: {', '.join(map(str, adapter.ratios))}; chunks of {adapter.chunk_size} tokens at most",
        "",
    ]
    if figures:
        lines += [
            f"Held-out answers, mean negative log-likelihood in nats per token, contexts at ratio {ratio}:",
            "",
            "| right context | a wrong one of the same length | gained |",
            "|---|---|---|",
            f"| {figures['eval_right']:.3f} | {figures['eval_wrong']:.3f} | {figures['eval_gain']:.3f} |",
            "",
        ]
    load = f'model = SharedLLMModel.from_pretrained("{adapter.base_model}", adapter="FOLDER")'
    return "\n".join([*lines, "```python", "from shared_context import SharedLLMModel", "", load, "```", ""])
