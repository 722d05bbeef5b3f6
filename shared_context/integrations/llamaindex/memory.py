"""Conversations in a store as LlamaIndex memory: recent turns word for word, old ones by what a question needs."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.memory import BaseMemory
from llama_index.core.memory.memory import BaseMemoryBlock
from llama_index.core.schema import QueryBundle

from shared_context.integrations.llamaindex.conversation import edit, messages_of, put, replace, to_message
from shared_context.integrations.llamaindex.copies import OverStore
from shared_context.integrations.llamaindex.messages import readable_text
from shared_context.integrations.whereabouts import remember, store_again, whereabouts

if TYPE_CHECKING:
    from shared_context import Selection, SharedLLMContextStore
    from shared_context.store.conversation_memory import ConversationMemory

EARLIER = "Earlier in this conversation:\n\n"
"""Begins the system message that brings back old turns."""


class SharedContextMemory(OverStore, BaseMemory):
    """A conversation that a store keeps, for chat engines and agents with any LLM.

    :meth:`get` returns the recent messages as they were, behind one system message with the passages of older turns
    that the input needs. With a path under the store the conversation is there again when it is reopened.

    Args:
        store: keeps the conversation.
        session_id: names it; the same id continues it. None begins a new one.
        recent_tokens: tokens of the last messages that stay verbatim.
        budget: the most tokens of older turns that :meth:`get` brings back; 0 brings back none.
    """

    session_id: str = Field(description="Names the conversation in its store.")
    recent_tokens: int = Field(default=1024, gt=0, description="Tokens of the last messages that stay verbatim.")
    budget: int = Field(default=512, ge=0, description="The most tokens of older turns that are brought back.")

    _conversation: Any = PrivateAttr()

    def __init__(self, store: SharedLLMContextStore, session_id: str | None = None, **fields: Any):
        super().__init__(**{**fields, "session_id": session_id or str(uuid.uuid4())})
        self._store = store
        self._conversation = store.conversation(self.session_id, recent_tokens=self.recent_tokens)
        remember(store)

    @classmethod
    def class_name(cls) -> str:
        return "SharedContextMemory"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The settings, and where the conversation is kept; of a store in memory also what was said."""
        return {**super().to_dict(**kwargs), **self._elsewhere()}

    def _elsewhere(self) -> dict[str, Any]:
        kept: dict[str, Any] = {"store": whereabouts(self._store)}
        if self._store.path is None:
            kept["messages"] = [message.model_dump(mode="json") for message in self.get_all()]
        return kept

    def _find_again(self, elsewhere: dict[str, Any]) -> None:
        again = self.from_dict({"session_id": self.session_id, "recent_tokens": self.recent_tokens, **elsewhere})
        self._store, self._conversation = again._store, again._conversation

    @classmethod
    def from_dict(
        cls, data: dict[str, Any], *, store: SharedLLMContextStore | None = None, **kwargs: Any
    ) -> SharedContextMemory:
        """The memory that :meth:`to_dict` wrote, as the ``Context`` of an agent is restored with it.

        It goes on with the conversation as its store holds it. A store that is open is taken, one with a path is opened
        again; for one that was in memory and is gone, a new one is made and given what was said.

        Args:
            data: what :meth:`to_dict` gave.
            store: keeps the conversation instead.
            kwargs: settings that replace those in ``data``.

        Raises:
            StoreFormatError: the store's folder is gone.
            ModelNotFoundError: no model of the store's is loaded, and none has its name.
            ModelMismatchError: the model of that name is another one by now, or the store has an embedder of its own.
        """
        data = {**data, **kwargs}
        data.pop("class_name", None)
        where, messages = data.pop("store", None), data.pop("messages", None)
        memory = cls(store if store is not None else store_again(where), **data)
        if messages and not memory.get_all():
            memory.set([ChatMessage.model_validate(message) for message in messages])
        return memory

    @classmethod
    def from_defaults(  # type: ignore[override]  # LlamaIndex's memories can be made of nothing, this one is a store's
        cls,
        store: SharedLLMContextStore,
        session_id: str | None = None,
        chat_history: list[ChatMessage] | None = None,
        **fields: Any,
    ) -> SharedContextMemory:
        """A memory; ``chat_history`` replaces what the conversation held."""
        memory = cls(store, session_id, **fields)
        if chat_history is not None:
            memory.set(chat_history)
        return memory

    def get(self, input: str | QueryBundle | ChatMessage | None = None, **kwargs: Any) -> list[ChatMessage]:
        """Recent messages, and before them what the older ones say about ``input`` (else about the last question).

        The verbatim part begins with a question; many chat templates and APIs take no answer or tool result without
        what it answers, so one that stands alone after the older turns were compressed joins those.
        """
        recent = [to_message(turn) for turn in self._conversation.recent()]
        query = readable_text(input) if isinstance(input, ChatMessage) else str(input or "")
        openings = [n for n, message in enumerate(recent) if message.role in (MessageRole.USER, MessageRole.SYSTEM)]
        begin, asked = openings[0] if openings else 0, recent
        if not openings and len(everything := self.get_all()) > len(recent):  # the question is compressed already
            begin, asked = len(recent), everything
        selection = self.select(query or _last_question(asked))
        earlier = [selection.text] if selection else []
        earlier += filter(None, map(readable_text, recent[:begin]))
        if not earlier:
            return recent[begin:]
        return [ChatMessage(role=MessageRole.SYSTEM, content=EARLIER + "\n\n".join(earlier)), *recent[begin:]]

    def select(self, query: str) -> Selection | None:
        """What the older turns hold for ``query``, for ``SharedLLM.chat(..., context=...)``; None if nothing."""
        if not self.budget or not query.strip():
            return None
        return self._conversation.select(query, budget=self.budget) or None

    def get_all(self) -> list[ChatMessage]:
        """All messages, oldest first."""
        return messages_of(self._conversation)

    def put(self, message: ChatMessage) -> None:
        """Add a message."""
        put(self._conversation, message)

    def set(self, messages: list[ChatMessage]) -> None:
        """Replace the conversation; messages at its beginning that are the same stay, with when they were said."""
        replace(self._conversation, messages)

    def reset(self) -> None:
        """Forget the conversation."""
        self._conversation.clear()

    def forget(self, position: int, count: int = 1) -> None:
        """Forget some messages as if they had never been said: an exchange is two.

        Args:
            position: of the first in :meth:`get_all`; negative ones count from the end.
            count: how many.

        Raises:
            DocumentError: there are no such messages.
        """
        self._conversation.forget(position, count)

    def edit(self, position: int, content: str) -> None:
        """Put other words in the place of a message's, also where it is brought back later.

        Raises:
            DocumentError: there is no such message, or content is no text.
        """
        edit(self._conversation, position, content)

    def regenerate(self) -> ChatMessage | None:
        """Forget what was answered to the user's last message, to have it answered anew; returns that message.

        It is forgotten, too, for a chat engine puts what it is asked: ``engine.chat(memory.regenerate().content)``.
        None where no user has said anything.
        """
        asked = self._conversation.regenerate()
        if asked is None:
            return None
        self._conversation.forget(-1)
        return to_message(asked)


class SharedContextMemoryBlock(OverStore, BaseMemoryBlock[str]):
    """Long-term memory of LlamaIndex's ``Memory``: keeps what falls out of its short-term window.

    ``Memory.from_defaults(memory_blocks=[SharedContextMemoryBlock(store)])``; each session is a conversation of the
    store. What comes back is the text of the passages that the last question needs, and the message that fell out
    last.

    Args:
        store: keeps the messages.
        name, description, priority, accept_short_term_memory: as in every memory block.
        session_id: names the conversation where a call brings no session.
        budget: the most tokens that are brought back.
    """

    name: str = Field(default="EarlierMessages", description="The name of the memory block.")
    session_id: str = Field(default="memory", description="The conversation of calls that bring no session.")
    budget: int = Field(default=512, gt=0, description="The most tokens that are brought back.")

    def __init__(self, store: SharedLLMContextStore, **fields: Any):
        super().__init__(**fields)
        self._store = store

    def _conversation(self, session_id: str | None) -> ConversationMemory:
        # Nothing is recent here: the recent messages are Memory's own.
        return self._store.conversation(session_id or self.session_id, recent_tokens=0)

    async def _aget(
        self, messages: list[ChatMessage] | None = None, session_id: str | None = None, **block_kwargs: Any
    ) -> str:
        return await asyncio.to_thread(self._recall, _last_question(messages or []), session_id)

    def _recall(self, query: str, session_id: str | None) -> str:
        if not query.strip():
            return ""
        conversation = self._conversation(session_id)
        # A conversation never compresses its last message; here that one is old too.
        last = [turn["content"] for turn in conversation.recent()]
        return "\n\n".join(filter(None, [conversation.select(query, budget=self.budget).text, *last]))

    async def _aput(self, messages: list[ChatMessage]) -> None:
        await asyncio.to_thread(self._keep, messages)

    def _keep(self, messages: list[ChatMessage]) -> None:
        for message in messages:
            # Memory marks messages with their session; it is not part of what was said.
            extra = dict(message.additional_kwargs)
            session_id = extra.pop("session_id", None)
            put(self._conversation(session_id), message.model_copy(update={"additional_kwargs": extra}))


def _last_question(messages: list[ChatMessage]) -> str:
    questions = [readable_text(message) for message in messages if message.role == MessageRole.USER]
    return next(filter(None, reversed(questions)), "")
