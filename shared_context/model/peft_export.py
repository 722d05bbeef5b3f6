"""An adapter's sets of low-rank updates as other engines load them: PEFT's files, a folder for each set."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from shared_context.errors import AdapterError
from shared_context.model.adapter import Adapter
from shared_context.model.low_rank import PROJECTIONS

SETS = {"decode": "decoding", "compress": "compressing"}
"""Folders by the sets in them: one is active while answers are written, the other while chunks are encoded."""


def export_lora(adapter: Adapter, folder: Path, *, stack: str = "model") -> list[Path]:
    """Write an adapter's sets as PEFT adapters of its base model.

    Args:
        adapter: of prefix injection.
        folder: gets a folder for each set and is made where it is missing.
        stack: attribute of the base model under which its decoder layers are, ``base_model_prefix`` of transformers.

    Returns:
        The folders, the decoding set's first.

    Raises:
        AdapterError: the adapter is of cross-attention injection, whose weights are no updates of the base model's, or
            a tensor is not what it should be.
    """
    config = adapter.config
    if config.injection != "prefix":
        raise AdapterError(
            f"The adapter is of {config.injection} injection, which adds attention of its own; only the updates of "
            "prefix injection can be exported."
        )
    written, alpha = [], config.alpha
    assert alpha is not None  # what an adapter of prefix injection has
    for name in SETS:
        weights, modules, layers = {}, set(), set()
        for key, weight in adapter.weights.items():
            part, direction, place = (*key.split(".", 2), "", "")[:3]
            index, _, module = place.partition("_")
            if part != name:
                continue
            if direction not in ("down", "up") or not index.isdigit() or module not in PROJECTIONS:
                raise AdapterError(f"The adapter's tensor {key} is not known; save or fetch the adapter again.")
            side = "lora_A" if direction == "down" else "lora_B"
            path = f"base_model.model.{stack}.layers.{index}.self_attn.{module}.{side}.weight"
            weights[path] = weight.detach().to("cpu", torch.float32).contiguous()
            modules.add(module)
            layers.add(int(index))
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": config.base_model,
            "r": config.rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": sorted(modules),
            "layers_to_transform": sorted(layers),
        }
        into = folder / name
        into.mkdir(parents=True, exist_ok=True)
        save_file(weights, into / "adapter_model.safetensors", metadata={"format": "pt"})
        (into / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        written.append(into)
    return written
