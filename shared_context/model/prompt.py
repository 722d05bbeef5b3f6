"""The prompt: a shared prefix, the place of the context, and the running text behind it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from shared_context.config import require
from shared_context.errors import ConfigError, QueryError
from shared_context.model.control import ControlTokens
from shared_context.model.conversation import SYSTEM_ROLES, Message, as_parts, is_kept, prints_parts, variants

FIXED_DATE = "{% set date_string = '26 Jul 2024' %}{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}"
"""Opens a chat template so that this is today, by the two names that templates ask for the date."""

SYSTEM_PROMPT = "You are a helpful assistant. Answer from the context, in as few words as possible."
CONTEXT_HEADER = "Context:\n"
CONTEXT_FOOTER = "\n\nQuestion: "

TEMPLATE_DATA = ("tools", "documents")
"""What transformers' ``apply_chat_template`` hands through to a template beside a caller's own arguments."""

SKELETONS = (("user", "assistant", "user"), ("system", "user"), ("user", "assistant", "tool"))
"""Conversations that show what a template writes around turns; it may refuse some of them."""


@dataclass(frozen=True)
class Prompt:
    """A prompt around its context, as token ids.

    Attributes:
        prefix: what stands before the context; empty where there is no context.
        suffix: what stands behind it, up to where the answer begins.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prefix) + len(self.suffix)


class PromptFormat:
    """Renders questions and conversations in a model's own chat format, or in plain words where it has none.

    Control tokens come from the template alone: what looks like one in a message is plain text, as in documents.

    Args:
        tokenizer: the model's.
        system_prompt: the system message of conversations that bring none.
        template_kwargs: arguments of the chat template, ``enable_thinking`` and the like.

    Attributes:
        prefix: what chunks are encoded behind: the prompt up to the context, of a conversation with the default system
            prompt.
        end_of_turn: the token that the template ends the model's turns with; None where it ends them with none.

    Raises:
        ConfigError: there are several templates and none is the default, or an argument is the library's own.
        QueryError: the template takes no question.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system_prompt: str,
        template_kwargs: Mapping[str, Any] | None = None,
    ):
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        self.check_template_kwargs(template_kwargs or {})
        self._template_kwargs = dict(template_kwargs or {})
        templates = tokenizer.chat_template
        if isinstance(templates, dict) and "default" not in templates:
            raise ConfigError(
                f"The model has the chat templates {', '.join(templates)} and none named 'default': set chat_template "
                "of its tokenizer to the one that is meant."
            )
        self._control = ControlTokens(tokenizer)
        skeletons = [self._skeleton(*roles) for roles in SKELETONS]
        self._control.add_written("".join(filter(None, skeletons)))
        self.end_of_turn = self._end_of_turn()
        # Chunks are encoded behind it and kept for days, so where a template writes the date it says always the same.
        self.prefix = self._rendered([{"role": "user", "content": ""}], True, FIXED_DATE, {}).prefix

    def render(
        self,
        messages: Sequence[Message],
        *,
        with_context: bool,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt for a conversation whose next turn is the model's.

        The context stands at the head of the first user message, so that it has the same prefix in every
        conversation that keeps the default system prompt: the one that chunks are encoded behind, but for the date,
        where a template writes one. Turns that a template refuses or drops are merged with others.

        Args:
            messages: the conversation.
            with_context: whether there is a context.
            template_kwargs: arguments of the chat template, over those of the format.

        Raises:
            QueryError: where the template takes the conversation in no form.
        """
        return self._rendered(messages, with_context, "", template_kwargs or {})

    def check_template_kwargs(self, template_kwargs: Mapping[str, Any]) -> None:
        """Refuse arguments that transformers or this library set themselves.

        Raises:
            ConfigError: naming the first of them.
        """
        mapping = isinstance(template_kwargs, Mapping)
        require(mapping, "chat_template_kwargs", template_kwargs, "must be a dict of arguments by their names")
        own = set(inspect.signature(self._tokenizer.apply_chat_template).parameters) - set(TEMPLATE_DATA)
        for name, value in template_kwargs.items():
            require(name not in own, f"chat_template_kwargs[{name!r}]", value, "is set by this library; leave it out")

    def _rendered(
        self, messages: Sequence[Message], with_context: bool, opening: str, template_kwargs: Mapping[str, Any]
    ) -> Prompt:
        hidden: list[str] = []
        messages = list(self._control.hide([dict(m) for m in messages], hidden))
        if messages[0]["role"] not in SYSTEM_ROLES and self._system_prompt:
            system = self._control.hide(self._system_prompt, hidden)
            messages.insert(0, {"role": "system", "content": system})
        place = f"{self._control.nonce}place"
        if with_context:
            first = next((m for m in messages if m["role"] == "user"), messages[-1])
            first["content"] = f"{CONTEXT_HEADER}{place}{CONTEXT_FOOTER}{first['content']}"
        arguments = self._control.hide({**self._template_kwargs, **template_kwargs}, hidden)
        before, found, behind = self._text(messages, opening, arguments, place).partition(place)
        behind = behind.replace(place, "")  # some templates repeat a message
        if not found:
            return Prompt((), self._control.ids(before, hidden))
        return Prompt(self._control.ids(before, hidden), self._control.ids(behind, hidden))

    def formatted(self, text: str, *, with_context: bool) -> Prompt:
        """The prompt for text that is in the model's own format already; a context stands in front of it."""
        ids = self._control.ids(text, [])
        if with_context:
            return Prompt(self.prefix, ids)
        start, word = self._tokenizer.bos_token_id, self._tokenizer.bos_token
        begins = start is not None and not text.startswith(word)
        return Prompt((), ((start,) if begins else ()) + ids)

    def _text(self, messages: Sequence[Message], opening: str, arguments: Mapping[str, Any], place: str) -> str:
        """The conversation in the first form that the template takes whole, else in the first that it takes."""
        if self._tokenizer.chat_template is None:
            return self._plain(messages, place)
        taken, reason = [], None
        forms = list(variants(messages))
        # Last the way of templates that were made for pictures, too: others print what they are given so.
        for form, written in [*((form, form) for form in forms), *((form, as_parts(form)) for form in forms)]:
            try:
                text = self._apply_template(written, opening, arguments)
            except Exception as error:  # a template is a checkpoint's own code and may fail in any way
                reason = reason or error
                continue
            if written is not form and prints_parts(text):
                continue
            if all(is_kept(m, text, json.dumps(m["content"], ensure_ascii=False)[1:-1]) for m in form):
                return text
            taken.append(text)
        whole = [text for text in taken if place in text or not any(place in m["content"] for m in messages)]
        if not whole:
            said = f"it says: {reason}" if reason is not None else "it drops the message that the context stands in"
            roles = ", ".join(m["role"] for m in messages)
            raise QueryError(
                f"The model's chat template takes no conversation of the roles {roles} ({said}). "
                "Give turns of user and assistant in alternation, the last one the user's."
            ) from reason
        return whole[0]

    def _apply_template(
        self, messages: Sequence[Mapping[str, Any]], opening: str, arguments: Mapping[str, Any], answering: bool = True
    ) -> str:
        template = opening + self._tokenizer.get_chat_template(tools=arguments.get("tools"))
        return self._tokenizer.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, add_generation_prompt=answering, **arguments
        )

    def _plain(self, messages: Sequence[Message], place: str) -> str:
        names = {"system": "", "user": "Question: ", "assistant": "Answer: "}
        # Behind a context the question is named already.
        named = ((place in m["content"], m) for m in messages)
        text = "\n\n".join(f"{'' if with_it else names.get(m['role'], '')}{m['content']}" for with_it, m in named)
        start = self._tokenizer.bos_token if self._tokenizer.bos_token_id is not None else ""
        return f"{start}{text}\n\nAnswer:"

    def _skeleton(self, *roles: str, answering: bool = True) -> str | None:
        """What the template writes around turns of these roles, whose content is the role behind the nonce.

        None where it refuses them, or where there is no template.
        """
        if self._tokenizer.chat_template is None:
            return None
        turns = [{"role": role, "content": f"{self._control.nonce}{role}"} for role in roles]
        for written in (turns, as_parts(turns)):
            with suppress(Exception):  # as above
                text = self._apply_template(written, "", self._template_kwargs, answering)
                if self._control.nonce in text:
                    return text
        return None

    def _end_of_turn(self) -> int | None:
        answer = f"{self._control.nonce}assistant"
        # Some write nothing behind an answer but the next turn's header, which then ends it.
        for skeleton in (
            self._skeleton("user", "assistant", answering=False),
            self._skeleton("user", "assistant", "user"),
        ):
            behind = (skeleton or "").rpartition(answer)[2]
            end = self._control.first(behind)
            if end is not None:
                return end
        return None
