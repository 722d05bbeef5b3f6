"""Several processes that share the base model: what a launch with FSDP means where only an adapter is trained.

Accelerate shards what the Trainer is given, and that is the adapter, a few million weights that each process may as
well hold whole. What takes the memory is the base model; its layers are sharded here, by torch's own FSDP.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch
from accelerate.utils import DeepSpeedPlugin, parse_flag_from_env, patch_environment
from torch.distributed import get_world_size
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from transformers import PreTrainedModel

from shared_context.config import require

FSDP = "ACCELERATE_USE_FSDP"


def launched_with_fsdp() -> bool:
    """Whether Accelerate's configuration, by which this process was launched, asks for FSDP.

    Raises:
        ConfigError: it asks for FSDP's first version, or no other process was launched.
    """
    if not parse_flag_from_env(FSDP):
        return False
    version, processes = os.environ.get("FSDP_VERSION", "1"), os.environ.get("WORLD_SIZE", "1")
    require(version == "2", "FSDP_VERSION", version, "set fsdp_version: 2 in Accelerate's configuration")
    require(processes != "1", "WORLD_SIZE", processes, "FSDP shares a model among processes; launch two or more")
    return True


def deepspeed_stage() -> int | None:
    """The ``zero_stage`` of Accelerate's configuration, None where this process was launched without DeepSpeed.

    Raises:
        ConfigError: it is the third.
    """
    if not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return None
    stage = DeepSpeedPlugin().zero_stage
    # The adapter's weights are used by hooks on the base model, where nothing would gather them.
    require(stage < 3, "zero_stage", stage, "would shard the adapter's weights; choose 0 to 2, or launch with FSDP")
    return stage


def adapter_held_whole() -> AbstractContextManager[None]:
    """While entered, Accelerate trains what it is given as without FSDP: every process holds all of it."""
    return patch_environment(**{FSDP: "false"})


def shard_layers(model: PreTrainedModel) -> None:
    """Share the weights of every layer among the processes, for good; a layer is gathered while it is computed.

    Of Accelerate's settings ``fsdp_reshard_after_forward`` and ``fsdp_offload_params`` are heeded. Embeddings and the
    last norm stay whole.

    Args:
        model: the frozen base model, the same in every process.
    """
    device = model.device.type
    mesh = init_device_mesh(device, (get_world_size(),))
    freed = parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", True)
    # In main memory there is nowhere else to go.
    offloaded = parse_flag_from_env("FSDP_OFFLOAD_PARAMS") and device != "cpu"
    offload = CPUOffloadPolicy() if offloaded else OffloadPolicy()
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=freed, offload_policy=offload)


def gathered_in_backward(key_values: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """Keys and values whose gradient gathers the weights of the topmost layer they were taken from, if it is sharded.

    FSDP gathers a layer when the gradient of its output comes, and of the topmost layer only keys and values are used.
    """
    if isinstance(layer, FSDPModule) and key_values.requires_grad:
        key_values.register_hook(lambda _: layer.unshard())
    return key_values
