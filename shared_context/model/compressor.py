"""The compressor: the lower model, which turns chunks into keys and values."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Protocol

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel

from shared_context.errors import SharedContextError, WindowExceededError
from shared_context.kernels import ChunkKV
from shared_context.model.cache import CACHE_ARGUMENT, RoomyLayer, pages
from shared_context.model.importance import (
    METHOD,
    OVERLAP,
    AllSeenError,
    ImportanceObserver,
    of_equal_length,
    parts_of_a_repetition,
)

NORMS_BEHIND = ("post_feedforward_layernorm", "post_self_attn_layernorm")
"""Modules that a layer has where norms stand behind its attention and its MLP, and not only in front of them."""


class ChunkEngine(Protocol):
    """Another engine of the same weights, which computes what :meth:`Compressor.encode` is asked for.

    Attributes:
        name: which the keys and values are marked with, for they are the model's own but for rounding.
    """

    name: str

    def key_values(
        self, ids: Sequence[int], prefix: int, shape: tuple[int, int, int, int], dtype: torch.dtype
    ) -> torch.Tensor:
        """Keys (rotated) and values of a chunk, [M, 2, tokens, kv_heads, head_dim], keys first, on the processor.

        Args:
            ids: token ids of the shared prefix and of the chunk behind it.
            prefix: how many of them are the prefix's.
            shape: M, tokens, kv_heads, head_dim.
            dtype: of what comes back.
        """


class LowerModel:
    """The bottom layers of a model, sharing its weights: the lower half of "stacked from one".

    Args:
        base: the decoder stack (``LlamaModel`` and the like) of the whole model, which is left as it is.
        layers: how many of its layers, from the bottom.
        projections: weights of its own, by layer and name, for some of their attention's projections.
    """

    def __init__(
        self, base: PreTrainedModel, layers: int, projections: Mapping[int, Mapping[str, torch.Tensor]] | None = None
    ):
        config = copy.copy(base.config)
        config.num_hidden_layers = layers
        own = projections or {}
        stack = [_with_weights(layer, own[i]) if i in own else layer for i, layer in enumerate(base.layers[:layers])]
        # A shallow copy shares every module; only its table of modules is its own.
        lower = copy.copy(base)
        lower._modules = {**base._modules, "layers": nn.ModuleList(stack), "norm": nn.Identity()}
        lower.config = config
        self._model = lower
        self.layers = layers
        self.dtype = base.dtype

    @property
    def adds_as_projected(self) -> bool:
        """Whether attention's output is added to the hidden states as it is, with no norm of its own behind it."""
        return not any(hasattr(layer, norm) for layer in self._model.layers for norm in NORMS_BEHIND)

    @property
    def heads(self) -> tuple[int, int]:
        """KV heads of a layer, and numbers of each."""
        config = self._model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return config.num_key_value_heads, head_dim

    def hidden_states(self, ids: torch.Tensor) -> torch.Tensor:
        """States after the last of the layers, without the final norm.

        Args:
            ids: token ids [batch, tokens].

        Returns:
            [batch, tokens, hidden].
        """
        return self._model(input_ids=ids, use_cache=False).last_hidden_state

    def key_values(self, ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Keys (rotated) and values of every layer.

        Args:
            ids: token ids [batch, tokens].
            position_ids: [1, tokens]; counted from 0 where None.

        Returns:
            [2, layers, batch, kv_heads, tokens, head_dim].
        """
        settings = {"input_ids": ids, "position_ids": position_ids, "use_cache": True}
        if torch.is_grad_enabled():  # which pass through no memory that is written in place
            cache = DynamicCache()
            self._model(**settings, **{CACHE_ARGUMENT: cache})
            keys, values = ([getattr(layer, part) for layer in cache.layers] for part in ("keys", "values"))
            return torch.stack([torch.stack(keys), torch.stack(values)])
        kv_heads, head_dim = self.heads
        shape = (2, self.layers, len(ids), kv_heads, ids.shape[1], head_dim)
        # Every layer writes where its part is to be: stacking them afterwards would take the memory twice.
        room = pages(shape, self._model.dtype, ids.device)
        self._model(**settings, **{CACHE_ARGUMENT: Cache(layers=[RoomyLayer(part, 0) for part in room.unbind(1)])})
        return room

    def read_behind(self, room: torch.Tensor, before: int, ids: torch.Tensor, **watched: object) -> None:
        """Run over tokens that stand behind others whose keys and values are known.

        Args:
            room: keys and values of every layer, [2, layers, batch, kv_heads, entries, head_dim]: those of the others,
                and behind them room for the tokens'.
            before: how many the others are.
            ids: token ids [batch, tokens].
            **watched: handed down to attention.
        """
        cache = Cache(layers=[RoomyLayer(part, before) for part in room.unbind(1)])
        positions = torch.arange(before, before + ids.shape[1], device=ids.device)[None]
        with suppress(AllSeenError):
            self._model(input_ids=ids, position_ids=positions, use_cache=True, **{CACHE_ARGUMENT: cache}, **watched)


def _with_weights(layer: nn.Module, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """A decoder layer that shares everything with another but the weights of some projections of its attention."""
    attention = copy.copy(layer.get_submodule("self_attn"))
    attention._modules = dict(attention._modules)
    for name, weight in weights.items():
        projection = copy.copy(attention.get_submodule(name))
        projection._parameters = {**projection._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
        attention._modules[name] = projection
    own = copy.copy(layer)
    own._modules = {**layer._modules, "self_attn": attention}
    return own


def with_projections(model: PreTrainedModel, projections: Mapping[int, Mapping[str, torch.Tensor]]) -> PreTrainedModel:
    """A causal language model that shares everything with another but the weights of some projections.

    Args:
        model: the other, which is left as it is.
        projections: weights, by layer and name, of the attention's projections.
    """
    base = copy.copy(model.base_model)
    stack = [_with_weights(layer, projections.get(i, {})) for i, layer in enumerate(base.layers)]
    base._modules = {**base._modules, "layers": nn.ModuleList(stack)}
    own = copy.copy(model)
    own._modules = {**model._modules, model.base_model_prefix: base}
    return own


def bottom_layers(model: PreTrainedModel, layers: int) -> LowerModel:
    """The lower model of the bottom ``layers`` of a causal language model."""
    return LowerModel(model.base_model, layers)


class Compressor:
    """Encodes chunks behind the shared prefix, once for every grain.

    Args:
        model: the whole causal language model.
        layers: M, the bottom layers whose keys and values are passed up.
        prefix_ids: tokens in front of every chunk while it is encoded; they are the attention sink and are not part
            of what is returned.
        request_ids: tokens behind a chunk that ask the model to repeat it.
        window: tokens that the model may read together; None sets no limit.
        lock: held while the model runs; None where that may go on beside others.

    Attributes:
        layers: M.
        importance_method: how :meth:`importance` computes it; other methods give other numbers.
        request_ids: as above.
        projections: weights, by layer and name, that chunks are encoded with instead of the model's own.
        engine: encodes chunks instead of this process; None is this process. First-layer states and importance are
            computed here all the same.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: int,
        prefix_ids: Sequence[int],
        request_ids: Sequence[int] = (),
        window: int | None = None,
        lock: AbstractContextManager[object] | None = None,
    ):
        self._lock = lock or nullcontext()
        self._lower = self._reader = bottom_layers(model, layers)
        self._first = bottom_layers(model, 1)
        self._prefix, self._request = (
            torch.tensor(ids, dtype=torch.long, device=model.device) for ids in (prefix_ids, request_ids)
        )
        self._prefix_kv: torch.Tensor | None = None
        self._window = window
        self.projections: Mapping[int, Mapping[str, torch.Tensor]] = {}
        self.engine: ChunkEngine | None = None
        self.layers, self.request_ids = layers, tuple(request_ids)
        self.importance_method = f"{METHOD}/{hashlib.sha256(str(list(request_ids)).encode()).hexdigest()[:8]}"

    def adapt(
        self,
        model: PreTrainedModel,
        projections: Mapping[int, Mapping[str, torch.Tensor]],
        reading: Mapping[int, Mapping[str, torch.Tensor]],
    ) -> None:
        """Encode with other weights from now on; first-layer states stay those of the model's own.

        Args:
            model: the whole causal language model.
            projections: weights, by layer and name, of the attention's projections.
            reading: those that the decoder reads with, which say what it needs of a chunk.
        """
        self.projections = projections
        self._lower = LowerModel(model.base_model, self.layers, projections)
        self._reader = LowerModel(model.base_model, self.layers, reading)
        self._prefix_kv = None

    def key_values(self, chunks: Sequence[torch.Tensor]) -> torch.Tensor:
        """What :meth:`encode` is made of, as one padded tensor that gradients pass through.

        Returns:
            [2, M, chunks, kv_heads, longest chunk, head_dim].
        """
        with self._lock:
            return self._lower.key_values(self._behind_prefix(chunks))[..., len(self._prefix) :, :]

    def _behind_prefix(self, chunks: Sequence[torch.Tensor]) -> torch.Tensor:
        padded = nn.utils.rnn.pad_sequence([c.to(self._prefix.device) for c in chunks], batch_first=True)
        return torch.cat([self._prefix.expand(len(chunks), -1), padded], dim=1)

    @torch.inference_mode()
    def encode(self, chunks: Sequence[torch.Tensor]) -> list[ChunkKV]:
        """Keys and values of chunks, each encoded on its own behind the prefix.

        Args:
            chunks: token ids, one tensor [tokens] per chunk. They run as one batch, padded to the longest (causal
                attention keeps the padding out of sight).

        Returns:
            For each chunk a ChunkKV over the bottom M layers; row r holds the key rotated for position
            ``len(prefix) + r``.
        """
        if self.engine is not None:
            return [self._computed_by(self.engine, chunk.tolist()) for chunk in chunks]
        kv = self.key_values(chunks)
        return [ChunkKV(_on_its_own(kv[:, :, i, :, : len(chunk)])) for i, chunk in enumerate(chunks)]

    def _computed_by(self, engine: ChunkEngine, chunk: list[int]) -> ChunkKV:
        ids, shape = [*self._prefix.tolist(), *chunk], (self.layers, len(chunk), *self._lower.heads)
        rows = engine.key_values(ids, len(self._prefix), shape, self._lower.dtype)
        return ChunkKV(_on_its_own(rows.to(self._prefix.device).permute(1, 0, 3, 2, 4)))

    def read_prefix(self) -> None:
        """Encode the prefix that repetitions stand behind, and keep it: again where the weights have changed."""
        self._prefix_kv = self._lower.key_values(self._prefix[None])

    @torch.no_grad()
    def importance(
        self, chunks: Sequence[torch.Tensor], encodings: Sequence[ChunkKV], lead_in: int = 0
    ) -> list[torch.Tensor]:
        """How much the model needs each row of each head to repeat the chunk: one further pass behind its own KV.

        See :class:`~shared_context.model.importance.ImportanceObserver`. Chunks of one length run as one batch.

        Args:
            chunks: token ids, one tensor [tokens] per chunk.
            encodings: what :meth:`encode` made of them.
            lead_in: tokens at the beginning of each that are no part of it: their importance is 0.

        Returns:
            For each chunk float16 [M, kv_heads, tokens] on the processor, 1 for the most important row of all.

        Raises:
            WindowExceededError: a chunk and a part of its repetition do not fit the model's window.
            SharedContextError: keys or values are infinite or NaN.
        """
        found: dict[int, torch.Tensor] = {}
        for group in of_equal_length(chunks):
            ids = torch.stack([chunks[number].to(self._prefix.device) for number in group])
            found |= zip(group, self._importance(ids, [encodings[n] for n in group], lead_in), strict=True)
        return [found[number] for number in range(len(chunks))]

    def _importance(self, ids: torch.Tensor, encodings: Sequence[ChunkKV], lead_in: int) -> list[torch.Tensor]:
        """That of chunks [batch, tokens] of one length."""
        batch, tokens = ids.shape
        sink, asked = len(self._prefix), len(self._request)
        before, first = sink + tokens, max(0, lead_in - OVERLAP)
        room = tokens + OVERLAP + 1 if self._window is None else self._window - before - asked
        if room <= OVERLAP:
            raise WindowExceededError(
                f"A chunk of {tokens} tokens and its repetition do not fit the window of {self._window} tokens: make "
                'the store with smaller chunks, TreeConfig(chunk_size=...), or show every r-th row, rows="stride".'
            )
        with self._lock:
            if self._prefix_kv is None:
                self.read_prefix()
            parts = parts_of_a_repetition(tokens - first, room)
            longest = max(end - begin for begin, end in parts)
            prefix_kv = self._prefix_kv
            assert prefix_kv is not None  # it was read
            shape = prefix_kv.shape
            known = pages(
                (*shape[:2], batch, shape[3], before + asked + longest, shape[5]), self._lower.dtype, ids.device
            )
            known[..., :sink, :] = prefix_kv
            for row, encoding in enumerate(encodings):
                known[:, :, row, :, sink:before] = encoding.dequantized(self._lower.dtype).data
            observer = ImportanceObserver(
                self.layers, sink + lead_in, tokens - lead_in, by_length=self._reader.adds_as_projected
            )
            done = 0
            for begin, end in parts:
                repeated = torch.cat([self._request.expand(batch, -1), ids[:, first + begin : first + end]], dim=1)
                observer.passed_over = asked + done - begin if done else 0
                self._reader.read_behind(known, before, repeated, observer=observer)
                done = end
        importance = [nn.functional.pad(scores, (lead_in, 0)) for scores in observer.importance()]
        if not all(torch.isfinite(scores).all() for scores in importance):
            raise SharedContextError(
                f"The model's attention over a chunk is infinite or NaN in {self._lower.dtype}: load it in float32."
            )
        return importance

    @torch.inference_mode()
    def first_layer_states(self, chunks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Hidden states after one layer, which node codes are made of.

        Args:
            chunks: token ids, one tensor [tokens] per chunk; they run as one batch behind the prefix.

        Returns:
            For each chunk [tokens, hidden], in the model's dtype.
        """
        sink = len(self._prefix)
        with self._lock:
            states = self._first.hidden_states(self._behind_prefix(chunks))
        return [states[i, sink : sink + len(chunk)] for i, chunk in enumerate(chunks)]

    @torch.inference_mode()
    def query_states(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states [tokens, hidden] after one layer of a query, which is encoded without the prefix."""
        with self._lock:
            return self._first.hidden_states(ids.to(self._prefix.device)[None])[0]


def _on_its_own(part: torch.Tensor) -> torch.Tensor:
    """A copy of a part of something larger, which does not keep the rest of it alive."""
    return pages(part.shape, part.dtype, part.device).copy_(part)
