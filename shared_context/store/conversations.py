"""The conversations of a store: messages are kept as they were, older ones are part of a document to select from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared_context.model.shared_llm import SharedLLMModel
from shared_context.store.catalogue import Catalogue, Change
from shared_context.store.database import Database, Entry, Message
from shared_context.store.document_store import DocumentStore
from shared_context.store.node_index import NodeIndex
from shared_context.store.selection import Selection
from shared_context.store.selections import Selections
from shared_context.store.selector import longest_query


class Conversations:
    """Keeps conversations; :class:`~shared_context.store.memory.ConversationMemory` is one of them.

    Args:
        model: counts a message's tokens.
        database: where messages are kept.
        catalogue: where their documents are kept.
        documents: computes what scoring needs of them.
        selections: selects from them.
        new_index: makes an empty index.
    """

    def __init__(
        self,
        model: SharedLLMModel,
        database: Database,
        catalogue: Catalogue,
        documents: DocumentStore,
        selections: Selections,
        new_index: Callable[[], NodeIndex],
    ):
        self._model, self._database, self._catalogue = model, database, catalogue
        self._documents, self._selections, self._new_index = documents, selections, new_index

    def ids(self) -> list[str]:
        """Ids of the conversations that have messages."""
        with self._catalogue.reading():
            return self._database.conversations()

    def append(self, id: str, message: dict[str, Any], recent_tokens: int) -> None:
        """Add a message, and let those that are no longer recent be part of the conversation's document."""
        with self._catalogue.changing() as change:
            self._database.add_message(id, message, self._model.count_tokens(message["content"]))
            recent = self._database.messages(id, recent=True)
            excess = sum(row.tokens for row in recent) - recent_tokens
            old = []
            for row in recent[:-1]:
                if excess <= 0:
                    break
                old.append(row)
                excess -= row.tokens
            if old:
                text = "".join(f"{row.message['role']}: {row.message['content']}\n" for row in old)
                self._grow(change, id, text)
                self._database.mark_compressed(id, [row.number for row in old])

    def _grow(self, change: Change, id: str, text: str) -> None:
        name = f"conversation {id!r}"
        more = self._documents.tokenize(text, name)
        key = self._catalogue.find("conversation", id)
        if key is None:
            whole = more, *self._documents.ingest([more], None)
        else:
            whole = self._documents.extend(self._catalogue.text(key), self._catalogue.nodes(key), more, name)
            change.remove(key)
        change.insert(Entry("conversation", id, {}), *whole)

    def messages(self, id: str, *, recent: bool = False) -> list[Message]:
        """A conversation's messages, oldest first; all of them, or those that stay verbatim."""
        with self._catalogue.reading():
            return self._database.messages(id, recent=recent)

    def select(self, id: str, query: str | None, **options: Any) -> Selection:
        """What a query is shown of a conversation's older messages."""
        if query is not None:
            # A message may be as long as a document; what it asks is mostly at its end.
            tokens, longest = self._model.tokenize(query), longest_query(self._model)
            if len(tokens) > longest:
                query = query[slice(*tokens.characters(len(tokens) - longest, len(tokens)))]
        with self._catalogue.reading():
            # Its own index: no conversation weighs on the scores of another one, or of the documents.
            index = self._new_index()
            key = self._catalogue.find("conversation", id)
            if key is not None:
                index.add(key, self._catalogue.text(key).tokens.ids, self._catalogue.nodes(key))
            return self._selections.select_from(index, query, [] if key is None else [key], **options)

    def clear(self, id: str) -> None:
        """Forget a whole conversation."""
        with self._catalogue.changing() as change:
            self._database.clear_messages(id)
            key = self._catalogue.find("conversation", id)
            if key is not None:
                change.remove(key)
