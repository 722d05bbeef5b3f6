"""Loading: a checkpoint's weights and tokenizer, checked, on their device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from shared_context.config import require
from shared_context.errors import ConfigError, ModelNotFoundError, SharedContextError, UnsupportedModelError
from shared_context.model.attention import ATTENTION
from shared_context.model.identity import fingerprint
from shared_context.model.pretrained import HubOptions, as_floating_point, find_gguf, resolve_model
from shared_context.model.progress import quiet_loading
from shared_context.model.support import check_config, check_special_ids, check_vocabulary, processor_dtype

REFUSED_OPTIONS = {
    "attn_implementation": "the injection brings its own attention; leave it out",
    "trust_remote_code": "code that comes with weights is never run; choose a model that transformers knows itself",
    "device_map": "a model is served whole from one device; leave it out and say which with device=",
    "tp_plan": "a model is served whole from one device; leave it out and say which with device=",
    "device_mesh": "a model is served whole from one device; leave it out and say which with device=",
    "subfolder": "tokenizer and weights are read from one folder; give that folder's path",
    "output_loading_info": "from_pretrained gives the model alone; leave it out",
    "local_files_only": "the Hub is asked only for what is not here; set HF_HUB_OFFLINE=1 to keep it from being asked",
    "force_download": "what is here is taken; delete it from the Hugging Face cache to have it fetched again",
}
"""Options of transformers' ``from_pretrained`` that cannot be honoured, and what to do instead."""

SET_HERE = {"dtype", "device_map", "gguf_file"}
"""Options that :func:`load` gives besides those of the caller."""


def load(
    name_or_path: str | Path,
    *,
    device: str,
    dtype: str | torch.dtype,
    hub: HubOptions,
    options: dict[str, Any],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """A causal language model that can be stacked on itself, its fast tokenizer, and its checkpoint's fingerprint.

    Args:
        name_or_path, device, dtype: as in ``SharedLLMModel.from_pretrained``.
        hub: its ``revision``, ``token`` and ``cache_dir``.
        options: its ``model_options``.

    Raises:
        ModelNotFoundError, UnsupportedModelError, ConfigError: as ``SharedLLMModel.from_pretrained`` does.
    """
    require(isinstance(name_or_path, str | os.PathLike), "name_or_path", name_or_path, "must be a name or a path")
    name = str(name_or_path)
    for option, value in options.items():
        unset = value is None or value is False  # 0 is a device
        require(unset or option not in REFUSED_OPTIONS, option, value, REFUSED_OPTIONS.get(option, ""))
    place = _pick_device(device)
    options = dict(options)
    config, source, in_file = read_config(name_or_path, options.pop("gguf_file", None), hub)
    if in_file:
        options |= in_file | as_floating_point()
    with _said_as(ModelNotFoundError, f"The tokenizer of {name} is missing or damaged; add its tokenizer.json"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **in_file)
    if not tokenizer.is_fast:
        raise UnsupportedModelError(
            f"{name} has only a slow tokenizer, which gives no character offsets; add a tokenizer.json to it."
        )
    longest = tokenizer.model_max_length
    if not isinstance(longest, Real):
        raise UnsupportedModelError(
            f"{name} cannot be served: model_max_length={longest!r} in its tokenizer_config.json is no number; "
            "mend it, or take it out."
        )
    size = config.get_text_config().vocab_size
    check_vocabulary(tokenizer, size, name)
    check_special_ids(config, size, name, "config.json")
    picked = _pick_dtype(dtype, config.dtype, place)
    given = options.get("quantization_config") or getattr(config, "quantization_config", None)
    kind = isinstance(given, dict) or hasattr(given, "quant_method")
    require(given is None or kind, "quantization_config", given, "must be one of transformers' quantization configs")
    if not in_file and given is not None:
        _check_method(given, name)
        model = _quantised(source, name, {**options, "dtype": picked, "device_map": {"": place}})
        return model, tokenizer, fingerprint(model, tokenizer)
    digest = None
    if picked == torch.float16 != config.dtype:
        # A cast to float16 loses small weights; bfloat16, of which the digest is made, and float32 keep them. So the
        # checkpoint is read once more, and let go before the weights that serve are there.
        digest = fingerprint(_weights(source, name, {**options, "dtype": torch.bfloat16}), tokenizer)
    model = _weights(source, name, {**options, "dtype": picked}).to(place)
    return model, tokenizer, digest or fingerprint(model, tokenizer)


def read_config(
    name_or_path: str | Path, gguf_file: str | None = None, hub: HubOptions | None = None
) -> tuple[PretrainedConfig, str, dict[str, str]]:
    """A model's configuration, without its weights; with the folder that it is in, and which file of it is meant.

    Raises:
        ModelNotFoundError, UnsupportedModelError, ConfigError: as ``SharedLLMModel.from_pretrained`` does.
    """
    name, hub = str(name_or_path), hub or {}
    gguf = find_gguf(name_or_path, gguf_file, **hub)
    if gguf is None:
        source, in_file = resolve_model(name_or_path, **hub), {}
    else:
        source, in_file = str(gguf.parent), {"gguf_file": gguf.name}
    # With trust_remote_code left open, transformers would ask on the terminal whether to run a repository's code.
    mend = "choose a decoder-only model that transformers knows itself, or mend the file"
    with _said_as(UnsupportedModelError, f"The config.json of {name} cannot be read; {mend}"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **in_file)
    check_config(config, name)
    return config, source, in_file


def _quantised(source: str, name: str, options: dict[str, Any]) -> PreTrainedModel:
    """The whole model in fewer bits, on the device that its ``device_map`` names."""
    failed = f"{name} cannot be loaded by its quantization_config; install what it asks for, or choose another one"
    # what torchao and bitsandbytes raise where they or a kernel are missing, and transformers in their place
    with _said_as(ConfigError, failed, (ImportError, RuntimeError, ValueError, AssertionError)):
        model = _weights(source, name, options)
    # Hooks of accelerate's would move inputs to the one device on which all is.
    return remove_hook_from_module(model, recurse=True)


def _check_method(given: Any, name: str) -> None:
    """Refuse a way to keep weights in fewer bits that transformers does not know, which it would pass over."""
    method = given.get("quant_method") if isinstance(given, dict) else given.quant_method
    known = sorted({*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"})
    if method is not None and getattr(method, "value", method) not in known:
        raise UnsupportedModelError(
            f"{name} cannot be served: quant_method={method!r} in its quantization_config is none that transformers "
            "knows. Weights are served in floating point, in 8 and 4 bits by torchao and bitsandbytes, and as a GGUF "
            f"file; all of {', '.join(known)} are tried where what they ask for is installed."
        )


def _weights(source: str, name: str, options: dict[str, Any]) -> PreTrainedModel:
    """The whole model, on the processor where no ``device_map`` says otherwise."""
    own = {"attn_implementation": ATTENTION, "trust_remote_code": False, "output_loading_info": True}
    damaged = f"The weights of {name} are incomplete or damaged; fetch or save them again"
    given = ", ".join(sorted(options.keys() - SET_HERE)) or "none"
    untaken = f"{name} cannot be loaded with these model_options ({given}); leave out what transformers does not take"
    unknown = f"The config.json of {name} says what transformers does not know; choose another model, or mend the file"
    impossible = f"The config.json of {name} describes no model that can be; choose another model, or mend the file"
    with (
        _said_as(UnsupportedModelError, unknown, KeyError),
        # sizes of nothing
        _said_as(UnsupportedModelError, impossible, (ArithmeticError, AssertionError)),
        # StrictDataclassError: a configuration that transformers' own checks refuse
        _said_as(ConfigError, untaken, (TypeError, ValueError, StrictDataclassError)),
        _said_as(ModelNotFoundError, damaged, (OSError, RuntimeError, SafetensorError)),
        quiet_loading(),
    ):
        model, loaded = AutoModelForCausalLM.from_pretrained(source, **{**options, **own})
    # Transformers fills what is missing with random numbers.
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise ModelNotFoundError(f"{damaged} ({len(missing)} tensors are missing, {missing[0]} among them).")
    return model


@contextmanager
def _said_as(
    error: type[SharedContextError], message: str, faults: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """Say in the library's own error what transformers raises inside; it and tokenizers agree on no narrower types."""
    try:
        yield
    except faults as fault:
        reason = next((line.strip() for line in str(fault).splitlines() if line.strip()), type(fault).__name__)
        raise error(f"{message} ({reason}).") from fault


def _pick_device(device: str) -> torch.device:
    if device != "auto":
        refused = (RuntimeError, AssertionError, TypeError)  # no such kind; none of that kind here; no device at all
        with _said_as(ConfigError, f"device={device!r}: must be 'auto', 'cpu' or a device of this machine", refused):
            picked = torch.empty(0, device=device).device
        require(picked.type != "meta", "device", device, "holds no weights; choose 'auto', 'cpu' or a device")
        return picked
    if torch.cuda.is_available():
        # Of several processes that torchrun starts on a machine, each has a GPU of its own.
        return torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _pick_dtype(dtype: str | torch.dtype, own: torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        picked = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
        if not isinstance(picked, torch.dtype):
            raise ConfigError(f"dtype={dtype!r}: must be 'auto' or the name of a torch dtype")
        fewer = "weights compute in floating point; fewer bits are asked for by quantization_config"
        require(picked.is_floating_point, "dtype", dtype, fewer)
        return picked
    if device.type != "cpu":
        return own or torch.float32
    return processor_dtype()
