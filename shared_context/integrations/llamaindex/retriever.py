"""SharedContextRetriever: what a context store shows for a question, as LlamaIndex nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

from shared_context.config import DEFAULT_BUDGET
from shared_context.errors import ConfigError
from shared_context.integrations.llamaindex.copies import PlainOverStore
from shared_context.integrations.llamaindex.documents import REF_DOC_ID
from shared_context.integrations.llamaindex.filters import to_filters
from shared_context.integrations.llamaindex.nodes import to_nodes

if TYPE_CHECKING:
    from shared_context import SharedLLMContextStore


class SharedContextRetriever(PlainOverStore, BaseRetriever):
    """Retrieves from a :class:`SharedLLMContextStore`, for :class:`SharedContextSynthesizer` or for any other LLM.

    Nodes come best first, as from every retriever; each has its text, its place (``start_char_idx``,
    ``end_char_idx``), its document (``ref_doc_id``) and the document's metadata. What a budget selects side by side
    comes as one node; its text is widened to whole sentences, lines or rows, and its heading is among its metadata.

    Args:
        store: the store.
        budget: the most KV entries that all nodes together may hold; 1,024 unless
            ``similarity_top_k`` is given.
        similarity_top_k: retrieve this many passages instead of spending a budget.
        policy: how passages are scored: "hybrid", "late_interaction", "embedding", "lexical" or "last_token"; None
            leaves it to the store.
        filters: LlamaIndex's MetadataFilters, or the store's own filters as a dict.
        doc_ids: retrieve only from these documents, by the ids that they were handed over with; of none, nothing.
        prefilter: score only this many documents, the best by embedding.
        prefilter_chunks: score only this many chunks of these documents, again the best by embedding.
        min_score: score, between 0 and 1, below which nothing is retrieved; None leaves it to the store.
        floor: share of the best score below which nothing is retrieved although the budget has room: 0 spends all of
            it, 1 retrieves the best alone, None leaves it to the store. Goes with a budget.
        recent: tokens at the end of the last document that are retrieved first. Goes with a budget.
        fine, coarse: tokens for each KV entry of what is opened, and by level of what is not, as for the store's
            ``select``; None leaves them to the store. Go with a budget.
        hidden_keys: metadata to keep out of prompts and embeddings beside what documents exclude themselves.
        show_metadata: the model is shown the metadata, too, so they count in the budget.
        callback_manager, verbose: as in other retrievers.

    Raises:
        ConfigError: ``similarity_top_k`` with ``budget``, ``floor``, ``recent``, ``fine`` or ``coarse``.
        FilterError: ``filters`` cannot be translated.
    """

    def __init__(
        self,
        store: SharedLLMContextStore,
        *,
        budget: int | None = None,
        similarity_top_k: int | None = None,
        policy: str | None = None,
        filters: MetadataFilters | dict[str, Any] | None = None,
        doc_ids: Iterable[str] | None = None,
        prefilter: int | None = None,
        prefilter_chunks: int | None = None,
        min_score: float | None = None,
        floor: float | None = None,
        recent: int = 0,
        fine: int | None = None,
        coarse: Sequence[int | None] | None = None,
        hidden_keys: Sequence[str] = (),
        show_metadata: bool = True,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ):
        if budget is not None and similarity_top_k is not None:
            raise ConfigError(
                f"budget={budget} and similarity_top_k={similarity_top_k}: both say how much to retrieve, drop one"
            )
        asked = {"floor": floor, "recent": recent or None, "fine": fine, "coarse": coarse}
        given = ", ".join(f"{setting}={value}" for setting, value in asked.items() if value is not None)
        if given and similarity_top_k is not None:
            raise ConfigError(
                f"{given} with similarity_top_k={similarity_top_k}: that is how a budget is spent; give budget= instead"
            )
        self._store = store
        self._top_k = similarity_top_k
        self._scope: dict[str, Any] = {
            "policy": policy,
            "filters": to_filters(filters),
            "prefilter": prefilter,
            "prefilter_chunks": prefilter_chunks,
            "min_score": min_score,
        }
        self._spending: dict[str, Any] = {
            "budget": DEFAULT_BUDGET if budget is None else budget,
            "floor": floor,
            "recent": recent,
            "fine": fine,
            "coarse": coarse,
            "show_metadata": show_metadata,
        }
        self._doc_ids = list(doc_ids) if doc_ids is not None else None
        self._hidden_keys = tuple(hidden_keys)
        super().__init__(callback_manager=callback_manager, verbose=verbose)

    @property
    def store(self) -> SharedLLMContextStore:
        """The store it retrieves from."""
        return self._store

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        # What a query transform wants to be searched for (HyDE, for instance); otherwise the query itself.
        query = "\n".join(query_bundle.embedding_strs)
        scope = {**self._scope, "doc_ids": self._stored_ids()}
        if self._top_k is not None:
            passages = self._store.retrieve(query, k=self._top_k, **scope)
        else:
            passages = self._store.select(query, **self._spending, **scope).sources
        return to_nodes(passages, self._hidden_keys)

    def _stored_ids(self) -> list[str] | None:
        """Ids of what is stored of the documents to look in; an unknown one stays, for the store to name."""
        if self._doc_ids is None:
            return None
        made = ([id] if id in self._store else self._store.ids({REF_DOC_ID: id}) or [id] for id in self._doc_ids)
        return [id for ids in made for id in ids]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
