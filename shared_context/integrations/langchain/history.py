"""A conversation in a store as LangChain's chat message history."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Protocol, TypeAlias, runtime_checkable

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import (
    BaseMessage,
    BaseMessageChunk,
    HumanMessage,
    convert_to_messages,
    message_chunk_to_message,
    message_to_dict,
    messages_from_dict,
    messages_to_dict,
)
from langchain_core.runnables import ensure_config

from shared_context import Selection, SharedLLMContextStore
from shared_context.integrations.langchain.messages import role_of, text_of
from shared_context.integrations.turns import TURN_SEPARATOR
from shared_context.integrations.whereabouts import by_reference
from shared_context.store.selection import JoinedSelections

Shown: TypeAlias = Selection | JoinedSelections | str
"""What a prompt is shown besides: injected, or pasted where it is a text."""

ANSWERED = "Earlier in this conversation you answered:\n\n"
"""Begins what is left of a turn whose question is among the older ones."""


class SharedContextChatMessageHistory(BaseChatMessageHistory):
    """A conversation that a store keeps: every message as it was, and old turns ready to be injected.

        RunnableWithMessageHistory(llm, lambda session: SharedContextChatMessageHistory(session, store))

    LangChain calls RunnableWithMessageHistory deprecated; in LangGraph a SharedContextSaver does the same for threads.

    A conversation may outgrow the model's window. In a RunnableWithMessageHistory a ChatSharedLLM of the store's model,
    alone, behind a prompt or in a SharedContextChain, reads the last turns as they are, and of the older ones what the
    question needs, as injected KV. Any other model gets all messages. Without RunnableWithMessageHistory:

        history = SharedContextChatMessageHistory("alice", store)
        llm.invoke([*history.recent_messages, HumanMessage(question)], context=history.select(question))

    Args:
        session_id: names the conversation in the store.
        store: keeps it; with a path it is there when the store is opened again.
        recent_tokens: tokens of the last turns that stay verbatim.
        budget: the most KV entries of older turns that a ChatSharedLLM injects.
    """

    def __init__(self, session_id: str, store: SharedLLMContextStore, *, recent_tokens: int = 1024, budget: int = 512):
        super().__init__()
        self.session_id = session_id
        self.store = store
        self.recent_tokens, self.budget = recent_tokens, budget
        self._memory = store.conversation(session_id, recent_tokens=recent_tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        # of a store in memory, what was said goes along
        said = messages_to_dict(self.messages) if self.store.path is None else []
        store = by_reference(self.store, anew=True)
        return _history_again, (self.session_id, store, self.recent_tokens, self.budget, said)

    def __copy__(self) -> SharedContextChatMessageHistory:
        return type(self)(self.session_id, self.store, recent_tokens=self.recent_tokens, budget=self.budget)

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedContextChatMessageHistory:
        return copy.copy(self)  # it goes on with the same conversation

    @property
    def messages(self) -> list[BaseMessage]:
        """All messages, oldest first.

        They may be set; those at the beginning that are the same stay, with when they were said.
        """
        return [_to_message(turn) for turn in self._memory.messages()]

    @messages.setter
    def messages(self, messages: Sequence[BaseMessage]) -> None:
        before, new = self.messages, [_whole(message) for message in messages]
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, new, strict=False)))
        if same < len(before):
            self.forget(same, len(before) - same)
        self.add_messages(new[same:])

    @property
    def recent_messages(self) -> list[BaseMessage]:
        """The last messages, those within ``recent_tokens``, oldest first."""
        return [_to_message(turn) for turn in self._memory.recent()]

    def select(self, query: str, **options: Any) -> Selection:
        """What ``query`` is shown of the turns before ``recent_messages``; ``options`` as for ``store.select``."""
        return self._memory.select(query, **options)

    def compressed(
        self, messages: Sequence[BaseMessage], context: Shown | None = None
    ) -> tuple[list[BaseMessage], Shown | None]:
        """A prompt in which the turns before ``recent_messages`` are not read but injected.

        Args:
            messages: a prompt that has :attr:`messages` somewhere and a question behind them.
            context: what else is injected, or pasted, behind them.

        Returns:
            The prompt without the older turns, and the context with what the question is shown of them; both as they
            were where there are no older turns or the prompt has not all of them.
        """
        prompt, older = list(messages), self.messages
        older = older[: len(older) - len(self.recent_messages)]
        starts = range(len(prompt) - len(older))
        at = next((start for start in starts if prompt[start : start + len(older)] == older), None)
        if not older or at is None:
            return prompt, context
        # in an agent's loop what tools said stands behind the question
        asked = next((message for message in reversed(prompt) if isinstance(message, HumanMessage)), prompt[-1])
        selection = self.select(text_of(asked), budget=self.budget)
        if isinstance(context, str):
            context = TURN_SEPARATOR.join([selection.text, context])
        else:
            context = selection if context is None else selection + context
        behind = prompt[at + len(older) :]
        answers = list(takewhile(lambda message: role_of(message) == "assistant", behind))
        if answers:  # many chat templates insist that a user speaks first
            told = ANSWERED + TURN_SEPARATOR.join(map(text_of, answers))
            behind = [HumanMessage(told), *behind[len(answers) :]]
        return [*prompt[:at], *behind], context

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Add messages of any type. Their text is compressed; the rest of them is kept beside it."""
        for message in messages:
            whole = _whole(message)
            self._memory.append(role_of(whole), str(whole.text), langchain=message_to_dict(whole))

    def clear(self) -> None:
        """Forget the conversation."""
        self._memory.clear()

    def forget(self, position: int, count: int = 1) -> None:
        """Forget some messages as if they had never been said: an exchange is two.

        Args:
            position: of the first in :attr:`messages`; negative ones count from the end.
            count: how many.

        Raises:
            DocumentError: there are no such messages.
        """
        self._memory.forget(position, count)

    def edit(self, position: int, content: str) -> None:
        """Put other words in the place of a message's, also where it is injected later.

        Raises:
            DocumentError: there is no such message, or content is no text.
        """
        turns, extra = self._memory.messages(), {}
        if -len(turns) <= position < len(turns) and "langchain" in turns[position]:
            extra["langchain"] = message_to_dict(_to_message(turns[position]).model_copy(update={"content": content}))
        self._memory.edit(position, content, **extra)

    def regenerate(self) -> BaseMessage | None:
        """Forget the user's last message and what was answered to it, to ask again; returns that message.

        ``chain.invoke(history.regenerate().content, ...)`` asks it anew. None where no user has said anything.
        """
        asked = self._memory.regenerate()
        if asked is None:
            return None
        self._memory.forget(-1)
        return _to_message(asked)


@runtime_checkable
class KeepsHistories(Protocol):
    """Who keeps the conversations of threads, LangGraph's SharedContextSaver."""

    def history(self, thread_id: str) -> SharedContextChatMessageHistory:
        """The conversation of a thread."""


def history_of_run() -> SharedContextChatMessageHistory | None:
    """The conversation that the present run belongs to; None where a store keeps none."""
    # RunnableWithMessageHistory puts the history here whose messages it has put into the prompt, LangGraph the
    # checkpointer of its thread, each under a name of its own.
    configurable = ensure_config().get("configurable", {})
    for value in configurable.values():
        if isinstance(value, SharedContextChatMessageHistory):
            return value
        if isinstance(value, KeepsHistories) and "thread_id" in configurable:
            return value.history(str(configurable["thread_id"]))
    return None


def _history_again(
    session_id: str, store: SharedLLMContextStore, recent_tokens: int, budget: int, said: list[dict[str, Any]]
) -> SharedContextChatMessageHistory:
    history = SharedContextChatMessageHistory(session_id, store, recent_tokens=recent_tokens, budget=budget)
    if said and not history.messages:
        history.add_messages(messages_from_dict(said))
    return history


def _whole(message: BaseMessage) -> BaseMessage:
    return message_chunk_to_message(message) if isinstance(message, BaseMessageChunk) else message


def _to_message(turn: dict[str, Any]) -> BaseMessage:
    # a turn without the extra was written by the library itself or by another adapter
    if "langchain" in turn:
        return messages_from_dict([turn["langchain"]])[0]
    return convert_to_messages([{"role": turn["role"], "content": turn["content"]}])[0]
