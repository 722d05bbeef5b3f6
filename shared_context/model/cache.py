"""Memory for keys and values: a decoder's cache with room for more, and what goes back when it is let go."""

from __future__ import annotations

import ctypes
import inspect
import math
import mmap
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from transformers import Cache, GenerationMixin
from transformers.cache_utils import DynamicLayer

from shared_context.model.in_place import EncodingsInPlace

CACHE_ARGUMENT = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)
"""The argument of models in which a cache is passed: transformers renamed it in release 5.24."""


class RoomyLayer(DynamicLayer):
    """A cache layer with room behind its entries, so that a step writes its few keys instead of copying all.

    Args:
        room: [2, batch, kv_heads, capacity, head_dim]; its first ``length`` entries are the keys and values so far.
        length: entries in use.
    """

    def __init__(self, room: torch.Tensor, length: int):
        super().__init__()
        self.dtype, self.device = room.dtype, room.device
        self._room = room
        self.keys, self.values = room[0, :, :, :length], room[1, :, :, :length]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self.keys.shape[-2] + key_states.shape[-2]
        # Beam search and cropping replace the tensors; then they are no longer views of the room.
        at_home = self.keys.numel() == 0 or self.keys.data_ptr() == self._room.data_ptr()
        in_place = at_home and len(self.keys) == self._room.shape[1]
        if not in_place or end > self._room.shape[-2]:
            return super().update(key_states, value_states, *args, **kwargs)
        start = self.keys.shape[-2]
        self._room[0, :, :, start:end], self._room[1, :, :, start:end] = key_states, value_states
        self.keys, self.values = self._room[0, :, :, :end], self._room[1, :, :, :end]
        return self.keys, self.values


class RoomyCache(Cache):
    """A cache of :class:`RoomyLayer`, in memory that can be given back.

    Args:
        layers: the layers, the lowest first.
        give_back: called once the cache is not used any more.
        in_place: what the first columns stand for but do not hold yet; None where they hold everything.
        vacant: those columns, [2, M, kv_heads, columns, head_dim].
    """

    def __init__(
        self,
        layers: Sequence[RoomyLayer],
        give_back: Callable[[], None],
        in_place: EncodingsInPlace | None = None,
        vacant: torch.Tensor | None = None,
    ):
        super().__init__(layers=list(layers))
        self._give_back = give_back
        self.in_place = in_place
        self._vacant = vacant

    def fill(self) -> None:
        """Write what was read in place into its columns, where every later step finds it."""
        if self.in_place is not None and self._vacant is not None:
            self.in_place.assemble(self._vacant)
            self.in_place = self._vacant = None

    def release(self) -> None:
        """Let others use the memory; the cache is empty from now on."""
        self.layers: list[RoomyLayer] = []
        self.in_place = self._vacant = None
        self._give_back()


class KeptMemory:
    """Memory that was used and will be again, of a processor; accelerators have an allocator that keeps it by itself.

    Fresh memory costs a page fault every 4 KB, a fifth of the time to the first token.
    """

    def __init__(self) -> None:
        self._kept: torch.Tensor | None = None

    def take(self, size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """At least so many elements in a row, with anything in them."""
        kept, self._kept = self._kept, None
        if kept is not None and kept.numel() >= size and (kept.dtype, kept.device) == (dtype, device):
            return kept
        return torch.empty(size, dtype=dtype, device=device)

    def keep(self, memory: torch.Tensor) -> None:
        """Take back what was taken and is no longer read; the larger stays of two."""
        kept = self._kept
        if memory.device.type == "cpu" and (kept is None or kept.numel() < memory.numel()):
            self._kept = memory


def pages(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor with anything in it, none of its axes empty; on a processor in pages of its own.

    The C library keeps what is freed, and megabytes of keys and values that come and go among smaller things leave it
    with holes that nothing fits any more. Pages of their own go back to the operating system at once.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    # Private where that can be asked for: by default they would be shared with processes forked from this one.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them; pages of 4 KB take five times as long to come by
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)


def give_back_freed() -> None:
    """Hand what was freed back to the operating system, where the C library can (glibc); it takes milliseconds.

    Many megabytes of intermediate results would otherwise stay with the process for as long as it lives.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
