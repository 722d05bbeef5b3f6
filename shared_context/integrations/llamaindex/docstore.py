"""SharedContextDocumentStore: the documents of a context store as a LlamaIndex docstore."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem
from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore.types import BaseDocumentStore, RefDocInfo

from shared_context.integrations.llamaindex.copies import PlainOverStore
from shared_context.integrations.llamaindex.documents import (
    REF_DOC_ID,
    SOURCE_HASH,
    own_metadata,
    to_documents,
    to_llamaindex,
)

if TYPE_CHECKING:
    from shared_context import Document, SharedLLMContextStore


PERSISTED = "context_store"
"""Folder beside LlamaIndex's own files that a persisted store lies in."""


class SharedContextDocumentStore(PlainOverStore, BaseDocumentStore):
    """Reads and changes the documents of a context store: it holds nothing of its own.

    Args:
        store: the store.
    """

    def __init__(self, store: SharedLLMContextStore):
        self._store = store

    def persist(self, persist_path: str = "./storage/docstore.json", fs: AbstractFileSystem | None = None) -> None:
        """Write the file that LlamaIndex looks for; the documents are what the vector store writes."""
        Path(persist_path).parent.mkdir(parents=True, exist_ok=True)
        Path(persist_path).write_text("{}", encoding="utf-8")

    @property
    def docs(self) -> dict[str, BaseNode]:
        """All documents, whole, by their ids."""
        return {document.id: to_llamaindex(document) for document in self._store}

    def add_documents(
        self,
        docs: Sequence[BaseNode],
        allow_update: bool = True,
        batch_size: int | None = None,
        store_text: bool = True,
    ) -> None:
        """Store documents; what has not changed costs nothing. ``batch_size`` means nothing here.

        Raises:
            DuplicateDocumentError: an id is taken and ``allow_update`` is False.
            DocumentError: a document cannot be stored (BatchError for several, with ``failures``).
        """
        if store_text and docs:
            self._store.add(to_documents(docs), replace=allow_update)

    def get_document(self, doc_id: str, raise_error: bool = True) -> BaseNode | None:
        """A document, whole; where there is none an error, or None.

        Raises:
            DocumentNotFoundError: no document has this id.
        """
        if doc_id not in self._store and not raise_error:
            return None
        return to_llamaindex(self._store.get(doc_id))

    def delete_document(self, doc_id: str, raise_error: bool = True) -> None:
        """Delete a document.

        Raises:
            DocumentNotFoundError: no document has this id.
        """
        if raise_error or doc_id in self._store:
            self._store.delete(doc_id)

    def document_exists(self, doc_id: str) -> bool:
        """Whether a document has this id."""
        return doc_id in self._store

    # Hashes follow from what is stored; there is nothing to set.

    def set_document_hash(self, doc_id: str, doc_hash: str) -> None:
        pass

    def set_document_hashes(self, doc_hashes: dict[str, str]) -> None:
        pass

    def get_document_hash(self, doc_id: str) -> str | None:
        """The hash that LlamaIndex gives the document as it was handed over; None where there is none."""
        return next(map(_hash, self._made_of(doc_id)), None)

    def get_all_document_hashes(self) -> dict[str, str]:
        """Ids of documents as they were handed over, by their hashes."""
        return {_hash(document): _ref_doc_id(document) for document in self._store}

    def get_all_ref_doc_info(self) -> dict[str, RefDocInfo]:
        """For each document that was handed over its metadata, and the ids of what is stored of it."""
        return _infos(self._store)

    def get_ref_doc_info(self, ref_doc_id: str) -> RefDocInfo | None:
        """:meth:`get_all_ref_doc_info` of one document; None where there is none."""
        return _infos(self._made_of(ref_doc_id)).get(ref_doc_id)

    def _made_of(self, ref_doc_id: str) -> list[Document]:
        """What is stored of a document that was handed over."""
        ids = self._store.ids({REF_DOC_ID: ref_doc_id})
        if ref_doc_id in self._store and ref_doc_id not in ids:
            ids = [ref_doc_id, *ids]  # itself first: its hash is the one that it was handed over with
        return [document for document in map(self._store.get, ids) if _ref_doc_id(document) == ref_doc_id]

    def delete_ref_doc(self, ref_doc_id: str, raise_error: bool = True) -> None:
        """Delete a document with all that was made of it.

        Raises:
            DocumentNotFoundError: no document has this id.
        """
        info = self.get_ref_doc_info(ref_doc_id)
        if info is not None:
            self._store.delete(info.node_ids)
        elif raise_error:
            self._store.delete(ref_doc_id)

    async def async_add_documents(self, docs: Sequence[BaseNode], *args: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(self.add_documents, docs, *args, **kwargs)

    async def aget_document(self, doc_id: str, raise_error: bool = True) -> BaseNode | None:
        return await asyncio.to_thread(self.get_document, doc_id, raise_error)

    async def adelete_document(self, doc_id: str, raise_error: bool = True) -> None:
        await asyncio.to_thread(self.delete_document, doc_id, raise_error)

    async def adocument_exists(self, doc_id: str) -> bool:
        return await asyncio.to_thread(self.document_exists, doc_id)

    async def aset_document_hash(self, doc_id: str, doc_hash: str) -> None:
        pass

    async def aset_document_hashes(self, doc_hashes: dict[str, str]) -> None:
        pass

    async def aget_document_hash(self, doc_id: str) -> str | None:
        return await asyncio.to_thread(self.get_document_hash, doc_id)

    async def aget_all_document_hashes(self) -> dict[str, str]:
        return await asyncio.to_thread(self.get_all_document_hashes)

    async def aget_all_ref_doc_info(self) -> dict[str, RefDocInfo]:
        return await asyncio.to_thread(self.get_all_ref_doc_info)

    async def aget_ref_doc_info(self, ref_doc_id: str) -> RefDocInfo | None:
        return await asyncio.to_thread(self.get_ref_doc_info, ref_doc_id)

    async def adelete_ref_doc(self, ref_doc_id: str, raise_error: bool = True) -> None:
        await asyncio.to_thread(self.delete_ref_doc, ref_doc_id, raise_error)


def _ref_doc_id(document: Document) -> str:
    return document.metadata.get(REF_DOC_ID, document.id)


def _hash(document: Document) -> str:
    return document.metadata.get(SOURCE_HASH) or to_llamaindex(document).hash


def _infos(documents: Iterable[Document]) -> dict[str, RefDocInfo]:
    infos: dict[str, RefDocInfo] = {}
    for document in documents:
        info = infos.setdefault(_ref_doc_id(document), RefDocInfo(metadata=own_metadata(document.metadata)))
        info.node_ids.append(document.id)
    return infos
