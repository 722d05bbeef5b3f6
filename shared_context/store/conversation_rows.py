"""The conversations of a store as rows of its file: messages as they were, each with its checksum."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from shared_context.store import format as file_format
from shared_context.store.checksum import checksum
from shared_context.store.store_file import StoreFile


@dataclass(frozen=True)
class Message:
    """A message of a conversation."""

    number: int
    message: dict[str, Any]
    tokens: int


class ConversationRows(StoreFile):
    """Conversations and their messages; called inside of a snapshot or a transaction."""

    def conversations(self, namespace: int) -> list[str]:
        """Ids of the conversations that have messages, in their order."""
        rows = self._connection.execute("SELECT id FROM conversations WHERE namespace = ? ORDER BY id", (namespace,))
        return [id for (id,) in rows]

    def messages(self, namespace: int, id: str, *, recent: bool = False) -> list[Message]:
        """A conversation's messages, oldest first; all of them, or those that are not compressed."""
        line = self._connection.execute(
            "SELECT key, messages, compressed, total FROM conversations WHERE namespace = ? AND id = ?", (namespace, id)
        ).fetchone()
        if line is None:
            with self.decoding(f"conversation {id!r}"):
                if self._has_document(namespace, id):
                    raise ValueError("its messages are missing")
                # A damaged index would have it that nobody has said anything.
                if self._connection.execute(
                    "SELECT 1 FROM conversations NOT INDEXED WHERE namespace = ? AND id = ?", (namespace, id)
                ).fetchone():
                    raise ValueError("the index of conversations has lost it")
            return []
        self._check_types(f"conversation {id!r}", line, (int, int, int, int))
        conversation, count, compressed, total = line
        self._check_compressed(namespace, id, conversation, compressed)
        first = compressed + 1 if recent else 1
        rows = self._connection.execute(
            "SELECT number, tokens, checksum, message FROM messages WHERE conversation = ? AND number >= ? "
            "ORDER BY number",
            (conversation, first),
        ).fetchall()
        for row in rows:
            self._check_types(f"conversation {id!r}", row, (int, int, int, str))
        with self.decoding(f"conversation {id!r}"):
            if [row[0] for row in rows] != list(range(first, count + 1)):
                raise ValueError("a message is missing")
            if any(row[2] != checksum(conversation, row[0], row[1], row[3]) for row in rows):
                raise ValueError("the checksum of a message is wrong")
            if not recent and sum(row[2] for row in rows) != total:
                raise ValueError("a message is another one")
            return [Message(number, _message(text), tokens) for number, tokens, _, text in rows]

    def _check_compressed(self, namespace: int, id: str, conversation: int, compressed: int) -> None:
        """That as many messages are compressed as were: those that are counted too many would be shown to nobody."""
        told = self.told_meta(f"{file_format.OF_CONVERSATION}{conversation}")
        with self.decoding(f"conversation {id!r}"):
            if told is not None and int(told) != compressed:
                raise ValueError(f"{int(told)} of its messages are compressed, and its row says {compressed}")
            # An earlier version did not write it down.
            if told is None and compressed and not self._has_document(namespace, id):
                raise ValueError("what its messages are compressed to is missing")

    def _has_document(self, namespace: int, id: str) -> bool:
        found = "SELECT 1 FROM documents WHERE namespace = ? AND kind = 'conversation' AND id = ?"
        return self._connection.execute(found, (namespace, id)).fetchone() is not None

    def add_message(self, namespace: int, id: str, message: dict[str, Any], tokens: int) -> None:
        """Append a message to a conversation, which is begun where it is not there."""
        self._connection.execute("INSERT OR IGNORE INTO conversations (namespace, id) VALUES (?, ?)", (namespace, id))
        conversation, count = self._connection.execute(
            "SELECT key, messages FROM conversations WHERE namespace = ? AND id = ?", (namespace, id)
        ).fetchone()
        text = file_format.as_json(message)
        file_format.put_message(self._connection, conversation, count + 1, tokens, text)

    def mark_compressed(self, namespace: int, id: str, last: int) -> None:
        """Note that the messages up to number ``last`` are part of the conversation's document now."""
        rows = self._connection.execute(
            "UPDATE conversations SET compressed = ? WHERE namespace = ? AND id = ? RETURNING key",
            (last, namespace, id),
        ).fetchall()
        for (conversation,) in rows:
            self.set_meta(f"{file_format.OF_CONVERSATION}{conversation}", str(last).encode())

    def clear_messages(self, namespace: int, id: str) -> None:
        """Delete a conversation's messages."""
        self._connection.execute(
            "DELETE FROM messages WHERE conversation IN (SELECT key FROM conversations WHERE namespace = ? AND id = ?)",
            (namespace, id),
        )
        rows = self._connection.execute(
            "DELETE FROM conversations WHERE namespace = ? AND id = ? RETURNING key", (namespace, id)
        ).fetchall()
        for (conversation,) in rows:
            self.set_meta(f"{file_format.OF_CONVERSATION}{conversation}", None)
        self._log_has_deleted = True


def _message(text: str) -> dict[str, Any]:
    """A message as it was kept.

    Raises:
        ValueError: it is none.
    """
    message = json.loads(text)
    if not isinstance(message, dict) or not all(isinstance(message.get(part), str) for part in ("role", "content")):
        raise ValueError("a message has no role or no content")
    return message
