"""The injecting decoder: the whole model, which answers behind a context that is injected."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from shared_context.kernels import AssemblyByLayer
from shared_context.model.batching import Columns
from shared_context.model.cache import CACHE_ARGUMENT, RoomyCache
from shared_context.model.compressor import bottom_layers
from shared_context.model.context import ContextKV
from shared_context.model.cross_attention import CrossAttentionInjection
from shared_context.model.injection import PrefixInjection, beside
from shared_context.model.requests import Request
from shared_context.model.step_weights import Stepping
from shared_context.model.steps import Answering, Steps

PREFIXES_KEPT = 16
"""Prefixes whose keys and values are kept: one for each system prompt in use."""


class InjectingDecoder:
    """Computes over batches of requests.

    Args:
        model: the whole causal language model.
        tokenizer: its tokenizer.
        injection: how it is shown the context.
        sink: tokens in front of each chunk while it was encoded.
        window: tokens that the model may read together.
        stepping: makes the model that computes the single steps of an answer; None leaves them to the model itself.

    Attributes:
        lock: hooks and the random state belong to the whole process, so one forward pass runs at a time.
        steps: computes the single steps of answers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        injection: PrefixInjection | CrossAttentionInjection,
        sink: int,
        window: int,
        stepping: Stepping | None = None,
    ):
        self.hf_model = model
        self.tokenizer = tokenizer
        self.injection = injection
        self.lock = threading.RLock()
        self.steps = Steps(self.lock)
        # Windows count what one answer has read; numbers in few bits may be scaled by a whole batch.
        plain = not getattr(model, "is_quantized", False)
        self._joins = isinstance(injection, PrefixInjection) and not injection.windowed and plain
        self._sink, self._window, self._stepping = sink, window, stepping
        self._stepper = model if stepping is None else stepping(model)
        self._prefixes: OrderedDict[tuple[bytes, tuple[int, ...]], torch.Tensor] = OrderedDict()
        self._read_with(model)

    def adapt(self, model: PreTrainedModel) -> None:
        """Answer behind a context with other weights from now on; prompts without one keep the model's own."""
        self._read_with(model)
        self._prefixes.clear()

    def _read_with(self, model: PreTrainedModel) -> None:
        self._adapted = model
        self._adapted_stepper = model if self._stepping is None else self._stepping(model)
        self._all_layers = bottom_layers(model, model.config.num_hidden_layers)

    @property
    def reading_model(self) -> PreTrainedModel:
        """The model with its adapter, or as it is without one."""
        return self._adapted

    def reader(self, request: Request) -> PreTrainedModel:
        """Who answers: the model with its adapter where a context is read, and the base model elsewhere."""
        return self._adapted if request.reads else self.hf_model

    def stepper(self, request: Request) -> PreTrainedModel:
        """Who generates: as :meth:`reader`, whose hooks it has, with the weights for single steps."""
        return self._adapted_stepper if request.reads else self._stepper

    def answering(
        self, stepper: PreTrainedModel, inputs: Mapping[str, Any], injected: AbstractContextManager[None]
    ) -> Answering:
        """An answer to a single request, of which the steps are to be computed.

        Args:
            stepper: what :meth:`stepper` gave for it.
            inputs, injected: what :meth:`inputs` gave for it.
        """
        return Answering(stepper, inputs[CACHE_ARGUMENT], injected, *beside(injected), self._joins)

    def logits(self, requests: Sequence[Request], keep: int, in_place: bool = False) -> torch.Tensor:
        """Logits [batch, keep, vocabulary] over the last tokens of a batch's prompts."""
        contexts = self.contexts(requests, 0)
        with self.lock, torch.inference_mode():
            inputs, injected = self.inputs(requests, contexts, room=0, in_place=in_place)
            ids, cache = inputs.pop("input_ids"), inputs[CACHE_ARGUMENT]
            if isinstance(cache, RoomyCache) and cache.in_place is not None:
                inputs["in_place"] = cache.in_place
            past = cache.get_seq_length()
            # What is masked needs a position too, any one that there is.
            positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)[:, past:]
            with injected:
                out = self.reader(requests[0])(
                    input_ids=ids[:, past:], position_ids=positions, logits_to_keep=keep, **inputs
                )
            release(inputs)
        return out.logits

    @torch.inference_mode()
    def contexts(self, requests: Sequence[Request], room: int) -> list[ContextKV | None]:
        """What is injected for each request: chunks are encoded here, and files read.

        It takes long and is done before the lock is taken, so that other generations go on meanwhile.

        Args:
            requests: the batch.
            room: tokens to leave free behind the running text.
        """
        return [
            r.context.key_values(self._window - len(r.prompt) - room) if r.context is not None else None
            for r in requests
        ]

    def inputs(
        self, requests: Sequence[Request], contexts: Sequence[ContextKV | None], room: int, in_place: bool = False
    ) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        """What the whole model is called with for a batch, and what must be entered meanwhile.

        Args:
            requests: the batch, whose prompts all have one prefix.
            contexts: what :meth:`contexts` gave for it.
            room: tokens to leave free behind the running text.
            in_place: the cache may not hold all of the context yet, see :meth:`PrefixInjection.cache`.
        """
        in_cache = contexts if self.injection.in_cache else [None] * len(contexts)
        # What stands before an injection that is not in the cache must see it too, so it is read anew.
        prefix = requests[0].prompt.prefix if self.injection.in_cache else ()
        injected = self.injection.installed(self.reader(requests[0]), contexts, self._sink, len(prefix))
        texts = [[*r.prompt.prefix[len(prefix) :], *r.prompt.suffix] for r in requests]
        columns = Columns.of(in_cache, prefix, texts, self.tokenizer.pad_token_id or 0)
        inputs: dict[str, Any] = {
            "input_ids": columns.ids.to(self.hf_model.device),
            "attention_mask": columns.mask.to(self.hf_model.device),
        }
        if isinstance(self.injection, PrefixInjection) and (prefix or any(c is not None for c in in_cache)):
            inputs[CACHE_ARGUMENT] = self.injection.cache(
                in_cache,
                self._prefix_kv(prefix, b"".join(sorted({getattr(r.context, "owner", b"") for r in requests}))),
                self._sink,
                columns.longest + room,
                self.hf_model.dtype,
                columns.longest if in_place else None,
            )
        else:
            inputs[CACHE_ARGUMENT] = DynamicCache()
        return inputs, injected

    def by_layer(self, request: Request, context: ContextKV) -> Callable[[], Iterator[torch.Tensor]]:
        """The keys and values of what stands in front of a request's text, for who reads them layer by layer.

        Args:
            request: the request.
            context: what :meth:`contexts` gave for it, all of whose rows are in every head.

        Returns:
            Yields of each layer [2, prefix and context, kv_heads, head_dim] on the processor, keys first, as if these
            stood side by side from position 0 on; the next one takes its memory.
        """
        prefix, injection = request.prompt.prefix, self.injection
        assert isinstance(injection, PrefixInjection)  # as all layers are injected
        with self.lock, torch.inference_mode():
            prefix_kv = self._prefix_kv(prefix, getattr(request.context, "owner", b"")).cpu()
        assembly = AssemblyByLayer(*context.even_parts(len(prefix), self._sink), injection.rotary)
        _, layers, kv_heads, _, head_dim = prefix_kv.shape

        def read() -> Iterator[torch.Tensor]:
            rows = torch.empty(2, len(prefix) + context.columns, kv_heads, head_dim, dtype=self.hf_model.dtype)
            by_head = rows.transpose(1, 2)
            for layer in range(layers):
                by_head[:, :, : len(prefix)] = prefix_kv[:, layer]
                assembly.write(layer, by_head[:, :, len(prefix) :])
                yield rows

        return read

    def _prefix_kv(self, prefix: tuple[int, ...], owner: bytes) -> torch.Tensor:
        """Keys and values of a prefix over all layers, [2, N, kv_heads, prefix, head_dim].

        Args:
            owner: of the contexts that stand behind it, for whom alone it is kept.
        """
        key = owner, prefix
        kv = self._prefixes.pop(key, None)
        if kv is None:
            ids = torch.tensor([prefix], dtype=torch.long, device=self.hf_model.device)
            kv = self._all_layers.key_values(ids)[:, :, 0]
        self._prefixes[key] = kv
        # However long they are: all of them together take no more than a window of keys and values.
        while len(self._prefixes) > PREFIXES_KEPT or (
            len(self._prefixes) > 1 and sum(len(kept) for _, kept in self._prefixes) > self._window
        ):
            self._prefixes.popitem(last=False)
        return kv


def release(inputs: dict[str, Any]) -> None:
    """Give back what the cache of :meth:`InjectingDecoder.inputs` borrowed."""
    cache = inputs[CACHE_ARGUMENT]
    if isinstance(cache, RoomyCache):
        cache.release()
