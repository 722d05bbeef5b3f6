"""Requests: what a caller asks for, checked and rendered before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from shared_context.config import require
from shared_context.errors import ConfigError, ModelMismatchError, QueryError, WindowExceededError
from shared_context.model.context import ContextKV
from shared_context.model.conversation import Message
from shared_context.model.prompt import Prompt, PromptFormat
from shared_context.model.tokenization import CHARACTERS_OF_TOKEN, TokenizedText, check_text


@runtime_checkable
class Context(Protocol):
    """What can be injected: a store's Selection, or anything else that can say what it holds.

    Where it has a ``model_identity`` it is read by a model of that :attr:`SharedLLMModel.identity` only.

    Where it has an ``owner``, bytes, the keys and values of the prefix that stands before it are kept for contexts of
    this owner alone: how soon an answer begins tells nobody which prompts others have.
    """

    @property
    def kv_entries(self) -> int:
        """KV entries per layer."""

    def key_values(self, room: int | None = None) -> ContextKV:
        """The encodings and rows to inject.

        Args:
            room: positions that the context may take, no fewer than its entries; None sets no limit.
        """


@dataclass(frozen=True)
class Request:
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


def is_single(prompt: str | Sequence) -> bool:
    """Whether this is one prompt, a text or a conversation, and not a batch of them."""
    return isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], dict))


class RequestReader:
    """Turns what a caller asks for into requests that can be computed.

    Args:
        name: how messages call the model.
        prompt_format: renders the prompts.
        tokenize: of pasted text.
        window: tokens that prompt, injected context and answer may take together.
        in_window: whether injected KV take room in the window.
    """

    def __init__(
        self,
        name: str,
        prompt_format: PromptFormat,
        tokenize: Callable[[str], TokenizedText],
        window: int,
        in_window: bool,
    ):
        self._name = name
        self._prompt_format = prompt_format
        self._tokenize = tokenize
        self._window = window
        self._in_window = in_window

    def read(
        self,
        prompt: str | Sequence,
        context: object,
        formatted: bool,
        new_tokens: int | Sequence[int],
        identity: str,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[bool, list[Request]]:
        """Whether a single prompt was given, and all prompts with their contexts, checked against the window.

        Args:
            prompt, context, formatted: as in ``SharedLLMModel.complete``.
            new_tokens: of every answer, or of each.
            identity: of the model that is to compute them.
            template_kwargs: arguments of the chat template, over those of the prompt format.
        """
        if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
            raise ConfigError(f"prompt is a {type(prompt).__name__}; give a text, a conversation, or a list of either.")
        self._prompt_format.check_template_kwargs(template_kwargs or {})
        single = is_single(prompt)
        prompts = [prompt] if single else list(prompt)
        if not prompts:
            raise QueryError("There is no prompt in the list; give at least one.")
        several = isinstance(context, Sequence) and not isinstance(context, str)
        contexts = list(context) if isinstance(context, Sequence) and several else [context] * len(prompts)
        require(len(contexts) == len(prompts), "context", len(contexts), f"there are {len(prompts)} prompts")
        requests = [
            self._request(p, c, formatted, identity, template_kwargs) for p, c in zip(prompts, contexts, strict=True)
        ]
        of_each = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else new_tokens
        require(len(of_each) == len(prompts), "answer", len(of_each), f"there are {len(prompts)} questions")
        for request, new in zip(requests, of_each, strict=True):
            in_window = request.context_entries if self._in_window else 0
            needed = len(request.prompt) + in_window + new
            if needed > self._window:
                raise WindowExceededError(
                    f"{self._name} reads {self._window} tokens, and this needs {needed}: "
                    f"{len(request.prompt)} of prompt, {in_window} injected, {new} of answer. "
                    "Select with a smaller budget, shorten the prompt or ask for fewer new tokens."
                )
        return single, requests

    def _request(
        self,
        prompt: str | Sequence[Message],
        context: object,
        formatted: bool,
        identity: str,
        template_kwargs: Mapping[str, Any] | None,
    ) -> Request:
        messages = self._messages(prompt)
        if context is not None and not isinstance(context, str | Context):
            raise ConfigError(f"context is a {type(context).__name__}; give a Selection, a text to be pasted, or None.")
        theirs = getattr(context, "model_identity", identity)
        if theirs != identity:
            raise ModelMismatchError(
                f"The context was selected for {theirs}, and {self._name} is {identity}: weights, adapter, "
                "injection, type and prompt have to be the same. Select from a store that was opened with this model."
            )
        if isinstance(context, Context) and context.kv_entries == 0:
            context = None
        pasted_characters = len(context) if isinstance(context, str) else 0
        self._check_length(messages, pasted_characters)
        if formatted:
            if isinstance(context, str):
                raise ConfigError("A formatted prompt has no place for pasted text; paste it into the prompt.")
            if not isinstance(prompt, str):
                raise ConfigError("A formatted prompt is one string, not a conversation.")
            rendered = self._prompt_format.formatted(prompt, with_context=context is not None)
        else:
            own = {"template_kwargs": template_kwargs} if template_kwargs else {}
            rendered = self._prompt_format.render(messages, with_context=context is not None, **own)
        if isinstance(context, str):
            check_text("The context", context)
            # Pasted text is read like any other prompt: one prefill, nothing kept from before.
            pasted = tuple(self._tokenize(context).ids.tolist())
            return Request(Prompt((), rendered.prefix + pasted + rendered.suffix), None, True)
        return Request(rendered, context, context is not None)

    def _check_length(self, messages: Sequence[Message], pasted_characters: int) -> None:
        """Refuse what is far too long before it is tokenized, which would take long and much memory."""
        if len(messages) > self._window:  # each takes a token at least
            raise WindowExceededError(
                f"{self._name} reads {self._window:,} tokens, and the conversation has {len(messages):,} messages. "
                "Send the last ones, or let a store remember the conversation."
            )
        characters = pasted_characters + sum(len(message["content"]) for message in messages)
        if characters > self._window * CHARACTERS_OF_TOKEN:
            raise WindowExceededError(
                f"{self._name} reads {self._window:,} tokens, and prompt and pasted context have {characters:,} "
                "characters. Shorten them, or add the text to a store and select from it."
            )

    def _messages(self, prompt: str | Sequence[Message]) -> list[Message]:
        """The conversation that was given; assistants' turns without text, bare tool calls, are left out."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        for number, message in enumerate(messages):
            whole = isinstance(message, dict) and all(isinstance(message.get(p), str) for p in ("role", "content"))
            require(whole, "message", message, "must be a dict with a role and a content, both of them text")
            for part in ("role", "content"):
                check_text(
                    "The prompt" if isinstance(prompt, str) else f"The {part} of message {number}", message[part]
                )
        said = [m for m in messages if m["content"].strip() or m["role"] != "assistant"]
        if not any(m["content"].strip() for m in said):
            raise QueryError("The prompt is empty; give at least one word.")
        if said[-1]["role"] == "user" and not said[-1]["content"].strip():
            raise QueryError("The last message, the user's, is empty; give at least one word, or leave it out.")
        return said
