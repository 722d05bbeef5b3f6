"""The documents of a store: added, changed, deleted."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from shared_context.config import StoreConfig
from shared_context.errors import (
    DocumentError,
    DocumentNotFoundError,
    SharedContextError,
    StoreUnavailableError,
    UnreadableError,
)
from shared_context.model.cache import give_back_freed
from shared_context.store.catalogue import Catalogue
from shared_context.store.change import Change
from shared_context.store.documents import Document, check_metadata, check_size, check_text
from shared_context.store.filters import compile_filter
from shared_context.store.header import header
from shared_context.store.ingestion import Ingestion
from shared_context.store.line_rows import Entry
from shared_context.store.loading import OnError, Source, load_documents, refuse, skip_or_refuse, stored_already
from shared_context.store.node_data import HeaderData, NodeData, Part, StoredText
from shared_context.store.read_only import read_only

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with how much is done, of how much, and what it is."""

INGEST_TOGETHER = 1 << 16
"""Tokens of documents that are batched together, and land together."""

DOCUMENTS_TOGETHER = 4096
"""Documents that land together at most."""

MAX_KEPT_BYTES = 10**9
"""Of a document with what is kept of it, which passes through memory in one piece."""


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
        atomic: bool,
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
        unchanged = self._unchanged(documents) if replace else {}
        texts: dict[str, StoredText] = {}
        failures: dict[str, DocumentError] = {}
        for document in documents:
            try:
                if document.id not in unchanged:
                    texts[document.id] = self.tokenize(document.text, f"document {document.id!r}")
            except DocumentError as error:
                failures[document.id] = error
        skip_or_refuse(failures, len(documents), on_error)
        documents = [document for document in documents if document.id not in failures]
        advance = self._advance(list(texts.values()), progress)
        pieces = list(_pieces(documents, texts))
        landed = 0
        try:
            if atomic:
                computed = [nodes for piece in pieces for nodes in self._compute(piece, texts, advance)]
                self._land(documents, texts, computed, unchanged, replace)
            else:
                for piece in pieces:
                    self._land(piece, texts, self._compute(piece, texts, advance), unchanged, replace)
                    landed += len(piece)
        except BaseException as error:
            if landed:
                _say(
                    error, f"{landed:,} of {len(documents):,} documents are stored, up to {documents[landed - 1].id!r}."
                )
            raise
        return [d.id for d in documents]

    def _unchanged(self, documents: list[Document]) -> dict[str, int]:
        """Keys of the documents whose text is stored already."""
        with self._catalogue.reading():
            keys = {document.id: self._find(document.id) for document in documents}
        found = {}
        for document in documents:
            # One by one, so that nobody has to wait long; whether it is still so is decided when it is written.
            with self._catalogue.reading():
                key = keys[document.id]
                if key is None or self._find(document.id) != key:
                    continue
                if self._catalogue.text(key).text == document.text:
                    found[document.id] = key
        return found

    def _compute(
        self, documents: list[Document], texts: dict[str, StoredText], advance: Callable[[int], None]
    ) -> list[NodeData | None]:
        """What scoring needs of documents; None for those whose text is stored already."""
        new = [document.id for document in documents if document.id in texts]
        nodes = dict(zip(new, self.ingest([texts[id] for id in new], advance), strict=True))
        return [nodes.get(document.id) for document in documents]

    def _land(
        self,
        documents: list[Document],
        texts: dict[str, StoredText],
        computed: list[NodeData | None],
        unchanged: dict[str, int],
        replace: bool,
    ) -> None:
        """Write documents, all of them or none."""
        nodes = dict(zip((document.id for document in documents), computed, strict=True))
        entries = {document.id: _entry(document) for document in documents}
        headers = dict(zip(entries, self._headers(list(entries.values())), strict=True))
        while True:
            with self._catalogue.changing() as change:
                if not replace:
                    # Another thread or process may have been faster.
                    taken = {d.id: stored_already(d.id) for d in documents if self._find(d.id) is not None}
                    refuse(taken, len(documents))
                # Of these another one has changed the text meanwhile, so that it is not the same any more.
                stale = [d for d in documents if nodes[d.id] is None and self._find(d.id) != unchanged[d.id]]
                if not stale:
                    for document in documents:
                        id = document.id
                        self._put(change, entries[id], texts.get(id), nodes[id], headers[id])
                    return
            for document in stale:
                texts[document.id] = self.tokenize(document.text, f"document {document.id!r}")
                (nodes[document.id],) = self.ingest([texts[document.id]])

    def _put(
        self,
        change: Change,
        entry: Entry,
        stored: StoredText | None,
        nodes: NodeData | None,
        header: HeaderData | None,
    ) -> None:
        key = self._find(entry.id)
        if stored is None or nodes is None:
            assert key is not None  # it was found to be stored already
            change.describe(key, entry, header)
            return
        if key is not None:
            change.remove(key)
        change.insert(entry, stored, nodes, header)

    def update(self, id: str, text: str | None, metadata: Mapping[str, Any] | None) -> None:
        """Replace a document's text, its metadata, or both."""
        name = f"document {id!r}"
        if metadata is not None:
            metadata = check_metadata(metadata, name)
        while True:
            with self._catalogue.reading():
                seen = self._catalogue.key(id)
                before = self._catalogue.entry(seen)
                same = text is None or text == self._catalogue.text(seen).text
            entry = before if metadata is None else dataclasses.replace(before, metadata=read_only(metadata))
            (header,) = self._headers([entry])
            new: tuple[StoredText, NodeData] | None = None
            if text is not None and not same:
                check_text(text, max_bytes=self._config.max_document_bytes, name=name)
                stored = self.tokenize(text, name)
                new = stored, self.ingest([stored])[0]
            with self._catalogue.changing() as change:
                key = self._catalogue.key(id)
                # Another one may have changed the text meanwhile, so that it is not the same any more, or the metadata.
                if (text is not None and new is None and key != seen) or (
                    metadata is None and self._catalogue.entry(key) != before
                ):
                    continue
                if new is not None:
                    change.remove(key)
                    change.insert(entry, *new, header)
                elif metadata is not None:
                    change.describe(key, entry, header)
                return

    def mend_headers(self) -> None:
        """Make headers anew that were lost; where nothing may be written, say so."""
        with self._catalogue.reading():
            entries = [
                self._catalogue.entry(key) for key in self._catalogue.documents() if key in self._catalogue.headerless
            ]
            self._catalogue.headerless.clear()
        for entry in entries:
            with suppress(StoreUnavailableError, DocumentNotFoundError):
                self.update(entry.id, None, entry.metadata)
            logger.warning("document %r: its header was lost; it is made anew where that may be written.", entry.id)

    def append(self, id: str, text: str) -> None:
        """Add text at the end of a document."""
        limit = self._config.max_document_bytes
        encoded = check_text(text, max_bytes=limit, name=f"the text to append to {id!r}")
        more = self.tokenize(text, f"the text to append to {id!r}")
        while True:
            with self._catalogue.reading():
                key = self._catalogue.key(id)
                check_size(self._catalogue.text_bytes(key) + len(encoded), limit, f"document {id!r}")
                number, last = self._catalogue.last_part(key)
            first, parts = self.extended(number, last, more)
            with self._catalogue.changing() as change:
                if self._catalogue.key(id) == key:  # else another thread or process has replaced it meanwhile
                    change.extend(key, self._catalogue.entry(key), first, parts)
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
            entries = self._catalogue.entries(self._catalogue.documents())
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
        if nbytes > MAX_KEPT_BYTES:
            raise UnreadableError(
                f"{name} is too large: its {len(stored.tokens):,} tokens and what is kept of them take {nbytes:,} "
                f"bytes, the limit is {MAX_KEPT_BYTES:,}; split it"
            )

    def extended(self, number: int, last: Part, more: StoredText) -> tuple[int, list[Part]]:
        """What takes the place of a document's last chunk when text is added at its end.

        Args:
            number: of the last chunk.
            last: the chunk.
            more: the text that is added.

        Returns:
            The number of the first chunk that is another one, and the chunks from there on.
        """
        tail, nodes = self._ingestion.extend(last, more)
        full = len(last.stored.tokens) == self._config.tree.chunk_size
        return number + full, self._catalogue.shape.split(tail, nodes)

    def _advance(self, documents: list[StoredText], progress: Progress | None) -> Callable[[int], None]:
        """Tells how many tokens of documents are done, given how many more have been read."""
        total, done, passes = sum(len(d.tokens) for d in documents), 0, self._ingestion.passes

        def advance(tokens: int) -> None:
            nonlocal done
            done += tokens
            if progress is not None:
                progress(done // passes, total, "tokens")

        return advance

    def ingest(
        self, documents: Sequence[StoredText], advance: Callable[[int], None] = lambda tokens: None
    ) -> list[NodeData]:
        """What scoring needs of documents."""
        nodes = self._ingestion(documents, advance) if documents else []
        if sum(len(document.tokens) for document in documents) >= INGEST_TOGETHER:
            give_back_freed()
        return nodes

    def _headers(self, entries: Sequence[Entry]) -> list[HeaderData | None]:
        """What scoring needs of documents' headers."""
        texts = [header(entry.metadata, entry.unsearched_keys) for entry in entries]
        # Documents of one kind often have one header in common.
        told = {text: StoredText(text, self._ingestion.model.tokenize(text)) for text in dict.fromkeys(texts) if text}
        read = {text: stored for text, stored in told.items() if len(stored.tokens)}
        nodes = dict(zip(read, self._ingestion(list(read.values())) if read else (), strict=True))
        data = {text: HeaderData(each.codes, each.scales, each.embeddings) for text, each in nodes.items()}
        return [data.get(text) for text in texts]


def _entry(document: Document) -> Entry:
    metadata = read_only(dict(document.metadata))
    return Entry("document", document.id, metadata, document.unsearched_keys, document.hidden_keys)


def _pieces(documents: list[Document], texts: Mapping[str, StoredText]) -> Iterator[list[Document]]:
    """Documents that are computed and written together: of INGEST_TOGETHER tokens or the first that are more."""
    piece: list[Document] = []
    waiting = 0
    for document in documents:
        piece.append(document)
        waiting += len(texts[document.id].tokens) if document.id in texts else 0
        if waiting >= INGEST_TOGETHER or len(piece) == DOCUMENTS_TOGETHER:
            yield piece
            piece, waiting = [], 0
    if piece:
        yield piece


def _say(error: BaseException, what: str) -> None:
    """Add to what an error says."""
    if isinstance(error, SharedContextError) and error.args:
        error.args = f"{error.args[0]} {what}", *error.args[1:]
    else:
        error.add_note(what)
