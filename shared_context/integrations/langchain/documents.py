"""LangChain documents, and the documents, nodes and selections of a store."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, cast

from langchain_core.documents import Document as LangChainDocument

from shared_context import Document, Passage, Selection, SharedLLMContextStore
from shared_context.errors import DocumentError
from shared_context.store.documents import MAX_ID_LENGTH
from shared_context.store.json_values import json_form
from shared_context.store.loading import OnError
from shared_context.store.passages import REACH
from shared_context.store.selection import JoinedSelections

logger = logging.getLogger(__name__)

SOURCE_KEY = "source"
"""Where LangChain's loaders write what a document was read from."""

BOOKKEEPING = (
    *("creationdate", "creator", "moddate", "producer", "ptex.fullbanner", "total_pages", "trapped"),
    *("file_path", "last_modified", "etag", "row", "seq_num", "start_index"),
)
"""What loaders note of a file and not of what it says: no query is compared with it, no model is shown it."""

HEADING, SHOWN, ALSO_IN = "heading", "shown", "also_in"
"""Keys of a passage's metadata."""

Span = tuple[str, int, int, int, float, str]
"""Document id, start and end in characters, ratio, score, text."""


def to_store(documents: Iterable[LangChainDocument], *, source_key: str | None = SOURCE_KEY) -> list[Document]:
    """Documents to be stored, whole: page content, id and metadata.

    One without an id is named by its source, so that it is the same document when it is read again: ``notes.txt``, and
    where several come from there ``notes.txt#2`` and so on, in their order. One without a source gets no id here; the
    store derives one from text and metadata.

    Args:
        documents: any LangChain loader's.
        source_key: the key of their metadata that says what they were read from; None reads none.

    Raises:
        DocumentError: one of them is no Document, or they are no iterable of them.
    """
    if isinstance(documents, LangChainDocument | str | bytes) or not isinstance(documents, Iterable):
        raise DocumentError(
            f"documents is a {type(documents).__name__}: give a list of LangChain Documents, as a loader's load() does"
        )
    read: Counter[str] = Counter()
    stored = []
    for position, document in enumerate(documents):
        if not isinstance(document, LangChainDocument):
            raise DocumentError(
                f"documents[{position}] is a {type(document).__name__}, not a LangChain Document: "
                "Document(page_content=...) makes one of a text"
            )
        id, source = document.id, json_form(document.metadata.get(source_key)) if source_key is not None else None
        if id is None and isinstance(source, str) and source.strip():
            read[source] += 1
            named = source if read[source] == 1 else f"{source}#{read[source]}"
            id = named if len(named) <= MAX_ID_LENGTH and named.isprintable() else None
        stored.append(
            Document(
                document.page_content,
                cast("str", id),  # where it is None the store derives one
                document.metadata,
                unsearched_keys=BOOKKEEPING,
                hidden_keys=BOOKKEEPING,
            )
        )
    return stored


def sync(
    store: SharedLLMContextStore,
    documents: Iterable[LangChainDocument],
    source_key: str | None = SOURCE_KEY,
    on_error: OnError = "skip",
) -> None:
    """Bring a store in line with what was read: what is new is added, what changed replaced, what stayed left alone.

    What the store holds of the sources of ``documents`` and is not among them any more goes; other documents stay.

    Args:
        store, documents: of the sources that appear in it, ``documents`` holds everything.
        source_key: as in :func:`to_store`; None makes nothing go.
        on_error: as in ``store.add``. What is left out leaves what was stored of it before.

    Raises:
        BatchError, DocumentError: some documents are refused; the store stays as it was.
    """
    given = to_store(documents, source_key=source_key)
    before = len(store)
    ids = {*store.add(given, replace=True, on_error=on_error), *(document.id for document in given)}
    added = len(store) - before
    gone: list[str] = []
    if source_key is not None:
        named = (json_form(document.metadata.get(source_key)) for document in given)
        sources = {source for source in named if isinstance(source, str)}
        held = store.ids(filters={source_key: {"$in": sources}}) if sources else []
        gone = [id for id in held if id not in ids]
    # Only now: should this be interrupted, too much is stored and not too little.
    store.delete(gone)
    logger.info("of %d documents given %d are new; %d of their sources are gone", len(given), added, len(gone))


def from_store(document: Document) -> LangChainDocument:
    """A stored document as a whole."""
    return LangChainDocument(id=document.id, page_content=document.text, metadata=dict(document.metadata))


def from_passages(passages: Iterable[Passage]) -> list[LangChainDocument]:
    """A store's passages, best first.

    The metadata of each is the stored document's, and then ``doc_id``, ``start`` and ``end`` (characters), ``level``,
    ``ratio`` and ``score``, which win over keys of the same name; ``shown``, the characters that an injection shows,
    where they are others; ``also_in``, ids of other documents that say the same; and its ``heading``. The last two are
    there where there are any, and the document has no such key.

    Args:
        passages: of one grain each.
    """
    return sorted(map(_from_passage, passages), key=lambda passage: passage.metadata["score"], reverse=True)


def _from_passage(passage: Passage) -> LangChainDocument:
    start, end = passage.start, passage.end
    return LangChainDocument(
        id=f"{passage.doc_id}:{start}-{end}",
        page_content=passage.text,
        metadata={
            **({} if passage.heading is None else {HEADING: passage.heading}),
            **({ALSO_IN: list(passage.also_in)} if passage.also_in else {}),
            **passage.metadata,
            "doc_id": passage.doc_id,
            "start": start,
            "end": end,
            "level": passage.level,
            "ratio": passage.ratio,
            "score": passage.score,
            **({SHOWN: list(passage.shown)} if passage.shown != (start, end) else {}),
        },
    )


def as_text(passage: LangChainDocument) -> str:
    """A passage as a model reads it, behind its heading where it is a store's."""
    heading = passage.metadata.get(HEADING) if "ratio" in passage.metadata else None
    return f"{heading}\n{passage.page_content}" if isinstance(heading, str) else passage.page_content


def divide(
    store: SharedLLMContextStore, passages: Iterable[LangChainDocument]
) -> tuple[list[Span], list[LangChainDocument]]:
    """Parts passages into those whose KV ``store`` can give and those that exist as text only.

    A passage is the store's if its text is word for word what stands where its metadata says. One that was changed on
    the way (masked, shortened) is not: its KV would still say what the change took out.

    Returns:
        Spans to inject, without doubles and scored by their rank, and the passages to paste, both in the order given.
    """
    texts: dict[str, str] = {}
    spans: dict[tuple[str, int, int, int], str] = {}
    foreign = []
    for passage in passages:
        doc_id, start, end = _place(passage.metadata) or ("", 0, 0)
        if doc_id in store and doc_id not in texts:
            texts[doc_id] = store.get(doc_id).text
        if passage.page_content and texts.get(doc_id, "")[start:end] == passage.page_content:
            first, last = _shown(passage.metadata.get(SHOWN), start, end)
            spans[(doc_id, first, last, passage.metadata.get("ratio", 1))] = texts[doc_id][first:last]
        else:
            foreign.append(passage)
    # The order is a reranker's last word, where the scores may still be the retriever's.
    return [(*span, -float(rank), text) for rank, (span, text) in enumerate(spans.items())], foreign


def _place(metadata: Mapping[str, Any]) -> tuple[str, int, int] | None:
    """Document, start and end of a passage; None where other retrievers say nothing of them, or something else."""
    match metadata.get("doc_id"), metadata.get("start"), metadata.get("end"):
        case str(doc_id), int(start), int(end):
            return doc_id, start, end
    return None


def _shown(given: Any, start: int, end: int) -> tuple[int, int]:
    """The characters that an injection shows of a passage; all of them where its metadata have none of ours."""
    match given:
        case [int(first), int(last)] if first < last and start - REACH <= first and last <= end + REACH:
            return first, last
    return start, end


def describe(context: Any) -> Any:
    """A context as JSON values, for traces and cache keys: every passage with its grain and text."""
    if isinstance(context, Selection | JoinedSelections):
        return [
            {"doc_id": n.doc_id, "start": n.start, "end": n.end, "ratio": n.ratio, "text": n.text}
            for n in context.nodes
        ]
    return context
