"""What a :class:`SharedContextIndex` holds: documents are added, replaced and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.indices.base import BaseIndex
from llama_index.core.ingestion import run_transformations
from llama_index.core.schema import BaseNode, Document
from llama_index.core.storage.docstore.types import RefDocInfo
from tqdm.auto import tqdm

from shared_context.errors import ConfigError
from shared_context.integrations.llamaindex.docstore import SharedContextDocumentStore
from shared_context.integrations.llamaindex.documents import all_nodes, to_documents
from shared_context.integrations.llamaindex.extraction import extracting_whole
from shared_context.integrations.llamaindex.opening import ContextStoreStruct
from shared_context.integrations.llamaindex.vector_store import SharedContextVectorStore
from shared_context.store.loading import OnError, load_documents, stored_already

if TYPE_CHECKING:
    from shared_context import Document as StoreDocument
    from shared_context import SharedLLMContextStore


class Filled(BaseIndex[IndexDict]):
    """An index over a store, as far as it is filled."""

    _store: SharedLLMContextStore
    _on_error: OnError
    _transforms: bool

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """Every document's metadata by its id, with the ids of what is stored of it: its own, while it is whole."""
        return self._documents.get_all_ref_doc_info()

    @property
    def docstore(self) -> SharedContextDocumentStore:
        """The documents, whole, as a LlamaIndex docstore."""
        return self._documents

    @property
    def vector_store(self) -> SharedContextVectorStore:
        """The store as a LlamaIndex vector store."""
        return SharedContextVectorStore(self._store)

    @property
    def _documents(self) -> SharedContextDocumentStore:
        return SharedContextDocumentStore(self._store)

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Add a document. LlamaIndex's further options are of its nodes and docstores, and mean nothing here.

        Raises:
            DuplicateDocumentError: its id is stored already; see :meth:`update_ref_doc`.
            DocumentError: it is empty or holds more than text.
        """
        all_nodes([document])
        with self._callback_manager.as_trace("insert"):
            if self._documents.get_ref_doc_info(document.id_) is not None:
                raise stored_already(document.id_)
            self._add([document], on_error="raise")

    def insert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Add nodes, each as a document of its own, without transformations.

        Raises:
            DuplicateDocumentError: an id is stored already.
            DocumentError: nodes cannot be stored (BatchError for several, with ``failures``).
        """
        with self._callback_manager.as_trace("insert_nodes"):
            self._insert(nodes)

    def delete_nodes(self, node_ids: list[str], delete_from_docstore: bool = True, **delete_kwargs: Any) -> None:
        """Delete what is stored under these ids: those of ``ref_doc_info``, and of nodes that were inserted.

        Raises:
            ConfigError: an id is a retrieved passage's, which is a part of a whole document.
            DocumentNotFoundError: nothing is stored under an id.
        """
        for node_id in node_ids:
            document, colon, _ = node_id.rpartition(":")
            if node_id not in self._store and colon and document in self._store:
                raise ConfigError(
                    f"node {node_id!r} is a passage of {document!r}, which is stored whole: delete that with "
                    f"delete_ref_doc({document!r}), or change its text with update_ref_doc()"
                )
        self._store.delete(node_ids)

    def delete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = True, **delete_kwargs: Any) -> None:
        """Delete a document with all that was derived from it; there is no separate docstore to spare.

        Raises:
            DocumentNotFoundError: no document has this id.
        """
        self._documents.delete_ref_doc(ref_doc_id)

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Replace the document of the same id, or add it; options as in :meth:`insert`."""
        all_nodes([document])
        with self._callback_manager.as_trace("update_ref_doc"):
            self._add([document], on_error="raise", replace=True)

    def refresh_ref_docs(
        self, documents: Sequence[Document], *, on_error: OnError | None = None, **update_kwargs: Any
    ) -> list[bool]:
        """Bring the index up to date: new documents are added, changed ones replaced, the rest is left as it is.

        Of one that became empty or broken what is stored stays.

        Args:
            documents: all that may have changed.
            on_error: as in the class; None is the index's.
            update_kwargs: as in :meth:`insert`.

        Returns:
            For each document whether it was new or its text or metadata had changed.

        Raises:
            DocumentError: documents share an id, or none can be read (BatchError for several, with ``failures``);
                nothing was changed.
        """
        on_error = self._on_error if on_error is None else on_error
        documents = all_nodes(documents)
        with self._callback_manager.as_trace("refresh_ref_docs"):
            if self._transforms:
                changed = [d for d in documents if self._documents.get_document_hash(d.id_) != d.hash]
                self._add(changed, on_error=on_error, replace=True)
                refreshed = {document.id_ for document in changed}
            else:
                translated = load_documents(
                    to_documents(documents, on_error=on_error),
                    max_bytes=self._store.config.max_document_bytes,
                    on_error=on_error,
                )
                new = [d for d in translated if d.id not in self._store or self._store.get(d.id) != d]
                self._put(new, on_error, replace=True)
                refreshed = {document.id for document in new}
        return [document.id_ in refreshed for document in documents]

    def _add(self, documents: list[Document], *, on_error: OnError | None = None, replace: bool = False) -> None:
        """Store documents, transformed if the index transforms."""
        on_error = self._on_error if on_error is None else on_error
        nodes: Sequence[BaseNode] = documents
        hashes, before = None, {}
        if replace:
            infos = ((d.id_, self._documents.get_ref_doc_info(d.id_)) for d in documents)
            before = {id: info.node_ids for id, info in infos if info is not None}
        if self._transforms:
            hashes = {document.id_: document.hash for document in documents}
            transformations = extracting_whole(self._transformations)
            nodes = run_transformations(documents, transformations, show_progress=self._show_progress)
        self._put(to_documents(nodes, hashes, on_error), on_error, replace=replace)
        # Pieces that a new text has no more; only now, and where something of it is stored, so that nothing is lost.
        made = {node.node_id: node.ref_doc_id or node.node_id for node in nodes if node.node_id in self._store}
        stale = (node_id for id in before.keys() & set(made.values()) for node_id in before[id])
        self._store.delete(set(stale) - made.keys())

    def _put(self, documents: list[StoreDocument], on_error: OnError, *, replace: bool = False) -> None:
        if not documents:
            return
        with tqdm(desc="Compressing documents", disable=not self._show_progress) as bar:

            def progress(done: int, total: int, what: str) -> None:
                bar.total = total
                bar.set_postfix_str(what, refresh=False)
                bar.update(done - bar.n)

            self._store.add(documents, replace=replace, on_error=on_error, progress=progress)

    # What BaseIndex asks of an index.

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> IndexDict:
        """Store nodes; the docstore needs no filling, it is the store's."""
        return self._build_index_from_nodes(nodes)

    def _build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> IndexDict:
        self._insert(nodes)
        return ContextStoreStruct()

    def _insert(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        self._put(to_documents(nodes, on_error=self._on_error), self._on_error)

    def _delete_node(self, node_id: str, **delete_kwargs: Any) -> None:
        self.delete_nodes([node_id])

    async def ainsert(self, document: Document, **insert_kwargs: Any) -> None:
        """:meth:`insert` without blocking the event loop."""
        await asyncio.to_thread(self.insert, document)

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """:meth:`insert_nodes` without blocking the event loop."""
        await asyncio.to_thread(self.insert_nodes, nodes)

    async def adelete_nodes(self, node_ids: list[str], delete_from_docstore: bool = True, **delete_kwargs: Any) -> None:
        """:meth:`delete_nodes` without blocking the event loop."""
        await asyncio.to_thread(self.delete_nodes, node_ids)

    async def adelete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = True, **delete_kwargs: Any) -> None:
        """:meth:`delete_ref_doc` without blocking the event loop."""
        await asyncio.to_thread(self.delete_ref_doc, ref_doc_id, delete_from_docstore)

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """:meth:`update_ref_doc` without blocking the event loop."""
        await asyncio.to_thread(self.update_ref_doc, document)

    async def arefresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """:meth:`refresh_ref_docs` without blocking the event loop."""
        return await asyncio.to_thread(self.refresh_ref_docs, documents, **update_kwargs)
