"""What tells one model from another, whatever its name and wherever it lies."""

from __future__ import annotations

import hashlib
import json

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLES = 64
"""Values read from each weight; enough to tell checkpoints apart, few enough to take no time."""


@torch.no_grad()
def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest (16 hex digits) of a model's shape, of samples of every weight, and of its vocabulary.

    The samples are taken in bfloat16, so loading the same checkpoint in bfloat16 and in float32 gives the same digest.
    Weights that were cast to float16 may differ from it: small ones have lost digits, large ones are infinite. Those
    that were quantised are another checkpoint's.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        # torchao's are tensors of their own kinds, which know how to become plain ones and little else
        plain = weight.dequantize() if is_traceable_wrapper_subclass(weight) else weight.detach()  # type: ignore[attr-defined]
        flat = plain.reshape(-1)
        step = max(1, flat.numel() // SAMPLES)
        sample = flat[::step][:SAMPLES].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()[:16]


def arithmetic(model: PreTrainedModel) -> str:
    """What keys and values depend on beside the weights: rotary frequencies and their scale, norms, windows."""
    rotary, config = model.base_model.rotary_emb, model.config
    # one for all layers, or one for each type of them
    names = sorted(name for name, _ in rotary.named_buffers() if name.endswith("inv_freq") and "original" not in name)
    frequencies = [getattr(rotary, name).tolist() for name in names]
    settings = [getattr(config, name, None) for name in ("rms_norm_eps", "sliding_window", "layer_types")]
    return repr([*frequencies, getattr(rotary, "attention_scaling", 1.0), *settings])
