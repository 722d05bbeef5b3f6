"""Pressing: what kvpress's presses make of a context, each in a cache of its own, and how likely the answer is then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from shared_context import SharedLLMModel
from shared_context.model.cache import CACHE_ARGUMENT
from shared_context.model.prompt import CONTEXT_FOOTER

PLAIN_ATTENTION = "sdpa"
"""transformers' own attention, which kvpress builds on."""

AGNOSTIC, AWARE = "the context only", "context and question"
"""What a press reads."""


@dataclass(frozen=True)
class Press:
    """A press of kvpress, with its defaults where no setting is given.

    Attributes:
        name: of its class.
        reads: what it is given to read. A question changes nothing for those that look at keys and places only.
        around: of a press that shares out what another one's scores would keep, the other's name.
        settings: of it, or of the press that it is around.
    """

    name: str
    reads: Sequence[str] = (AGNOSTIC,)
    around: str | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        scores = "" if self.around is None else f" around {self.around}"
        return f"{self.name}{scores}" + "".join(f", {name} {value}" for name, value in self.settings)

    def make(self, kvpress: Any, compression_ratio: float) -> Any:
        """It, ready to be used once."""
        settings = dict(self.settings)
        scorer = getattr(kvpress, self.around or self.name)(compression_ratio=compression_ratio, **settings)
        return scorer if self.around is None else getattr(kvpress, self.name)(press=scorer)


AT_ONCE = (
    Press("ExpectedAttentionPress", (AGNOSTIC, AWARE)),
    Press("SnapKVPress", (AGNOSTIC, AWARE)),
    # the default window of 64 takes the whole of a small budget
    *(Press("SnapKVPress", (AGNOSTIC, AWARE), settings=(("window_size", size),)) for size in (8, 16)),
    Press("TOVAPress", (AGNOSTIC, AWARE)),
    Press("CriticalKVPress", (AGNOSTIC, AWARE), around="ExpectedAttentionPress"),
    Press("ChunkKVPress", (AGNOSTIC, AWARE), around="SnapKVPress", settings=(("window_size", 16),)),
    Press("PyramidKVPress", (AGNOSTIC, AWARE), settings=(("window_size", 16),)),
    Press("NonCausalAttnPress"),
    Press("CompactorPress"),
    Press("LeverageScorePress"),
    Press("CURPress"),
    Press("LagKVPress"),
    Press("KeyDiffPress"),
    Press("KnormPress"),
    Press("StreamingLLMPress"),
)
"""Presses that work on each layer as it is prefilled."""

HIDING = (
    Press("KVzipPress"),
    Press("AdaKVPress", (AGNOSTIC, AWARE), around="ExpectedAttentionPress"),
)
"""Presses that keep other entries for each head, which hide what they drop; they read for themselves."""

LEFT_OUT = {
    "DuoAttention, ExpectedAttentionStats, FastKVzip, KVzap, LU-KV, QFilter, RestoreKV, DMS": "need weights or "
    "statistics that nobody made for this model",
    "ObservedAttention": "needs attention weights, which this attention does not give",
    "Finch, KVgrad, KVCompose, Merging, SimLayerKV, CAM, EntropyGatedChunkKV, CriticalAdaKV, Cap": "not tried",
    "Block, Chunk, Composed, KeyRerotation, PerLayer, Decoding and PrefillDecoding": "apply a press in parts, later or "
    "elsewhere",
    "ThinK": "drops channels instead of entries",
}
"""What is not measured, and why."""


@dataclass(frozen=True)
class Prompted:
    """A question with its context, as token ids.

    Attributes:
        prefix, context, suffix: of the prompt that a pasted context stands in, in this order.
        asked: the question alone, as a press that knows it reads it behind the context.
        answer: the gold answer.
    """

    prefix: Sequence[int]
    context: Sequence[int]
    suffix: Sequence[int]
    asked: Sequence[int]
    answer: Sequence[int]

    def budget(self, ratio: int) -> int:
        """KV entries of the context at a ratio, rounded up."""
        return -(-len(self.context) // ratio)


def prompted(model: SharedLLMModel, question: str, context: str, answer: str) -> Prompted:
    """The tokens of ``model.nll(question, answer, context=context)``."""
    prompt = model.prompt_format.render([{"role": "user", "content": question}], with_context=True)
    asked, answer_ids = (
        model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (CONTEXT_FOOTER + question, answer)
    )
    return Prompted(prompt.prefix, model.tokenize(context).ids.tolist(), prompt.suffix, asked, answer_ids)


@torch.inference_mode()
def prefilled(
    model: PreTrainedModel, ids: Sequence[int], presses: Mapping[Any, Any]
) -> tuple[dict[Any, DynamicCache], dict[Any, str]]:
    """Prefill once, and let every press work on each layer as soon as it is there, in a cache of its own.

    A press changes what is kept of a layer after the layer has attended, so that it does not change the prefill, and
    one prefill serves them all.

    Args:
        model: the causal language model, which attends as transformers does.
        ids: what is read.
        presses: by any name.

    Returns:
        The caches by name, and why those failed that did.
    """
    caches, failed = {name: DynamicCache() for name in presses}, {}

    def press_layer(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        layer = kwargs[CACHE_ARGUMENT].layers[module.layer_idx]
        for name, press in presses.items():
            if name in failed:
                continue
            own = caches[name]
            own.update(layer.keys, layer.values, module.layer_idx)
            try:
                press.forward_hook(module, args, {**kwargs, "past_key_values": own}, output)
            except Exception as error:  # whatever a press of another library may raise: it did not run
                failed[name] = _reason(error)

    layers = model.base_model.layers
    for press in presses.values():
        press.post_init_from_model(model)
    for layer in layers:
        layer.self_attn.rotary_emb = model.base_model.rotary_emb  # where presses look for it
    hooks = [layer.self_attn.register_forward_hook(press_layer, with_kwargs=True) for layer in layers]
    try:
        _prefill(model, ids, DynamicCache())
    finally:
        for hook in hooks:
            hook.remove()
    return {name: cache for name, cache in caches.items() if name not in failed}, failed


def _prefill(model: PreTrainedModel, ids: Sequence[int], cache: DynamicCache) -> None:
    """Read into a cache, each layer told where in the cache: presses ask, and transformers says it no more."""
    positions = torch.arange(len(ids), device=model.device)

    def tell(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "cache_position": positions}

    hooks = [
        layer.self_attn.register_forward_pre_hook(tell, with_kwargs=True, prepend=True)
        for layer in model.base_model.layers
    ]
    try:
        model.base_model(input_ids=torch.tensor([ids], device=model.device), **{CACHE_ARGUMENT: cache})
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def score_behind(model: PreTrainedModel, cache: DynamicCache, at: int, of: Prompted) -> float:
    """Mean negative log-likelihood (nats per token) of the answer behind a prefilled context.

    Args:
        model: the causal language model.
        cache: what was kept of the context; it is read on in.
        at: position of the first token behind the context.
        of: the question and its answer.
    """
    ids = torch.tensor([*of.suffix, *of.answer[:-1]], device=model.device)
    positions = torch.arange(at, at + len(ids), device=model.device)[None]
    logits = model(
        input_ids=ids[None], position_ids=positions, logits_to_keep=len(of.answer), **{CACHE_ARGUMENT: cache}
    ).logits[0]
    return nn.functional.cross_entropy(logits.float(), torch.tensor(of.answer, device=logits.device)).item()


def pressed(
    model: PreTrainedModel, kvpress: Any, of: Prompted, ratios: Sequence[int]
) -> Iterator[tuple[str, Any, str]]:
    """What every press makes of a context at every ratio.

    Entries are counted as for a selection: ``budget`` of the context and all of the prefix, which a press may share
    out as it likes. The question that a press reads has room of its own, and is read once more behind.

    Args:
        model: the causal language model, which attends as transformers does.
        kvpress: the package.
        of: the context and the question.
        ratios: tokens for each entry kept.

    Yields:
        A label, the negative log-likelihood of the answer with how many entries are kept of the context, and why it
        failed where it did.
    """
    layers = model.base_model.layers
    for reads in (AGNOSTIC, AWARE):
        ids = [*of.prefix, *of.context, *(of.asked if reads == AWARE else ())]
        beside = len(ids) - len(of.context)
        shares = {ratio: _share(len(ids), beside + of.budget(ratio)) for ratio in ratios}
        made: dict[tuple[Press, int], Any] = {}
        failed: dict[tuple[Press, int], str] = {}
        for press in (press for press in AT_ONCE if reads in press.reads):
            for ratio, share in shares.items():
                try:
                    made[press, ratio] = press.make(kvpress, share)
                except Exception as error:  # whatever another library may raise: it did not run
                    failed[press, ratio] = _reason(error)
        caches, found_failing = prefilled(model, ids, made)
        for press, ratio in (failed := failed | found_failing):
            yield f"{press}|{reads}|{ratio}", None, failed[press, ratio]
        for (press, ratio), cache in caches.items():
            kept = fmean(layer.keys.shape[2] for layer in cache.layers) - beside
            try:
                yield f"{press}|{reads}|{ratio}", [score_behind(model, cache, len(ids), of), kept], ""
            except Exception as error:
                yield f"{press}|{reads}|{ratio}", None, _reason(error)
        for press in (press for press in HIDING if reads in press.reads):
            for ratio, share in shares.items():
                try:
                    cache = DynamicCache()
                    with torch.inference_mode(), press.make(kvpress, share)(model):
                        _prefill(model, ids, cache)
                    hidden = sum(len(layer.self_attn.masked_key_indices[0]) for layer in layers)
                    kept = len(ids) - hidden / (len(layers) * model.config.num_key_value_heads) - beside
                    yield f"{press}|{reads}|{ratio}", [score_behind(model, cache, len(ids), of), kept], ""
                except Exception as error:
                    yield f"{press}|{reads}|{ratio}", None, _reason(error)
                finally:
                    for layer in layers:
                        layer.self_attn.masked_key_indices = None


def _share(count: int, kept: int) -> float:
    """The compression ratio at which kvpress, which rounds down, keeps so many of ``count`` entries."""
    return max(0.0, 1 - (kept + 0.5) / count)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
