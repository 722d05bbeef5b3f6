"""The model: one language model as its own compressor and injecting decoder."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StopStringCriteria,
)

from shared_context.config import InjectionKind, one_of, require
from shared_context.errors import (
    AdapterError,
    ConfigError,
    ModelMismatchError,
    ModelNotFoundError,
    QueryError,
    SharedContextError,
    UnsupportedModelError,
    WindowExceededError,
)
from shared_context.model.adapter import Adapter, AdapterConfig, shipped_for
from shared_context.model.cache import RoomyCache
from shared_context.model.compressor import Compressor, bottom_layers, with_projections
from shared_context.model.generation import (
    Clock,
    Completion,
    CompletionStream,
    Detokenizer,
    cut_at_stop,
    one_by_one,
    until_stop,
)
from shared_context.model.identity import arithmetic, fingerprint
from shared_context.model.injection import ATTENTION, ContextKV, CrossAttentionInjection, PrefixInjection
from shared_context.model.low_rank import InjectionLoRA, by_layer
from shared_context.model.pretrained import DEFAULT_MODEL, resolve_model
from shared_context.model.prompt import SYSTEM_PROMPT, Message, Prompt, PromptFormat
from shared_context.model.support import check_config, check_rotation, processor_dtype, usable_window
from shared_context.model.tokenization import TokenizedText, tokenize

T = TypeVar("T")

AUTO_ADAPTER = "auto"
"""Stands for the adapter that ships for a model, where there is one."""

SEVERAL_ANSWERS = ("num_beams", "num_return_sequences")
"""Fields of GenerationConfig that ask for more than one answer to be worked on, which no stream does."""

REFUSED_OPTIONS = {
    "attn_implementation": "the injection brings its own attention; leave it out",
    "trust_remote_code": "code that comes with weights is never run; choose a model that transformers knows itself",
    "output_loading_info": "from_pretrained gives the model alone; leave it out",
    "local_files_only": "the Hub is asked only for what is not here; set HF_HUB_OFFLINE=1 to keep it from being asked",
    "force_download": "what is here is taken; delete it from the Hugging Face cache to have it fetched again",
}
"""Options of transformers' ``from_pretrained`` that cannot be honoured, and what to do instead."""

PREFIXES_KEPT = 16
"""Prefixes whose keys and values are kept: one for each system prompt in use."""


@runtime_checkable
class Context(Protocol):
    """What can be injected: a store's Selection, or anything else that can say what it holds.

    Where it has a ``model_identity`` it is read by a model of that :attr:`SharedLLMModel.identity` only.
    """

    @property
    def kv_entries(self) -> int:
        """KV entries per layer."""

    def key_values(self) -> ContextKV:
        """The encodings and rows to inject."""


@dataclass(frozen=True)
class _Request:
    """One prompt with its context, ready to be computed.

    Attributes:
        prompt: with a pasted context in it.
        context: to be injected.
        reads: whether there is a context, injected or pasted: an adapter answers only then.
    """

    prompt: Prompt
    context: Context | None
    reads: bool

    @property
    def context_entries(self) -> int:
        return self.context.kv_entries if self.context is not None else 0


class SharedLLMModel:
    """One short-context language model, stacked on itself (SharedLLM, arXiv 2603.04759).

    As the compressor it turns chunks of documents into keys and values; as the injecting decoder it answers with
    those injected. Make one with :meth:`from_pretrained`.

    Args:
        model: a causal language model that :func:`check_config` and :func:`check_rotation` let pass.
        tokenizer: its fast tokenizer.
        name: how messages call it.
        injection: "prefix" (works without training) or "cross_attention" (needs an adapter to be of use).
        injection_layers: M, the bottom layers that see the context; None is all of them.
        context_window: tokens; None is as many as the model serves.
        system_prompt: system message of prompts that bring none; None is the library's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        injection: InjectionKind = "prefix",
        injection_layers: int | None = None,
        context_window: int | None = None,
        system_prompt: str | None = None,
    ):
        one_of("injection", injection, InjectionKind)
        layers = model.config.num_hidden_layers
        injection_layers = layers if injection_layers is None else injection_layers
        require(
            1 <= injection_layers <= layers, "injection_layers", injection_layers, f"must lie between 1 and {layers}"
        )
        widest = usable_window(model.config)
        context_window = widest if context_window is None else context_window
        require(1 <= context_window <= widest, "context_window", context_window, f"{name} serves 1 to {widest} tokens")
        self.hf_model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.fingerprint = fingerprint(model, tokenizer)
        self.context_window = context_window
        self.prompt_format = PromptFormat(tokenizer, SYSTEM_PROMPT if system_prompt is None else system_prompt)
        inv_freq = model.base_model.rotary_emb.inv_freq
        self.injection: PrefixInjection | CrossAttentionInjection = (
            PrefixInjection(injection_layers, inv_freq)
            if injection == "prefix"
            else CrossAttentionInjection(model, injection_layers, inv_freq)
        )
        # Hooks and the random state belong to the whole process, so one generation runs at a time.
        self._lock = threading.RLock()
        # Hooks of cross-attention are on layers that the compressor has too.
        alone = None if injection == "prefix" else self._lock
        self.compressor = Compressor(model, injection_layers, self.prompt_format.prefix, alone)
        self._decoder = model
        self._all_layers = bottom_layers(model, layers)
        self._prefixes: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()
        self._adapter: Adapter | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = DEFAULT_MODEL,
        *,
        adapter: str | Path | None = AUTO_ADAPTER,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        injection: InjectionKind | None = None,
        injection_layers: int | None = None,
        context_window: int | None = None,
        system_prompt: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        **model_options: Any,
    ) -> SharedLLMModel:
        """Load a model.

        Args:
            name_or_path: "smollm2-135m-instruct" (the embedded default), a Hugging Face name, or a folder.
            adapter: a trained adapter, which brings its injection and layers: the name of one that ships with the
                library, a folder, or a repository on the Hub. "auto" takes the one that ships for these very weights,
                injection and layers, where there is one; None leaves the model untrained.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            dtype: a torch dtype or its name; "auto" is the checkpoint's own, or float32 on a processor that has no
                bfloat16 arithmetic.
            injection: "prefix" where None.
            injection_layers: M, the bottom layers that see the context; None is all of them.
            context_window: tokens; None is as many as the model serves.
            system_prompt: system message of prompts that bring none; None is the library's.
            revision: branch, tag or commit of the model's repository on the Hub; None is its main branch.
            token: for a repository that is not public; None is the one of ``hf auth login``.
            cache_dir: folder of the Hugging Face cache; None is its usual one.
            **model_options: passed to ``AutoModelForCausalLM.from_pretrained``.

        Raises:
            ModelNotFoundError: where there are no weights of that name, or they are incomplete or damaged.
            UnsupportedModelError: where the model cannot be stacked on itself, with the reason.
            ModelMismatchError, AdapterError: where the adapter belongs to another model or is damaged.
            ConfigError: where a setting is out of range, or cannot be honoured.
        """
        name = str(name_or_path)
        for option, value in model_options.items():
            require(not value or option not in REFUSED_OPTIONS, option, value, REFUSED_OPTIONS.get(option, ""))
        device = _pick_device(device)
        source = resolve_model(name_or_path, revision=revision, token=token, cache_dir=cache_dir)
        trained = Adapter.from_pretrained(adapter) if adapter not in (None, AUTO_ADAPTER) else None
        if trained is not None:
            given = {"injection": injection, "injection_layers": injection_layers}
            for setting, value in given.items():
                own = getattr(trained.config, setting)
                require(value in (None, own), setting, value, f"the adapter in {adapter} was trained with {own!r}")
            injection, injection_layers = trained.config.injection, trained.config.injection_layers
        # With trust_remote_code left open, transformers would ask on the terminal whether to run a repository's code.
        mend = "choose a decoder-only model that transformers knows itself, or mend the file"
        with _said_as(UnsupportedModelError, f"The config.json of {name} cannot be read; {mend}"):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        check_config(config, name)
        with _said_as(ModelNotFoundError, f"The tokenizer of {name} is missing or damaged; add its tokenizer.json"):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if not tokenizer.is_fast:
            raise UnsupportedModelError(
                f"{name} has only a slow tokenizer, which gives no character offsets; add a tokenizer.json to it."
            )
        model_options |= {
            "dtype": _pick_dtype(dtype, config.dtype, device),
            "attn_implementation": ATTENTION,
            "trust_remote_code": False,
            "output_loading_info": True,
        }
        damaged = f"The weights of {name} are incomplete or damaged; fetch or save them again"
        with _said_as(ModelNotFoundError, damaged, (OSError, RuntimeError, SafetensorError)):
            model, loaded = AutoModelForCausalLM.from_pretrained(source, **model_options)
        # Transformers fills what is missing with random numbers.
        missing = sorted(loaded["missing_keys"])
        if missing:
            raise ModelNotFoundError(f"{damaged} ({len(missing)} tensors are missing, {missing[0]} among them).")
        model = model.to(device)
        check_rotation(model, name)
        shared = cls(
            model,
            tokenizer,
            name=name,
            injection=injection or "prefix",
            injection_layers=injection_layers,
            context_window=context_window,
            system_prompt=system_prompt,
        )
        if adapter == AUTO_ADAPTER:
            trained = shipped_for(shared.fingerprint, shared.injection.kind, shared.injection.layers)
        if trained is not None:
            shared.load_adapter(trained)
        return shared

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.hf_model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and KV."""
        return self.hf_model.dtype

    @property
    def identity(self) -> str:
        """What keys and values are marked with: the weights, what else they are computed by, the layers, the dtype."""
        prefix = hashlib.sha256(f"{self.prompt_format.prefix}{arithmetic(self.hf_model)}".encode()).hexdigest()[:8]
        adapter = f"/{self._adapter.digest}" if self._adapter is not None else ""
        return f"{self.fingerprint}/{prefix}/{self.compressor.layers}/{str(self.dtype).removeprefix('torch.')}{adapter}"

    def __repr__(self) -> str:
        return f"SharedLLMModel({self.name!r}, {self.injection.kind} over {self.compressor.layers} layers)"

    # Adapters

    def load_adapter(self, adapter: Adapter) -> None:
        """Take an adapter's weights.

        Those of prefix injection are merged into copies of the attention's projections, one for the compressor and one
        for the decoder, so that serving costs no step more and no one has to switch between weights. The model's own
        stay as they are: they answer prompts without a context, and node codes are made of them.

        Raises:
            ModelMismatchError: where it was trained on another base model.
            AdapterError: where it is for another injection, or a tensor is missing or reshaped.
        """
        adapter.check_base(self.name, self.fingerprint)
        config = adapter.config
        own = self.injection.kind, self.injection.layers
        its = config.injection, config.injection_layers
        if own != its:
            raise AdapterError(
                f"The adapter is for {its[0]} injection over {its[1]} layers, and {self.name} has {own[0]} injection "
                f"over {own[1]}; pass the adapter to from_pretrained, which takes both from it."
            )
        if isinstance(self.injection, CrossAttentionInjection):
            self.injection.adapt_upper(self.hf_model, config.rank, config.alpha)
            adapter.load_into(self.injection)
        else:
            lora = InjectionLoRA(self.hf_model, config.injection_layers, config.rank, config.alpha)
            adapter.load_into(lora)
            self.compressor.adapt(self.hf_model, by_layer(lora.compress.merged(self.hf_model)))
            self._decoder = with_projections(self.hf_model, by_layer(lora.decode.merged(self.hf_model)))
            self._all_layers = bottom_layers(self._decoder, self.hf_model.config.num_hidden_layers)
            self._prefixes.clear()
        self._adapter = adapter

    def adapter(self) -> Adapter | None:
        """The trained weights on top of the base model, to be saved with ``save_pretrained``; None where it has none.

        Those of cross-attention injection are the weights as they are now, described as the adapter that was loaded.
        """
        if not isinstance(self.injection, CrossAttentionInjection):
            return self._adapter
        if self._adapter is not None:
            return replace(self._adapter, weights=self.injection.state_dict())
        config = AdapterConfig(self.name, self.fingerprint, self.injection.kind, self.injection.layers)
        return Adapter(config, self.injection.state_dict())

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter was loaded."""
        return self._adapter is not None

    # Tokens

    def count_tokens(self, text: str) -> int:
        """Tokens of a text on its own."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def tokenize(self, text: str) -> TokenizedText:
        """A document's tokens with the characters they stand for."""
        return tokenize(self.tokenizer, text)

    # Answers

    def generate(self, prompt: str | Sequence, **options: Any) -> str | list[str]:
        """Answer, as text. Takes what :meth:`complete` takes; a batch of prompts gives a list."""
        completions = self.complete(prompt, **options)
        return [c.text for c in completions] if isinstance(completions, list) else completions.text

    def complete(
        self,
        prompt: str | Sequence,
        *,
        context: Context | str | None | Sequence[Context | str | None] = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        formatted: bool = False,
        batch_size: int = 8,
        **generation_options: Any,
    ) -> Completion | list[Completion]:
        """Answer, with what it took.

        Args:
            prompt: a question; or a conversation, as a list of ``{"role", "content"}``; or a batch, as a list of
                either.
            context: a Selection, whose KV are injected; text, which is pasted into the same prompt; or None. For a
                batch one for all prompts, or a list with one for each.
            max_new_tokens: tokens of the answer at most.
            temperature: 0 takes the likeliest token every time; above, tokens are sampled. With ``do_sample=True`` 0
                stands for 1.
            top_p, top_k: limits of the sampling; None leaves them off. Where the likeliest token is taken they change
                nothing: it lies within them.
            stop: strings that end the answer and are not part of it; ``stop_strings`` is the same.
            seed: of the sampling.
            formatted: the prompt is in the model's own format already.
            batch_size: prompts that run together.
            **generation_options: further fields of transformers' GenerationConfig.

        Raises:
            WindowExceededError: before any computing, where prompt, context and answer do not fit the window.
            QueryError: where a prompt is empty.
            ConfigError: where another argument is wrong.
        """
        stop = _as_stop(stop, generation_options.pop("stop_strings", None))
        settings = self._settings(max_new_tokens, temperature, top_p, top_k, generation_options)
        single, requests = self._requests(prompt, context, formatted, max_new_tokens)
        require(batch_size >= 1, "batch_size", batch_size, "must be 1 or more prompts")
        if single and all(getattr(settings, option) in (None, 1) for option in SEVERAL_ANSWERS):
            # As a stream, so that both give the same answer and the same time to its first token.
            stream = CompletionStream(partial(self._streamed, requests[0], settings, stop, seed))
            for _ in stream:
                pass
            return stream.completion
        several = settings.num_return_sequences or 1
        answers: dict[int, list[Completion]] = {}
        for batch in self._batches(requests, batch_size, [max_new_tokens] * len(requests)):
            completions = self._run([requests[i] for i in batch], settings, stop, seed)
            answers |= {i: completions[n * several : (n + 1) * several] for n, i in enumerate(batch)}
        completions = [completion for i in range(len(requests)) for completion in answers[i]]
        return completions[0] if single and several == 1 else completions

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        context: Context | str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        formatted: bool = False,
        **generation_options: Any,
    ) -> CompletionStream:
        """Answer one prompt piece by piece; takes and raises what :meth:`complete` does, but no batch.

        What is wrong with the call is raised here; nothing is computed before the first piece is asked for.
        """
        stop = _as_stop(stop, generation_options.pop("stop_strings", None))
        settings = self._settings(max_new_tokens, temperature, top_p, top_k, generation_options)
        single, requests = self._requests(prompt, context, formatted, max_new_tokens)
        if not single:
            raise ConfigError(f"stream() takes one prompt, not a batch of {len(requests)}; use generate().")
        for option in SEVERAL_ANSWERS:
            given = getattr(settings, option)
            require(given in (None, 1), option, given, "a stream has one answer; use complete()")
        return CompletionStream(partial(self._streamed, requests[0], settings, stop, seed))

    @torch.inference_mode()
    def score(
        self,
        question: str | Sequence,
        answer: str | Sequence[str],
        *,
        context: Context | str | None | Sequence[Context | str | None] = None,
        batch_size: int = 8,
    ) -> float | list[float]:
        """Mean negative log-likelihood of an answer, in nats per token.

        Args:
            question: as ``prompt`` of :meth:`complete`.
            answer: the text to score; one for each question of a batch.
            context, batch_size: as in :meth:`complete`.

        Raises:
            WindowExceededError, QueryError: as :meth:`complete`.
        """
        answers = [answer] if isinstance(answer, str) else list(answer)
        answer_ids = [self.tokenizer(a, add_special_tokens=False)["input_ids"] for a in answers]
        if not all(answer_ids):
            raise QueryError("An answer to be scored is empty; give at least one token.")
        single, requests = self._requests(question, context, False, [len(ids) for ids in answer_ids])
        scores: dict[int, float] = {}
        for batch in self._batches(requests, batch_size, [len(ids) for ids in answer_ids]):
            found = self._score([requests[i] for i in batch], [answer_ids[i] for i in batch])
            scores |= zip(batch, found, strict=True)
        return scores[0] if single else [scores[i] for i in range(len(requests))]

    def logits(self, prompt: Prompt, context: Context | None = None, *, in_place: bool = False) -> torch.Tensor:
        """Logits [suffix tokens, vocabulary] over a prompt's running text.

        Args:
            prompt: the running text, behind its prefix.
            context: what is injected.
            in_place: read the context as the first step of a stream does, where its encodings lie if that is possible,
                and not from a copy of them. It makes no difference but of rounding.
        """
        return self._logits([_Request(prompt, context, context is not None)], len(prompt.suffix), in_place)[0]

    def _logits(self, requests: Sequence[_Request], keep: int, in_place: bool = False) -> torch.Tensor:
        """Logits [batch, keep, vocabulary] over the last tokens of a batch's prompts."""
        with self._lock, torch.inference_mode():
            inputs, injected = self._inputs(requests, room=0, in_place=in_place)
            ids, cache = inputs.pop("input_ids"), inputs["past_key_values"]
            if isinstance(cache, RoomyCache) and cache.in_place is not None:
                inputs["in_place"] = cache.in_place
            past = cache.get_seq_length()
            # What is masked needs a position too, any one that there is.
            positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)[:, past:]
            with injected:
                out = self._reader(requests[0])(
                    input_ids=ids[:, past:], position_ids=positions, logits_to_keep=keep, **inputs
                )
            _release(inputs)
        return out.logits

    def _reader(self, request: _Request) -> PreTrainedModel:
        """Who answers: the decoder, with its adapter, where a context is read, and the base model elsewhere."""
        return self._decoder if request.reads else self.hf_model

    def check_window(
        self,
        prompt: str | Sequence,
        *,
        context: Context | str | None | Sequence[Context | str | None] = None,
        max_new_tokens: int = 256,
    ) -> None:
        """Raise WindowExceededError where :meth:`complete` would; nothing is computed."""
        self._requests(prompt, context, False, max_new_tokens)

    # How it is done

    def _requests(
        self, prompt: str | Sequence, context: object, formatted: bool, new_tokens: int | Sequence[int]
    ) -> tuple[bool, list[_Request]]:
        """Whether a single prompt was given, and all prompts with their contexts, checked against the window.

        Args:
            new_tokens: of every answer, or of each.
        """
        single = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], dict))
        prompts = [prompt] if single else list(prompt)
        several = isinstance(context, Sequence) and not isinstance(context, str)
        contexts = list(context) if several else [context] * len(prompts)
        require(len(contexts) == len(prompts), "context", len(contexts), f"there are {len(prompts)} prompts")
        requests = [self._request(p, c, formatted) for p, c in zip(prompts, contexts, strict=True)]
        of_each = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else new_tokens
        require(len(of_each) == len(prompts), "answer", len(of_each), f"there are {len(prompts)} questions")
        for request, new in zip(requests, of_each, strict=True):
            in_window = request.context_entries if self.injection.in_cache else 0
            needed = len(request.prompt) + in_window + new
            if needed > self.context_window:
                raise WindowExceededError(
                    f"{self.name} reads {self.context_window} tokens, and this needs {needed}: "
                    f"{len(request.prompt)} of prompt, {in_window} injected, {new} of answer. "
                    "Select with a smaller budget, shorten the prompt or ask for fewer new tokens."
                )
        return single, requests

    def _batches(self, requests: Sequence[_Request], size: int, new_tokens: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of the requests that run together: a batch shares the columns of its prefix, and its reader.

        Sliding windows count a batch's columns, not a row's tokens, so that those have to fit the window together.
        """
        require(size >= 1, "batch_size", size, "must be 1 or more prompts")
        alike: defaultdict[tuple[tuple[int, ...], bool], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            alike[request.prompt.prefix, request.reads].append(index)

        entries = [r.context_entries if self.injection.in_cache else 0 for r in requests]

        def columns(batch: Sequence[int]) -> int:
            parts = (entries, [len(r.prompt) for r in requests], new_tokens)
            return sum(max(part[index] for index in batch) for part in parts)

        for group in alike.values():
            batch: list[int] = []
            for index in group:
                if batch and (len(batch) == size or columns([*batch, index]) > self.context_window):
                    yield batch
                    batch = []
                batch.append(index)
            yield batch

    def _request(self, prompt: str | Sequence[Message], context: object, formatted: bool) -> _Request:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        for message in messages:
            whole = isinstance(message, dict) and all(isinstance(message.get(p), str) for p in ("role", "content"))
            require(whole, "message", message, "must be a dict with a role and a content, both of them text")
        if not any(m["content"].strip() for m in messages):
            raise QueryError("The prompt is empty; give at least one word.")
        if context is not None and not isinstance(context, str | Context):
            raise ConfigError(f"context is a {type(context).__name__}; give a Selection, a text to be pasted, or None.")
        theirs = getattr(context, "model_identity", self.identity)
        if theirs != self.identity:
            raise ModelMismatchError(
                f"The context was selected for {theirs}, and {self.name} is {self.identity}: weights, adapter, "
                "injection, type and prompt have to be the same. Select from a store that was opened with this model."
            )
        if isinstance(context, Context) and context.kv_entries == 0:
            context = None
        if formatted:
            if isinstance(context, str):
                raise ConfigError("A formatted prompt has no place for pasted text; paste it into the prompt.")
            if not isinstance(prompt, str):
                raise ConfigError("A formatted prompt is one string, not a conversation.")
            rendered = self.prompt_format.formatted(prompt, with_context=context is not None)
        else:
            rendered = self.prompt_format.render(messages, with_context=context is not None)
        if isinstance(context, str):
            # Pasted text is read like any other prompt: one prefill, nothing kept from before.
            pasted = tuple(self.tokenize(context).ids.tolist())
            return _Request(Prompt((), rendered.prefix + pasted + rendered.suffix), None, True)
        return _Request(rendered, context, context is not None)

    def _settings(
        self,
        max_new_tokens: int,
        temperature: float,
        top_p: float | None,
        top_k: int | None,
        options: dict[str, Any],
    ) -> GenerationConfig:
        require(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "must be 1 or more tokens")
        require(temperature >= 0, "temperature", temperature, "must be 0 or more")
        require(top_p is None or 0 < top_p <= 1, "top_p", top_p, "must be above 0 and at most 1")
        require(top_k is None or top_k >= 0, "top_k", top_k, "must be 1 or more tokens, or 0 for no limit")
        asked = options.get("do_sample")
        sampled = temperature > 0 if asked is None else bool(asked)
        require(
            sampled or temperature == 0,
            "temperature",
            temperature,
            "do_sample=False takes the likeliest token; drop one of the two",
        )
        sampling: dict[str, Any] = {"do_sample": sampled}
        if sampled:
            sampling |= {"temperature": temperature or 1.0, "top_p": top_p or 1.0, "top_k": top_k or 0}
        unknown = [name for name in options if not hasattr(GenerationConfig(), name)]
        require(not unknown, "generation_options", unknown, "transformers' GenerationConfig has no such fields")
        own = self.hf_model.generation_config
        end = own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id
        ends = end if isinstance(end, list) else [end]
        padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else ends[0]
        return GenerationConfig(
            **{"max_new_tokens": max_new_tokens, "eos_token_id": end, "pad_token_id": padding, **options, **sampling}
        )

    def _criteria(self, clock: Clock, stop: Sequence[str]) -> list[StoppingCriteria]:
        # GenerationConfig's own stop_strings are lost on the way to one_by_one.
        return [clock, StopStringCriteria(self.tokenizer, list(stop))] if stop else [clock]

    def _run(
        self,
        requests: Sequence[_Request],
        settings: GenerationConfig,
        stop: Sequence[str],
        seed: int | None,
    ) -> list[Completion]:
        """One batch through transformers' ``generate``."""
        clock = Clock()
        with self._lock, torch.inference_mode():
            inputs, injected = self._inputs(requests, settings.max_new_tokens)
            several = max(settings.num_beams or 1, settings.num_return_sequences or 1)
            if several > 1:
                inputs["past_key_values"].batch_repeat_interleave(several)
            random = nullcontext() if seed is None else torch.random.fork_rng()
            with injected, random:
                if seed is not None:
                    torch.manual_seed(seed)
                ids = self._reader(requests[0]).generate(
                    **inputs,
                    generation_config=settings,
                    stopping_criteria=self._criteria(clock, stop),
                )
            _release(inputs)
        answers = ids[:, inputs["input_ids"].shape[1] :].tolist()
        each = len(answers) // len(requests)
        return [
            self._completion(requests[row // each], answer, settings, stop, clock) for row, answer in enumerate(answers)
        ]

    def _streamed(
        self,
        request: _Request,
        settings: GenerationConfig,
        stop: Sequence[str],
        seed: int | None,
        completion: list[Completion],
    ) -> Generator[str]:
        """The pieces of one answer; the lock and torch's modes are left between them, for others to compute."""
        clock, text = Clock(), Detokenizer(self.tokenizer)
        with self._lock, torch.inference_mode():
            inputs, injected = self._inputs([request], settings.max_new_tokens, in_place=True)
            chance = None if seed is None else torch.Generator(self.device).manual_seed(seed)
            tokens = self._reader(request).generate(
                **inputs,
                generation_config=settings,
                stopping_criteria=self._criteria(clock, stop),
                custom_generate=partial(one_by_one, generator=chance),
            )
        answer: list[int] = []

        def pieces() -> Generator[str]:
            while True:
                with self._lock, torch.inference_mode(), injected:
                    ids = next(tokens, None)
                if ids is None:
                    break
                answer.append(ids[0, -1].item())
                yield text.put(answer[-1])
            yield text.end()

        try:
            yield from until_stop(pieces(), stop)
        finally:
            _release(inputs)
            completion.append(self._completion(request, answer, settings, stop, clock))

    def _completion(
        self, request: _Request, answer: list[int], settings: GenerationConfig, stop: Sequence[str], clock: Clock
    ) -> Completion:
        """What came of a request.

        Args:
            answer: the new token ids, which may go on with padding after the one that ended it.
        """
        seconds = clock.elapsed()
        end = settings.eos_token_id
        ends = set(end if isinstance(end, list) else [end])
        length = next((i for i, token in enumerate(answer) if token in ends), len(answer))
        text = self.tokenizer.decode(answer[:length], skip_special_tokens=True)
        shown = cut_at_stop(text, stop)
        stopped = length < len(answer) or len(shown) < len(text) or length < settings.max_new_tokens
        return Completion(
            text=shown,
            finish_reason="stop" if stopped else "length",
            prompt_tokens=len(request.prompt),
            context_entries=request.context_entries,
            completion_tokens=length,
            time_to_first_token=clock.first_token or seconds,
            seconds=seconds,
        )

    def _score(self, requests: Sequence[_Request], answers: Sequence[Sequence[int]]) -> list[float]:
        """Mean negative log-likelihood of each answer's tokens, behind the prompts of one batch."""
        # The last token of the prompt predicts the first of the answer.
        behind = [
            replace(request, prompt=Prompt(request.prompt.prefix, (*request.prompt.suffix, *answer[:-1])))
            for request, answer in zip(requests, answers, strict=True)
        ]
        logits = self._logits(behind, max(map(len, answers)))
        return [
            torch.nn.functional.cross_entropy(
                row[-len(answer) :].float(), torch.tensor(answer, device=logits.device)
            ).item()
            for row, answer in zip(logits, answers, strict=True)
        ]

    def _inputs(
        self, requests: Sequence[_Request], room: int, in_place: bool = False
    ) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        """What the whole model is called with for a batch, and what must be entered meanwhile.

        With ``in_place`` the cache may not hold all of the context yet, see :meth:`PrefixInjection.cache`.

        The columns of a batch, whose prompts all have one prefix, are: context, padded on the left; prefix; running
        text, padded on the left.
        """
        contexts = [r.context.key_values() if r.context is not None else None for r in requests]
        sink = len(self.prompt_format.prefix)
        injected = self.injection.installed(self.hf_model, contexts, sink)
        in_cache = contexts if self.injection.in_cache else [None] * len(contexts)
        # What stands before an injection that is not in the cache must see it too, so it is read anew.
        prefix = requests[0].prompt.prefix if self.injection.in_cache else ()
        texts = [[*r.prompt.prefix[len(prefix) :], *r.prompt.suffix] for r in requests]
        width = max((c.entries for c in in_cache if c is not None), default=0)
        longest = max(map(len, texts))
        padding = self.tokenizer.pad_token_id or 0
        rows, masks = [], []
        for context, text in zip(in_cache, texts, strict=True):
            shown = context.token_ids if context is not None else torch.zeros(0, dtype=torch.long)
            gaps = width - len(shown), longest - len(text)
            after = [*prefix, *[padding] * gaps[1], *text]
            rows.append(torch.cat([torch.full((gaps[0],), padding), shown, torch.tensor(after, dtype=torch.long)]))
            masks.append(torch.ones_like(rows[-1]))
            masks[-1][: gaps[0]] = 0
            masks[-1][width + len(prefix) : width + len(prefix) + gaps[1]] = 0
        inputs: dict[str, Any] = {
            "input_ids": torch.stack(rows).to(self.device),
            "attention_mask": torch.stack(masks).to(self.device),
        }
        if prefix or width:
            kv = self._prefix_kv(prefix)
            inputs["past_key_values"] = self.injection.cache(
                in_cache, kv, sink, longest + room, self.dtype, longest if in_place else None
            )
        else:
            inputs["past_key_values"] = DynamicCache()
        return inputs, injected

    def _prefix_kv(self, prefix: tuple[int, ...]) -> torch.Tensor:
        """Keys and values of a prefix over all layers, [2, N, kv_heads, prefix, head_dim]."""
        kv = self._prefixes.pop(prefix, None)
        if kv is None:
            kv = self._all_layers.key_values(torch.tensor([prefix], dtype=torch.long, device=self.device))[:, :, 0]
        self._prefixes[prefix] = kv
        while len(self._prefixes) > PREFIXES_KEPT:
            self._prefixes.popitem(last=False)
        return kv


def _release(inputs: dict[str, Any]) -> None:
    """Give back what a generation's cache borrowed."""
    cache = inputs["past_key_values"]
    if isinstance(cache, RoomyCache):
        cache.release()


def _as_stop(*given: str | Sequence[str] | None) -> list[str]:
    return [s for stop in given for s in ([stop] if isinstance(stop, str) else stop or ()) if s]


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
            return torch.empty(0, device=device).device
    if torch.cuda.is_available():
        # Of several processes that torchrun starts on a machine, each has a GPU of its own.
        return torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _pick_dtype(dtype: str | torch.dtype, own: torch.dtype | None, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        picked = getattr(torch, dtype, None)
        require(isinstance(picked, torch.dtype), "dtype", dtype, "must be 'auto' or the name of a torch dtype")
        return picked
    if device.type != "cpu":
        return own or torch.float32
    return processor_dtype()
