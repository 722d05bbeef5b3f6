"""Conversations: recent turns verbatim, older ones compressed."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from shared_context.config import require, require_count
from shared_context.errors import DocumentError
from shared_context.store.conversations import Conversations
from shared_context.store.documents import check_id, check_metadata
from shared_context.store.selection import Selection


class ConversationMemory:
    """A conversation in a store: a document that grows.

    Every message is kept as it was. The newest ones, up to ``recent_tokens``, are what a prompt repeats verbatim;
    what is older is part of the conversation's document, which a question selects from like from any other.

    Args:
        conversations: those of the store that holds it.
        id: names it, apart from the ids of documents.
        recent_tokens: tokens of the newest messages that stay verbatim; the last message always does.

    Raises:
        DocumentError: the id is no text of 1 to 512 characters.
    """

    def __init__(self, conversations: Conversations, id: str, *, recent_tokens: int = 1024):
        require(recent_tokens >= 0, "recent_tokens", recent_tokens, "must be 0 or more tokens")
        self.id = check_id(id, "the conversation")
        self.recent_tokens = recent_tokens
        self._conversations = conversations

    def append(self, role: str, content: str, **extra: Any) -> None:
        """Add a message; JSON values in ``extra`` are kept with it.

        Raises:
            DocumentError: role or content is no text, or ``extra`` holds what JSON has not.
        """
        name = f"a message of conversation {self.id!r}"
        message = check_metadata({"role": role, "content": content, **extra}, name, self._conversations.max_bytes)
        for part in ("role", "content"):
            if not isinstance(message[part], str):
                raise DocumentError(f"{name}: its {part} is {message[part]!r}, expected a str")
        self._conversations.append(self.id, message, self.recent_tokens)

    def messages(self) -> list[dict[str, Any]]:
        """All messages, oldest first."""
        return [row.message for row in self._conversations.messages(self.id)]

    def recent(self) -> list[dict[str, Any]]:
        """The messages that stay verbatim, oldest first."""
        return [row.message for row in self._conversations.messages(self.id, recent=True)]

    def select(self, query: str | None, **options: Any) -> Selection:
        """What a query is shown of the compressed turns.

        Args:
            query: usually the newest message; of one that is too long for a query the end counts. None where the
                store's ``select`` needs none.
            **options: ``budget``, ``policy`` and the like, as in the store's ``select``; but the whole budget is spent
                unless a ``floor`` is given.

        Returns:
            A selection, empty while nothing has been compressed yet. It is read in the order of time, and its nodes
            tell who ``said`` them and when.
        """
        return self._conversations.select(self.id, query, **options)

    def forget(self, position: int, count: int = 1) -> None:
        """Forget some messages as if they had never been said: an exchange is two.

        Args:
            position: of the first in :meth:`messages`; negative ones count from the end.
            count: how many.

        Raises:
            DocumentError: there are no such messages.
        """
        require_count("count", count, "messages")
        count = int(count)
        first = self._place(position)
        if first + count > len(self.messages()):
            raise DocumentError(f"conversation {self.id!r} has no {count} messages from position {position} on")
        self._conversations.forget(self.id, slice(first, first + count))

    def edit(self, position: int, content: str, **extra: Any) -> None:
        """Put other words in the place of a message's; its role, its time and its other values stay.

        Raises:
            DocumentError: there is no such message, or content is no text.
        """
        name = f"a message of conversation {self.id!r}"
        message = check_metadata({"content": content, **extra}, name, self._conversations.max_bytes)
        if not isinstance(content, str):
            raise DocumentError(f"{name}: its content is {content!r}, expected a str")
        self._conversations.edit(self.id, self._place(position), message)

    def regenerate(self) -> dict[str, Any] | None:
        """Forget what was answered to the user's last message, to have it answered anew; returns that message.

        None where no user has said anything; nothing is forgotten then.
        """
        messages = self.messages()
        asked = next((at for at in reversed(range(len(messages))) if messages[at]["role"] == "user"), None)
        if asked is None:
            return None
        if asked + 1 < len(messages):
            self.forget(asked + 1, len(messages) - asked - 1)
        return messages[asked]

    def _place(self, position: int) -> int:
        count = len(self.messages())
        if not isinstance(position, Integral) or not -count <= position < count:
            raise DocumentError(f"conversation {self.id!r} has {count} messages and none at position {position!r}")
        return int(position) % count

    def clear(self) -> None:
        """Forget the whole conversation."""
        self._conversations.clear(self.id)
