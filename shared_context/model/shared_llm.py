"""The model: one language model as its own compressor and injecting decoder."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from shared_context.config import ImportanceMethod, InjectionKind, Rows, one_of, require
from shared_context.errors import ConfigError, QueryError
from shared_context.model.adapter import Adapter, AdapterConfig
from shared_context.model.adapting import check_injection, put_to_work
from shared_context.model.assembled import AssembledPrompt, assembled
from shared_context.model.attribution import attention_paid
from shared_context.model.batching import batches
from shared_context.model.compressor import Compressor
from shared_context.model.constraints import Constraint, ConstraintCompiler
from shared_context.model.conversation import Message
from shared_context.model.cross_attention import CrossAttentionInjection
from shared_context.model.decoder import InjectingDecoder
from shared_context.model.decoding import (
    SEVERAL_ANSWERS,
    answer_batch,
    answer_pieces,
    end_tokens,
    generation_settings,
    stop_strings,
    whole_number,
)
from shared_context.model.generation import AsyncCompletionStream, Completion, CompletionStream
from shared_context.model.identity import arithmetic
from shared_context.model.identity import fingerprint as fingerprint_of
from shared_context.model.importance import REQUEST, ImportanceScorer
from shared_context.model.injection import PrefixInjection
from shared_context.model.loading import load
from shared_context.model.pretrained import DEFAULT_MODEL, HubOptions
from shared_context.model.probe import ImportanceProbe, shipped_probe
from shared_context.model.prompt import SYSTEM_PROMPT, Prompt, PromptFormat
from shared_context.model.requests import Context, Request, RequestReader, is_single
from shared_context.model.scoring import score_batch
from shared_context.model.step_weights import Stepping, StepWeights
from shared_context.model.support import check_config, check_in_one_place, check_rotation, usable_window
from shared_context.model.tokenization import TokenizedText, check_text, tokenize


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
        chat_template_kwargs: arguments of the chat template, such as ``{"enable_thinking": False}`` for Qwen3.
        fingerprint: of the checkpoint, where a cast to float16 has changed the weights; None is that of the weights.
        step_weights: "int8" or "int4" decodes with quantised copies of the weights, which is faster on a processor;
            None decodes with the weights as they are. Chunks and prompts are read with these in any case.

    Attributes:
        hf_model, tokenizer, name, context_window: as above.
        fingerprint: of the weights in the checkpoint, whatever dtype they were loaded in, and of the vocabulary.
        prompt_format: how prompts are rendered.
        ends: ids of the tokens that end an answer.
        injection: how the decoder is shown the context.
        compressor: encodes chunks.
        probe: guesses importance, for stores that ask for it; None is the one that ships for the model, if any.
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
        chat_template_kwargs: Mapping[str, Any] | None = None,
        fingerprint: str | None = None,
        step_weights: StepWeights | None = None,
    ):
        one_of("injection", injection, InjectionKind)
        check_config(model.config, name, minimum_window=1)
        check_in_one_place(model, name)
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
        self.fingerprint = fingerprint_of(model, tokenizer) if fingerprint is None else fingerprint
        self.context_window = context_window
        self.system_prompt = SYSTEM_PROMPT if system_prompt is None else system_prompt
        check_text("system_prompt", self.system_prompt)
        self.prompt_format = PromptFormat(tokenizer, self.system_prompt, chat_template_kwargs)
        self.ends = end_tokens(model, tokenizer, self.prompt_format)
        measured = check_rotation(model, name)
        self.injection: PrefixInjection | CrossAttentionInjection = (
            PrefixInjection(
                injection_layers,
                measured.rotary,
                windowed=measured.narrower_than(context_window),
                fused=measured.fused,
            )
            if injection == "prefix"
            else CrossAttentionInjection(model, injection_layers, measured.rotary)
        )
        prefix = self.prompt_format.prefix
        stepping = None if step_weights is None else Stepping(step_weights, model.device)
        unserved = injection != "prefix" or getattr(model, "is_quantized", False)
        mend = "it is for prefix injection and for weights in floating point; leave it out"
        require(stepping is None or not unserved, "step_weights", step_weights, mend)
        self._decoder = InjectingDecoder(model, tokenizer, self.injection, len(prefix), context_window, stepping)
        # Hooks of cross-attention are on layers that the compressor has too.
        alone = None if injection == "prefix" else self._decoder.lock
        request = self.prompt_format.render([{"role": "user", "content": REQUEST}], with_context=True).suffix
        self.compressor = Compressor(model, injection_layers, prefix, request, context_window, alone)
        self._requests = RequestReader(name, self.prompt_format, self.tokenize, context_window, self.injection.in_cache)
        self._constraints = ConstraintCompiler(tokenizer, model.config.vocab_size)
        self._adapter: Adapter | None = None
        self.probe: ImportanceProbe | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = DEFAULT_MODEL,
        *,
        adapter: str | Path | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        injection: InjectionKind | None = None,
        injection_layers: int | None = None,
        context_window: int | None = None,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        step_weights: StepWeights | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        **model_options: Any,
    ) -> SharedLLMModel:
        """Load a model.

        Args:
            name_or_path: "smollm2-135m-instruct" (the embedded default), a Hugging Face name, a folder, or a GGUF file,
                whose weights are unpacked; one of a repository or a folder is named by ``gguf_file`` beside it.
            adapter: a trained adapter, which brings its injection and layers: "factoid", which ships with the library
                (short answers to questions of fact, for the embedded default only), a folder, or a repository on the
                Hub. None leaves the model as it is, which serves every kind of request.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            dtype: a torch dtype or its name; "auto" is the checkpoint's own, or float32 on a processor that has no
                bfloat16 arithmetic.
            injection: "prefix" where None.
            injection_layers: M, the bottom layers that see the context; None is all of them.
            context_window: tokens; None is as many as the model serves.
            system_prompt: system message of prompts that bring none; None is the library's.
            chat_template_kwargs: arguments of the chat template, such as ``{"enable_thinking": False}`` for Qwen3.
            step_weights: "int8" or "int4" decodes with quantised copies of the weights, which is faster on a processor;
                None decodes with the weights as they are. Chunks and prompts are read with these in any case.
            revision: branch, tag or commit of the model's repository on the Hub; None is its main branch.
            token: for a repository that is not public; None is the one of ``hf auth login``.
            cache_dir: folder of the Hugging Face cache; None is its usual one.
            **model_options: passed to ``AutoModelForCausalLM.from_pretrained``. ``quantization_config`` loads weights
                in 8 or 4 bits by torchao or bitsandbytes; stores and adapters of other weights are not for these.

        Raises:
            ModelNotFoundError: where there are no weights of that name, or they are incomplete or damaged.
            UnsupportedModelError: where the model cannot be stacked on itself, with the reason.
            ModelMismatchError, AdapterError: where the adapter belongs to another model or is damaged.
            ConfigError: where a setting is out of range, or cannot be honoured.
        """
        trained = Adapter.from_pretrained(adapter) if adapter is not None else None
        if trained is not None:
            given = {"injection": injection, "injection_layers": injection_layers}
            for setting, value in given.items():
                own = getattr(trained.config, setting)
                require(value in (None, own), setting, value, f"the adapter in {adapter} was trained with {own!r}")
            injection, injection_layers = trained.config.injection, trained.config.injection_layers
        hub: HubOptions = {"revision": revision, "token": token, "cache_dir": cache_dir}
        model, tokenizer, checkpoint = load(name_or_path, device=device, dtype=dtype, hub=hub, options=model_options)
        shared = cls(
            model,
            tokenizer,
            name=str(name_or_path),
            injection=injection or "prefix",
            injection_layers=injection_layers,
            context_window=context_window,
            system_prompt=system_prompt,
            chat_template_kwargs=chat_template_kwargs,
            fingerprint=checkpoint,
            step_weights=step_weights,
        )
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
            AdapterError: where the weights are quantised, it is for another injection, or a tensor is missing or
                reshaped.
        """
        check_injection(adapter.config, self._decoder, self.name)
        adapter.check_base(self.name, self.fingerprint)
        put_to_work(adapter, self.compressor, self._decoder)
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

    @property
    def rows(self) -> Rows:
        """Which rows coarse grains keep where nothing else is asked for: as the adapter is served."""
        return "importance" if self._adapter is None else self._adapter.config.rows

    @property
    def has_probe(self) -> bool:
        """Whether there is a probe for the model as it was loaded."""
        return self._usable_probe() is not None

    def _usable_probe(self) -> ImportanceProbe | None:
        """The probe of one's own, or the one that ships, where it is for these weights and all layers are injected."""
        probe = self.probe or (shipped_probe(self.fingerprint) if self._adapter is None else None)
        whole = self.compressor.layers == self.hf_model.config.num_hidden_layers
        return probe if probe is not None and whole and probe.fingerprint == self.fingerprint else None

    def importance_scorer(self, method: ImportanceMethod) -> ImportanceScorer:
        """A way to know how much the model needs each row of a chunk.

        Raises:
            ConfigError: there is no probe for the model as it is.
        """
        if method == "repetition":
            return ImportanceScorer(self.compressor.importance_method, self.compressor.importance)
        probe = self._usable_probe()
        require(
            probe is not None,
            "importance",
            method,
            f"there is no probe for all layers of {self.name} as it was loaded; fit one with shared-context probe and "
            "set model.probe, or use 'repetition'",
        )
        return probe.scorer(self.injection.rotary, len(self.prompt_format.prefix))

    # Tokens

    def count_tokens(self, text: str) -> int:
        """Tokens of a text on its own."""
        return len(self.tokenize(text))

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
        context: Context | str | Sequence[Context | str | None] | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        formatted: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        response_schema: Mapping[str, Any] | None = None,
        grammar: str | None = None,
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
            formatted: the prompt is in the model's own format already, its control tokens with it.
            chat_template_kwargs: arguments of the chat template, over those that the model was made with.
            response_schema: a JSON schema; the answer is one line of JSON that follows it, unless max_new_tokens end it
                before. An object has the properties that its schema names and no others, where it says nothing else.
            grammar: a grammar that the answer follows instead, in llguidance's form of Lark.
            batch_size: prompts that run together.
            **generation_options: further fields of transformers' GenerationConfig.

        Raises:
            WindowExceededError: before any computing, where prompt, context and answer do not fit the window.
            QueryError: where a prompt is empty.
            ConfigError: where another argument is wrong.
        """
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, "tokens")
        stop = stop_strings(stop, generation_options.pop("stop_strings", None))
        settings = generation_settings(
            self.ends, self.tokenizer, max_new_tokens, temperature, top_p, top_k, stop, generation_options
        )
        constraint = self._constraint(response_schema, grammar, settings)
        single, requests = self._requests.read(
            prompt, context, formatted, max_new_tokens, self.identity, chat_template_kwargs
        )
        batch_size = whole_number("batch_size", batch_size, "prompts")
        if single and all(getattr(settings, option) in (None, 1) for option in SEVERAL_ANSWERS):
            # As a stream, so that both give the same answer and the same time to its first token.
            pieces = partial(answer_pieces, self._decoder, requests[0], settings, stop, seed, constraint)
            stream = CompletionStream(pieces)
            for _ in stream:
                pass
            return stream.completion
        several = settings.num_return_sequences or 1
        answers: dict[int, list[Completion]] = {}
        for batch in batches(
            requests, batch_size, [max_new_tokens] * len(requests), self.context_window, self.injection.in_cache
        ):
            completions = answer_batch(self._decoder, [requests[i] for i in batch], settings, stop, seed, constraint)
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
        chat_template_kwargs: Mapping[str, Any] | None = None,
        response_schema: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        **generation_options: Any,
    ) -> CompletionStream:
        """Answer one prompt piece by piece; takes and raises what :meth:`complete` does, but no batch.

        What is wrong with the call is raised here; nothing is computed before the first piece is asked for.
        """
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, "tokens")
        stop = stop_strings(stop, generation_options.pop("stop_strings", None))
        settings = generation_settings(
            self.ends, self.tokenizer, max_new_tokens, temperature, top_p, top_k, stop, generation_options
        )
        single, requests = self._requests.read(
            prompt, context, formatted, max_new_tokens, self.identity, chat_template_kwargs
        )
        constraint = self._constraint(response_schema, grammar, settings)
        if not single:
            raise ConfigError(f"stream() takes one prompt, not a batch of {len(requests)}; use generate().")
        for option in SEVERAL_ANSWERS:
            given = getattr(settings, option)
            require(given in (None, 1), option, given, "a stream has one answer; use complete()")
        return CompletionStream(partial(answer_pieces, self._decoder, requests[0], settings, stop, seed, constraint))

    async def agenerate(self, prompt: str | Sequence, **options: Any) -> str | list[str]:
        """:meth:`generate`, in a thread; cancelling it is as in :meth:`acomplete`."""
        completions = await self.acomplete(prompt, **options)
        return [c.text for c in completions] if isinstance(completions, list) else completions.text

    async def acomplete(self, prompt: str | Sequence, **options: Any) -> Completion | list[Completion]:
        """:meth:`complete`, in a thread.

        Cancelling it ends the generation of a single answer at its next piece. A batch, or several answers to one
        prompt, are computed to their end, and dropped.
        """
        if not is_single(prompt) or any(options.get(option) not in (None, 1) for option in SEVERAL_ANSWERS):
            return await asyncio.to_thread(self.complete, prompt, **options)
        options.pop("batch_size", None)
        stream = self.astream(prompt, **options)
        async for _ in stream:
            pass
        return stream.completion

    def astream(self, prompt: str | Sequence[Message], **options: Any) -> AsyncCompletionStream:
        """:meth:`stream`, for ``async for``; what is wrong with the call is raised when the first piece is asked for.

        Cancelling the task that waits for a piece ends the generation.
        """
        return AsyncCompletionStream(partial(self.stream, prompt, **options))

    def _constraint(
        self, response_schema: Mapping[str, Any] | None, grammar: str | None, settings: GenerationConfig
    ) -> Constraint | None:
        constraint = self._constraints.compile(response_schema, grammar, settings.eos_token_id)
        one = constraint is None or settings.num_beams in (None, 1)
        require(one, "num_beams", settings.num_beams, "what follows a schema or a grammar is decoded without beams")
        return constraint

    @torch.inference_mode()
    def score(
        self,
        question: str | Sequence,
        answer: str | Sequence[str],
        *,
        context: Context | str | Sequence[Context | str | None] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        batch_size: int = 8,
    ) -> float | list[float]:
        """Mean negative log-likelihood of an answer, in nats per token.

        Args:
            question: as ``prompt`` of :meth:`complete`.
            answer: the text to score; one for each question of a batch.
            context, chat_template_kwargs, batch_size: as in :meth:`complete`.

        Raises:
            WindowExceededError, QueryError: as :meth:`complete`.
        """
        answers = [answer] if isinstance(answer, str) else list(answer)
        answer_ids = [self.tokenize(a).ids.tolist() for a in answers]
        if not all(answer_ids):
            raise QueryError("An answer to be scored is empty; give at least one token.")
        new_tokens = [len(ids) for ids in answer_ids]
        single, requests = self._requests.read(
            question, context, False, new_tokens, self.identity, chat_template_kwargs
        )
        batch_size = whole_number("batch_size", batch_size, "prompts")
        scores: dict[int, float] = {}
        for batch in batches(requests, batch_size, new_tokens, self.context_window, self.injection.in_cache):
            found = score_batch(self._decoder, [requests[i] for i in batch], [answer_ids[i] for i in batch])
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
        request = Request(prompt, context, context is not None)
        return self._decoder.logits([request], len(prompt.suffix), in_place)[0]

    def assemble(
        self,
        prompt: str | Sequence[Message],
        *,
        context: Context | None = None,
        max_new_tokens: int = 256,
        formatted: bool = False,
    ) -> AssembledPrompt:
        """A prompt with its injected context for another engine that has the same model.

        Args:
            prompt: a question or a conversation.
            context: a Selection at ratio 1; None is none.
            max_new_tokens: tokens of the answer at most, for which there has to be room.
            formatted: as in :meth:`complete`.

        Raises:
            ConfigError: the context is coarser than ratio 1, not all layers are injected, or the model has an adapter,
                which the other engine has not.
            WindowExceededError, QueryError: as in :meth:`complete`.
        """
        require(self._adapter is None, "adapter", self.name, "load the model without one to answer in another engine")
        single, (request, *_) = self._requests.read(prompt, context, formatted, max_new_tokens, self.identity, None)
        require(single, "prompt", type(prompt).__name__, "must be one prompt, no batch")
        return assembled(self._decoder, request)

    def attribute(
        self,
        prompt: str | Sequence[Message],
        answer: str,
        *,
        context: Context,
        formatted: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[float]:
        """How much an answer leans on each node of its context, by the attention that its tokens pay to it.

        The answer is read once more behind the context, all of its tokens together, which costs about what its first
        token did.

        Args:
            prompt: what was answered, one question or conversation.
            answer: the text of the answer.
            context: the Selection that was injected.
            formatted, chat_template_kwargs: as in :meth:`complete`.

        Returns:
            For each of ``context.nodes`` the share of its attention, between 0 and 1, that the head most interested in
            it pays to its most interesting row, on average over the answer's tokens; 0 for all where the answer is
            empty. Compare them within one answer only.

        Raises:
            ConfigError: the attention is not watched: of cross-attention injection, of models with sliding windows, of
                grains coarser than 1.
            WindowExceededError, QueryError: as :meth:`complete`.
        """
        ids = self.tokenize(answer).ids.tolist()
        single, (request, *_) = self._requests.read(
            prompt, context, formatted, max(1, len(ids)), self.identity, chat_template_kwargs
        )
        require(single, "prompt", type(prompt).__name__, "must be one prompt, no batch")
        if not ids:
            return [0.0] * len(context.nodes)
        return attention_paid(self._decoder, request, [node.kv_entries for node in context.nodes], ids)

    def check_window(
        self,
        prompt: str | Sequence,
        *,
        context: Context | str | Sequence[Context | str | None] | None = None,
        max_new_tokens: int = 256,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Raise WindowExceededError where :meth:`complete` would; nothing is computed."""
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, "tokens")
        self._requests.read(prompt, context, False, max_new_tokens, self.identity, chat_template_kwargs)
