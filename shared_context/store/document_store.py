"""The documents of a store: added, changed, deleted."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from shared_context.config import StoreConfig
from shared_context.errors import DocumentError, UnreadableError
from shared_context.model.cache import give_back_freed
from shared_context.store.catalogue import Catalogue
from shared_context.store.database import MAX_ROW_BYTES, Entry, HeaderData, NodeData, StoredText
from shared_context.store.documents import (
    Document,
    OnError,
    Source,
    check_metadata,
    check_text,
    load_documents,
    refuse,
    skip_or_refuse,
    stored_already,
)
from shared_context.store.filters import compile_filter
from shared_context.store.header import header
from shared_context.store.ingestion import Ingestion
from shared_context.store.read_only import read_only

Progress = Callable[[int, int, str], None]
"""Called with how much is done, of how much, and what it is."""

INGEST_TOGETHER = 1 << 16
"""Tokens of documents whose chunks and leaves are batched together."""


class DocumentStore:
    """Puts documents into a catalogue; arguments and errors are those of the store's methods of the same names.

    Args:
        catalogue: where the documents go.
        ingestion: computes what scoring needs of them.
        config: the store's settings.
    """

    def __init__(self, catalogue: Catalogue, ingestion: Ingestion, config: StoreConfig):
        self._catalogue, self._ingestion, self._config = catalogue, ingestion, config

    def add(
        self,
        source: Source,
        *,
        id: str | None,
        metadata: Mapping[str, Any] | None,
        replace: bool,
        include: Iterable[str],
        exclude: Iterable[str],
        on_error: OnError,
        progress: Progress | None,
    ) -> list[str]:
        """Store documents whole."""
        documents = load_documents(
            source,
            id=id,
            metadata=metadata,
            max_bytes=self._config.max_document_bytes,
            stored=() if replace else self,
            include=include,
            exclude=exclude,
            on_error=on_error,
        )
        texts: dict[str, StoredText] = {}
        failures: dict[str, DocumentError] = {}
        for document in documents:
            if replace and document.id in self and self.get(document.id).text == document.text:
                continue
            try:
                texts[document.id] = self.tokenize(document.text, f"document {document.id!r}")
            except DocumentError as error:
                failures[document.id] = error
        skip_or_refuse(failures, len(documents), on_error)
        documents = [document for document in documents if document.id not in failures]
        computed = dict(zip(texts, self.ingest(list(texts.values()), progress), strict=True))
        entries = {document.id: _entry(document) for document in documents}
        headers = dict(zip(entries, self._headers(list(entries.values())), strict=True))
        with self._catalogue.changing() as change:
            if not replace:
                # Another thread or process may have been faster.
                taken = {d.id: stored_already(d.id) for d in documents if self._find(d.id) is not None}
                refuse(taken, len(documents))
            for document in documents:
                entry, header = entries[document.id], headers[document.id]
                if document.id not in texts:
                    change.describe(self._catalogue.key(document.id), entry, header)
                    continue
                if (old := self._find(document.id)) is not None:
                    change.remove(old)
                change.insert(entry, texts[document.id], computed[document.id], header)
        return [d.id for d in documents]

    def update(self, id: str, text: str | None, metadata: Mapping[str, Any] | None) -> None:
        """Replace a document's text, its metadata, or both."""
        name = f"document {id!r}"
        old = self.get(id)
        new = None
        if text is not None and text != old.text:
            check_text(text, max_bytes=self._config.max_document_bytes, name=name)
            stored = self.tokenize(text, name)
            new = stored, *self.ingest([stored], None)
        if metadata is not None:
            metadata = check_metadata(metadata, name)
        with self._catalogue.changing() as change:
            key = self._catalogue.key(id)
            entry = self._catalogue.entry(key)
            if metadata is not None:
                entry = dataclasses.replace(entry, metadata=read_only(metadata))
            if new is not None or metadata is not None:
                (header,) = self._headers([entry])
            if new is not None:
                change.remove(key)
                change.insert(entry, *new, header)
            elif metadata is not None:
                change.describe(key, entry, header)

    def append(self, id: str, text: str) -> None:
        """Add text at the end of a document."""
        limit = self._config.max_document_bytes
        check_text(text, max_bytes=limit, name=f"the text to append to {id!r}")
        more = self.tokenize(text, f"the text to append to {id!r}")
        while True:
            with self._catalogue.reading():
                key = self._catalogue.key(id)
                old, nodes = self._catalogue.text(key), self._catalogue.nodes(key)
            check_text(old.text + text, max_bytes=limit, name=f"document {id!r}")
            whole = self.extend(old, nodes, more, f"document {id!r}")
            with self._catalogue.changing() as change:
                if self._catalogue.key(id) == key:  # else another thread or process has replaced it meanwhile
                    entry = self._catalogue.entry(key)
                    change.remove(key)
                    change.insert(entry, *whole, *self._headers([entry]))
                    return

    def delete(self, ids: Iterable[str]) -> None:
        """Delete documents, all of them or, where an id is unknown, none."""
        with self._catalogue.changing() as change:
            for key in dict.fromkeys(map(self._catalogue.key, ids)):
                change.remove(key)

    def get(self, id: str) -> Document:
        """A document as it was stored."""
        with self._catalogue.reading():
            key = self._catalogue.key(id)
            entry, text = self._catalogue.entry(key), self._catalogue.text(key).text
            return Document(text, id, copy.deepcopy(entry.metadata), entry.unsearched_keys, entry.hidden_keys)

    def ids(self, filters: Mapping[str, Any] | None) -> list[str]:
        """Ids of the documents that a filter lets through."""
        passes = compile_filter(filters)
        with self._catalogue.reading():
            entries = map(self._catalogue.entry, self._catalogue.documents())
            return [entry.id for entry in entries if passes(entry.metadata)]

    def __len__(self) -> int:
        with self._catalogue.reading():
            return len(self._catalogue.documents())

    def __contains__(self, id: object) -> bool:
        with self._catalogue.reading():
            return self._find(id) is not None

    def _find(self, id: object) -> int | None:
        return self._catalogue.find("document", id)

    def tokenize(self, text: str, name: str) -> StoredText:
        """A text with its tokens; ``name`` is what errors call it."""
        stored = StoredText(text, self._ingestion.model.tokenize(text))
        if len(stored.tokens) == 0:
            raise UnreadableError(
                f"{name} has no tokens: {self._ingestion.model.name} reads nothing in it, leave it out"
            )
        self._check_size(stored, name)
        return stored

    def _check_size(self, stored: StoredText, name: str) -> None:
        nbytes = self._ingestion.nbytes(stored)
        if nbytes > MAX_ROW_BYTES:
            raise UnreadableError(
                f"{name} is too large: its {len(stored.tokens):,} tokens and what is kept of them take {nbytes:,} "
                f"bytes, the limit is {MAX_ROW_BYTES:,}; split it"
            )

    def extend(self, old: StoredText, nodes: NodeData, more: StoredText, name: str) -> tuple[StoredText, NodeData]:
        """A document with text added at its end."""
        whole = self._ingestion.extend(old, nodes, more)
        self._check_size(whole[0], name)
        return whole

    def ingest(self, documents: Sequence[StoredText], progress: Progress | None) -> list[NodeData]:
        """What scoring needs of documents."""
        total, done, passes = sum(len(d.tokens) for d in documents), 0, self._ingestion.passes
        nodes: list[NodeData] = []

        def advance(tokens: int) -> None:
            nonlocal done
            done += tokens
            if progress is not None:
                progress(done // passes, total, "tokens")

        group: list[StoredText] = []
        waiting = 0
        for number, document in enumerate(documents, start=1):
            group.append(document)
            waiting += len(document.tokens)
            if waiting >= INGEST_TOGETHER or number == len(documents):
                nodes += self._ingestion(group, advance)
                if waiting >= INGEST_TOGETHER:
                    give_back_freed()
                group, waiting = [], 0
        return nodes

    def _headers(self, entries: Sequence[Entry]) -> list[HeaderData | None]:
        """What scoring needs of documents' headers."""
        texts = [header(entry.metadata, entry.unsearched_keys) for entry in entries]
        # Documents of one kind often have one header in common.
        told = {text: StoredText(text, self._ingestion.model.tokenize(text)) for text in dict.fromkeys(texts) if text}
        read = {text: stored for text, stored in told.items() if len(stored.tokens)}
        nodes = dict(zip(read, self.ingest(list(read.values()), None), strict=True))
        data = {text: HeaderData(each.codes, each.scales, each.embeddings) for text, each in nodes.items()}
        return [data.get(text) for text in texts]


def _entry(document: Document) -> Entry:
    metadata = read_only(dict(document.metadata))
    return Entry("document", document.id, metadata, document.unsearched_keys, document.hidden_keys)
