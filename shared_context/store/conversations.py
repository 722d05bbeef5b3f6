"""The conversations of a store: messages are kept as they were, older ones are part of a document to select from."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from shared_context.config import StoreConfig
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.store.catalogue import Catalogue
from shared_context.store.change import Change
from shared_context.store.conversation_rows import Message
from shared_context.store.database import Database
from shared_context.store.document_store import DocumentStore
from shared_context.store.documents import check_size
from shared_context.store.embedder import Embedder, embed
from shared_context.store.line_rows import Entry
from shared_context.store.node_data import Part
from shared_context.store.node_index import NodeIndex
from shared_context.store.query import longest_query
from shared_context.store.query_parts import parts
from shared_context.store.selection import Selection
from shared_context.store.selections import Selections
from shared_context.store.statements import about, as_json, from_json

NEIGHBOUR_WEIGHT = 0.2
"""Of a leaf in a conversation, where the next message is often about something else; nor does a section count."""

SAID_AT = "\0said_at"
"""The key under which a message is kept with when it was added, in seconds since 1970."""

STATED = "\0stated"
"""The key under which a message is kept with the embeddings of its statements. No key of a user's has a NUL."""


class Conversations:
    """Keeps conversations; :class:`~shared_context.store.conversation_memory.ConversationMemory` is one of them.

    Args:
        model: counts a message's tokens.
        config: the store's settings.
        database: where messages are kept.
        catalogue: where their documents are kept.
        documents: computes what scoring needs of them.
        selections: selects from them.
        new_index: makes an empty index.
        embedder: embeds statements; None where the store has none.
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
        embedder: Embedder | None,
    ):
        self._model, self._config, self._database, self._catalogue = model, config, database, catalogue
        self._documents, self._selections, self._new_index = documents, selections, new_index
        self._embedder = embedder
        self._scored_alone = replace(
            config, section_weight=0.0, neighbour_weight=min(config.neighbour_weight, NEIGHBOUR_WEIGHT)
        )

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
        message = {**message, SAID_AT: time.time(), **self._stated(message)}
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

    def _stated(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The statements of a message under their key; nothing where there are none."""
        stated = [] if self._embedder is None else as_json(message["content"], self._embedder)
        return {STATED: stated} if stated else {}

    def _recent(self, id: str) -> list[Message]:
        return self._database.messages(self._catalogue.namespace, id, recent=True)

    def _grown(self, id: str, last: tuple[int, Part] | None, old: list[Message]) -> tuple[int, list[Part]]:
        """The number of the first chunk of the conversation's document that is another one now, and what follows."""
        text = "".join(map(_as_text, old))
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
            rows = self._database.messages(self._catalogue.namespace, id, recent=recent)
        return [replace(row, message={k: v for k, v in row.message.items() if "\0" not in k}) for row in rows]

    def forget(self, id: str, positions: slice) -> None:
        """Forget messages, also as parts of the conversation's document; positions as in :meth:`messages`."""
        self._rewrite(id, lambda rows: [*rows[: positions.start], *rows[positions.stop :]])

    def edit(self, id: str, position: int, message: dict[str, Any]) -> None:
        """Put other words in the place of a message's, also in the conversation's document."""

        def edited(rows: list[Message]) -> list[Message]:
            old = rows[position]
            tokens = old.tokens if "content" not in message else self._model.count_tokens(message["content"])
            changed = {**old.message, **message}
            if "content" in message:
                changed.pop(STATED, None)
                changed |= self._stated(changed)
            new = replace(old, message=changed, tokens=tokens)
            return [*rows[:position], new, *rows[position + 1 :]]

        self._rewrite(id, edited)

    def _rewrite(self, id: str, changed: Callable[[list[Message]], list[Message]]) -> None:
        """Put other messages in the place of a conversation's; those that were part of its document stay part of it."""
        namespace = self._catalogue.namespace
        with self._catalogue.changing() as change:
            rows = self._database.messages(namespace, id)
            recent = {row.number for row in self._recent(id)}
            kept = changed(rows)
            compressed = [row for row in kept if row.number not in recent]
            key = self._catalogue.find("conversation", id)
            same = [row for row in rows if row.number not in recent] == compressed
            if key is not None and not same:
                change.remove(key)
            self._database.clear_messages(namespace, id)
            for row in kept:
                self._database.add_message(namespace, id, row.message, row.tokens)
            if compressed:
                self._database.mark_compressed(namespace, id, len(compressed))
            if compressed and not same:
                self._put(change, id, None, *self._grown(id, None, compressed))

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
            recent = {row.number for row in self._recent(id)}
            rows = [row for row in self._database.messages(self._catalogue.namespace, id) if row.number not in recent]
            # Where much is said, the correction of what answers best may be far from the question in its words.
            options.setdefault("floor", 0.0)
            ends = list(accumulate(len(_as_text(row)) for row in rows))

            ahead: list[tuple[int, int]] = []
            if key is not None and query is not None and _searches(options):
                ahead = self._ahead(query, rows, ends)

            def found(**more: Any) -> Selection:
                keys = [] if key is None else [key]
                selection = self._selections.select_from(
                    index, self._scored_alone, query, keys, ahead, **options, **more
                )
                return selection.described(lambda node: _said(rows, bisect_right(ends, node.start)))

            selection = found()
            stated = [node for node in selection.nodes if node.said is not None and node.said["role"] == "user"]
            # What corrects a statement is often nearer to that than to the question.
            if not ahead and stated and query is not None and _searches(options):
                return found(also=[max(stated, key=lambda node: node.score).text])
            return selection

    def _ahead(self, query: str, rows: Sequence[Message], ends: Sequence[int]) -> list[tuple[int, int]]:
        """Characters of the statements about what a query asks, in the order in which they are to be shown.

        Args:
            query: what is asked.
            rows: the messages of the conversation's document.
            ends: where each of them ends in it.
        """
        if self._embedder is None:
            return []
        stated = []
        for row, end in zip(rows, ends, strict=True):
            stated += from_json(row.message.get(STATED, []), end - len(row.message["content"]) - 1)
        asked = [part.text for part in parts(query, self._model.count_tokens) if part.weight == 1]
        if not stated or not asked:
            return []
        found = about(query, embed(self._embedder, asked, queries=True), stated)
        return [(statement.start, statement.end) for statement in found]

    def remove_all(self) -> None:
        """Forget the messages of all conversations; inside of a change that removes their documents."""
        for id in self._database.conversations(self._catalogue.namespace):
            self._database.clear_messages(self._catalogue.namespace, id)

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


def _searches(options: Mapping[str, Any]) -> bool:
    """Whether options leave out much of what is not searched for, and search by meaning."""
    by_meaning = options.get("policy") in (None, "hybrid", "embedding")
    return by_meaning and options.get("ratio") is None and options.get("search", "best_first") == "best_first"


def _as_text(row: Message) -> str:
    """A message as a part of the conversation's document."""
    return f"{row.message['role']}: {row.message['content']}\n"


def _said(rows: Sequence[Message], position: int) -> dict[str, Any]:
    """What is told of a passage of the document that begins in a message: who said it, as which message, and when."""
    message = rows[min(position, len(rows) - 1)].message
    told = {"message": position, "role": message["role"]}
    if SAID_AT in message:
        told["time"] = datetime.fromtimestamp(message[SAID_AT], UTC).isoformat(timespec="seconds")
    return told
