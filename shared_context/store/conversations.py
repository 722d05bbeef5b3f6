"""The conversations of a store: messages are kept as they were, older ones are part of a document to select from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared_context.config import StoreConfig
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.store.catalogue import Catalogue, Change
from shared_context.store.database import Database, Entry, Message
from shared_context.store.document_store import DocumentStore
from shared_context.store.documents import check_size
from shared_context.store.node_data import Part
from shared_context.store.node_index import NodeIndex
from shared_context.store.selection import Selection
from shared_context.store.selections import Selections
from shared_context.store.selector import longest_query


class Conversations:
    """Keeps conversations; :class:`~shared_context.store.memory.ConversationMemory` is one of them.

    Args:
        model: counts a message's tokens.
        config: the store's settings.
        database: where messages are kept.
        catalogue: where their documents are kept.
        documents: computes what scoring needs of them.
        selections: selects from them.
        new_index: makes an empty index.
    """

    def __init__(
        self,
        model: SharedLLMModel,
        config: StoreConfig,
        database: Database,
        catalogue: Catalogue,
        documents: DocumentStore,
        selections: Selections,
        new_index: Callable[[], NodeIndex],
    ):
        self._model, self._config, self._database, self._catalogue = model, config, database, catalogue
        self._documents, self._selections, self._new_index = documents, selections, new_index

    @property
    def max_bytes(self) -> int:
        """Of a message as JSON."""
        return self._config.max_document_bytes

    def ids(self) -> list[str]:
        """Ids of the conversations that have messages."""
        with self._catalogue.reading():
            return self._database.conversations(self._catalogue.namespace)

    def append(self, id: str, message: dict[str, Any], recent_tokens: int) -> None:
        """Add a message, and let those that are no longer recent be part of the conversation's document.

        What takes long is done before the change, and again where another one changed the conversation meanwhile.
        """
        name = f"a message of conversation {id!r}"
        check_size(len(message["content"].encode()), self._config.max_document_bytes, name)
        tokens = self._model.count_tokens(message["content"])
        while True:
            with self._catalogue.reading():
                recent = self._recent(id)
                key = self._catalogue.find("conversation", id)
                last = None if key is None else self._catalogue.last_part(key)
            old = _outgrown(recent, tokens, recent_tokens)
            grown = self._grown(id, last, old) if old else None
            with self._catalogue.changing() as change:
                if self._recent(id) != recent or self._catalogue.find("conversation", id) != key:
                    continue
                self._database.add_message(self._catalogue.namespace, id, message, tokens)
                if grown is not None:
                    self._put(change, id, key, *grown)
                    self._database.mark_compressed(self._catalogue.namespace, id, old[-1].number)
                return

    def _recent(self, id: str) -> list[Message]:
        return self._database.messages(self._catalogue.namespace, id, recent=True)

    def _grown(self, id: str, last: tuple[int, Part] | None, old: list[Message]) -> tuple[int, list[Part]]:
        """The number of the first chunk of the conversation's document that is another one now, and what follows."""
        text = "".join(f"{row.message['role']}: {row.message['content']}\n" for row in old)
        more = self._documents.tokenize(text, f"conversation {id!r}")
        if last is not None:
            return self._documents.extended(*last, more)
        return 0, self._catalogue.shape.split(more, *self._documents.ingest([more]))

    def _put(self, change: Change, id: str, key: int | None, first: int, parts: list[Part]) -> None:
        entry = Entry("conversation", id, {})
        if key is None:
            change.insert_parts(entry, parts)
        else:
            change.extend(key, entry, first, parts)

    def messages(self, id: str, *, recent: bool = False) -> list[Message]:
        """A conversation's messages, oldest first; all of them, or those that stay verbatim."""
        with self._catalogue.reading():
            return self._database.messages(self._catalogue.namespace, id, recent=recent)

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
                index.add(key, *self._catalogue.nodes(key))
            return self._selections.select_from(index, query, [] if key is None else [key], **options)

    def clear(self, id: str) -> None:
        """Forget a whole conversation."""
        with self._catalogue.changing() as change:
            self._database.clear_messages(self._catalogue.namespace, id)
            key = self._catalogue.find("conversation", id)
            if key is not None:
                change.remove(key)


def _outgrown(recent: list[Message], tokens: int, recent_tokens: int) -> list[Message]:
    """Recent messages that are not recent any more once one of so many tokens has been added."""
    excess = sum(row.tokens for row in recent) + tokens - recent_tokens
    old = []
    for row in recent:
        if excess <= 0:
            break
        old.append(row)
        excess -= row.tokens
    return old
