"""The connector that runs inside vLLM, in its scheduler and in its workers.

Start vLLM with it::

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "SharedContextConnector",
        "kv_connector_module_path": "shared_context.integrations.vllm.connector", "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"selections": "FOLDER"}}'

A request that names a selection (``kv_transfer_params`` as :func:`.selections.parameters` makes them, and its id as
``cache_salt``) begins with that selection's keys and values. Of one that names a room (:func:`.encodings.parameters`)
the keys and values are saved there when its prompt has been computed, before it is answered. All others are answered as
without a connector.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.models.utils import extract_layer_index
from vllm.platforms import current_platform

from shared_context.errors import ConfigError, SelectionError
from shared_context.integrations.vllm import adapters
from shared_context.integrations.vllm.encodings import asked_to_save, write_encoding
from shared_context.integrations.vllm.paged import places, rows, slots
from shared_context.integrations.vllm.selections import MALFORMED, asked_for, heads_of_rank, read_selection

log = logging.getLogger("vllm.shared_context")


@dataclass(frozen=True)
class Load:
    """What a worker loads for one request.

    Attributes:
        id: of the selection.
        token_ids: all tokens that the selection is of.
        start, stop: the positions that are to be loaded; what is before them is in the cache.
        block_ids: the request's blocks, in order.
    """

    id: str
    token_ids: tuple[int, ...]
    start: int
    stop: int
    block_ids: tuple[int, ...]


@dataclass(frozen=True)
class Save:
    """What a worker saves of one request, all of whose prompt is computed.

    Attributes:
        id: of the room.
        token_ids: of the prompt.
        first: of the tokens whose keys and values are saved.
        block_ids: the request's blocks, in order.
    """

    id: str
    token_ids: tuple[int, ...]
    first: int
    block_ids: tuple[int, ...]


@dataclass
class Saving:
    """A request whose keys and values are to be saved, as the scheduler follows it.

    Attributes:
        request: as vLLM has it.
        id, first: as of :class:`Save`.
        block_ids: that it has so far.
        placed_now: it was given these in this step.
    """

    request: Any
    id: str
    first: int
    block_ids: list[int]
    placed_now: bool = True


@dataclass
class Transfers(KVConnectorMetadata):
    """What the scheduler hands to the workers for one step."""

    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)


class SharedContextConnector(KVConnectorBase_V1):
    """Copies selections into the paged cache before the step in which their requests are computed, and chunks from it.

    Raises:
        ConfigError: the folder is not given, or the cache is one that selections do not fit.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any = None):
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        folder = vllm_config.kv_transfer_config.get_from_extra_config("selections", None)
        if not isinstance(folder, str):
            raise ConfigError("kv_connector_extra_config has no folder 'selections': give the one that is written to.")
        groups = len(kv_cache_config.kv_cache_groups) if kv_cache_config is not None else 1
        if groups != 1:
            raise ConfigError(
                f"The model has {groups} kinds of caches in vLLM; selections fit models whose layers all see the same."
            )
        kind = str(vllm_config.cache_config.cache_dtype)
        if kind.startswith(("fp8", "int8", "nvfp4")):
            raise ConfigError(f"kv_cache_dtype is {kind!r}: selections are written as they are; use 'auto'.")
        if role is KVConnectorRole.WORKER and vllm_config.lora_config is not None and current_platform.is_cpu():
            from vllm.lora.punica_wrapper import punica_cpu

            adapters.install(punica_cpu)
        self._folder = Path(folder)
        self._block_size = vllm_config.cache_config.block_size
        self._dtype = vllm_config.model_config.dtype
        self._layers = vllm_config.model_config.get_total_num_hidden_layers()
        self._planned: list[Load] = []
        self._cached: dict[str, int] = {}
        self._saving: dict[str, Saving] = {}
        self._failed: set[int] = set()
        self._attention: dict[str, Any] = {}
        self._places: torch.Tensor | None = None

    # In the scheduler

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """How many tokens will be loaded behind those that vLLM's own prefix cache has; in time for the same step."""
        asked = self._asked(request)
        if asked is None:
            return 0, False
        self._cached[request.request_id] = num_computed_tokens
        return max(0, asked[1] - num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Plan a load, of a request that was preempted as of a new one."""
        start = self._cached.pop(request.request_id, 0)
        (block_ids,) = blocks.get_block_ids()
        self._follow(request, block_ids)
        asked = self._asked(request)
        if num_external_tokens == 0 or asked is None:
            return
        id, tokens = asked
        ids = tuple(request.prompt_token_ids[:tokens])
        self._planned.append(Load(id, ids, start, start + num_external_tokens, tuple(block_ids)))

    def _follow(self, request: Any, block_ids: list[int]) -> None:
        """Save a request's keys and values when its prompt is computed, if it asks for it."""
        try:
            asked = asked_to_save(request.kv_transfer_params, request.num_prompt_tokens)
        except SelectionError as error:  # it fails when it is loaded
            log.error("%s", error)
            return
        if asked is not None:
            self._saving[request.request_id] = Saving(request, *asked, list(block_ids))

    def build_connector_meta(self, scheduler_output: Any) -> Transfers:
        further = scheduler_output.scheduled_cached_reqs
        for request_id, block_ids in zip(further.req_ids, further.new_block_ids, strict=True):
            saving = self._saving.get(request_id)
            if saving is not None and block_ids is not None and not saving.placed_now:
                saving.block_ids += block_ids[0]
        saves = []
        for request_id, tokens in scheduler_output.num_scheduled_tokens.items():
            saving = self._saving.get(request_id)
            if saving is None:
                continue
            saving.placed_now = False
            request = saving.request
            if request.num_computed_tokens + tokens >= request.num_prompt_tokens:
                ids = tuple(request.prompt_token_ids)
                saves.append(Save(saving.id, ids, saving.first, tuple(saving.block_ids)))
                del self._saving[request_id]
        planned, self._planned = self._planned, []
        return Transfers(planned, saves)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request that was aborted; its blocks can be freed at once."""
        self._saving.pop(request.request_id, None)
        return False, None

    @staticmethod
    def _asked(request: Any) -> tuple[str, int] | None:
        transfer, prompt = request.kv_transfer_params, request.num_prompt_tokens
        try:
            asked_to_save(transfer, prompt)
        except SelectionError:
            return MALFORMED, prompt - 1
        return asked_for(transfer, prompt, bool(request.cache_salt))

    # In the workers

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Load what was planned. A load that fails is told to vLLM, which then fails its request alone."""
        layers = forward_context.no_compile_layers
        self._attention = {
            name: layer for name, layer in layers.items() if getattr(layer, "kv_cache", None) is not None
        }
        for load in self._get_connector_metadata().loads:
            try:
                self._load(load)
            except SelectionError as error:
                log.error("%s", error)
                first, last = load.start // self._block_size, (load.stop - 1) // self._block_size
                self._failed |= set(load.block_ids[first : last + 1])

    def _load(self, load: Load) -> None:
        key_values = read_selection(self._folder, load.id, load.token_ids, self._layers)
        own = heads_of_rank(
            key_values.shape[3], get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        )
        part = key_values[:, :, load.start : load.stop, own]
        for name, layer in self._attention.items():
            cache = layer.kv_cache
            if part.shape[3:] != (layer.num_kv_heads, layer.head_size):
                raise SelectionError(
                    f"The selection {load.id} has {part.shape[3]} heads of {part.shape[4]} for layer {name}, which has "
                    f"{layer.num_kv_heads} of {layer.head_size}: it is of another model."
                )
            keys, values = part[extract_layer_index(name)].to(cache.device, self._dtype)
            where = slots(load.block_ids, load.start, load.stop, self._block_size).to(cache.device)
            # Each backend lays its cache out in its own way; this is how it writes keys and values itself.
            layer.impl.do_kv_cache_update(layer, keys.contiguous(), values.contiguous(), cache, where)

    def get_block_ids_with_load_errors(self) -> set[int]:
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Everything is loaded before the step begins."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """All layers are saved together, behind the step."""

    def wait_for_save(self) -> None:
        """Save what was planned. Where that fails nothing is there to be read; vLLM's requests go on."""
        for save in self._get_connector_metadata().saves:
            try:
                self._save(save)
            except SelectionError as error:
                log.error("%s", error)

    def _save(self, save: Save) -> None:
        if len(self._attention) != self._layers:
            raise SelectionError(
                f"This worker has {len(self._attention)} of the model's {self._layers} layers: chunks are computed "
                "without pipeline parallelism only."
            )
        rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        in_order = sorted(self._attention, key=extract_layer_index)
        layers = (self._rows(self._attention[name], save) for name in in_order)
        write_encoding(self._folder, save.id, save.token_ids, layers, rank, ranks)

    def _rows(self, layer: Any, save: Save) -> torch.Tensor:
        """What is saved of a layer, [2, tokens, kv_heads, head_dim]."""
        cache, shape = layer.kv_cache, (self._block_size, layer.num_kv_heads, layer.head_size)
        if self._places is None:
            self._places = places(partial(layer.impl.do_kv_cache_update, layer), cache, shape, self._dtype)
        elif self._places.shape[1:] != shape:
            raise SelectionError(f"A layer has blocks of {list(shape)}, others of {list(self._places.shape[1:])}.")
        return rows(cache, self._places, save.block_ids, save.first, len(save.token_ids)).cpu()
