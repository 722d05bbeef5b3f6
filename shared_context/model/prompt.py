"""The prompt: a shared prefix, the place of the context, and the running text behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

FIXED_DATE = "{% set date_string = '26 Jul 2024' %}{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}"
"""Opens a chat template so that this is today, by the two names that templates ask for the date."""

SYSTEM_PROMPT = "You are a helpful assistant. Answer from the context, in as few words as possible."
CONTEXT_HEADER = "Context:\n"
CONTEXT_FOOTER = "\n\nQuestion: "

# Marks the context's place while the chat template is rendered: a private-use character that no template touches.
PLACE = "\ue0c7"


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

    Args:
        tokenizer: the model's.
        system_prompt: the system message of conversations that bring none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str):
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        # Chunks are encoded behind it and kept for days, so where a template writes the date it says always the same.
        self.prefix = self._rendered([{"role": "user", "content": ""}], True, FIXED_DATE).prefix

    def render(self, messages: Sequence[Message], *, with_context: bool) -> Prompt:
        """The prompt for a conversation whose next turn is the model's.

        The context stands at the head of the first user message, so that it has the same prefix in every
        conversation that keeps the default system prompt: the one that chunks are encoded behind, but for the date,
        where a template writes one.
        """
        return self._rendered(messages, with_context, "")

    def _rendered(self, messages: Sequence[Message], with_context: bool, opening: str) -> Prompt:
        messages = [dict(m) for m in messages]
        if messages[0]["role"] != "system" and self._system_prompt:
            messages.insert(0, {"role": "system", "content": self._system_prompt})
        if with_context:
            first = next((m for m in messages if m["role"] == "user"), messages[-1])
            first["content"] = f"{CONTEXT_HEADER}{PLACE}{CONTEXT_FOOTER}{first['content'].replace(PLACE, '')}"
        return self._split(self._text(messages, opening))

    def formatted(self, text: str, *, with_context: bool) -> Prompt:
        """The prompt for text that is in the model's own format already; a context stands in front of it."""
        if with_context:
            return Prompt(self.prefix, self._ids(text))
        start, word = self._tokenizer.bos_token_id, self._tokenizer.bos_token
        begins = start is not None and not text.startswith(word)
        return Prompt((), ((start,) if begins else ()) + self._ids(text))

    def _text(self, messages: Sequence[Message], opening: str) -> str:
        if self._tokenizer.chat_template is None:
            return self._plain(messages)
        try:
            return self._apply_template(messages, opening)
        except TemplateError:
            # Some templates know no system role; its words then open the first user message.
            first = "\n\n".join(m["content"] for m in messages[:2])
            return self._apply_template([{"role": "user", "content": first}, *messages[2:]], opening)

    def _apply_template(self, messages: Sequence[Message], opening: str) -> str:
        template = opening + self._tokenizer.get_chat_template()
        return self._tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )

    def _plain(self, messages: Sequence[Message]) -> str:
        names = {"system": "", "user": "Question: ", "assistant": "Answer: "}
        # Behind a context the question is named already.
        named = ((m["content"].startswith(CONTEXT_HEADER), m) for m in messages)
        text = "\n\n".join(f"{'' if with_it else names.get(m['role'], '')}{m['content']}" for with_it, m in named)
        start = self._tokenizer.bos_token if self._tokenizer.bos_token_id is not None else ""
        return f"{start}{text}\n\nAnswer:"

    def _split(self, text: str) -> Prompt:
        before, place, behind = text.partition(PLACE)
        return Prompt(self._ids(before), self._ids(behind)) if place else Prompt((), self._ids(before))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
