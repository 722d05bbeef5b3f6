"""Selection from a store as a LangChain retriever."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict

from shared_context import SharedLLMContextStore, SharedLLMModel, StoreConfig
from shared_context.config import Policy
from shared_context.integrations.langchain.documents import from_runs, to_store
from shared_context.integrations.langchain.settings import DEFAULT_MODEL, new_or_given
from shared_context.store.embedder import Embedder


class SharedContextRetriever(BaseRetriever):
    """Finds the passages of whole documents that a question needs; the text serves any LLM.

        retriever = SharedContextRetriever(store=store, k=3)
        retriever.invoke("When does the night shift start?", filters={"year": {"$gte": 2024}})

    Every setting but ``store`` can be overridden in a call. Passages come best first, as Documents whose metadata is
    the stored document's with ``doc_id``, ``start`` and ``end`` (characters), ``level``, ``ratio`` and ``score``.
    What a budget selects side by side comes as one passage, so that whoever reads it as text meets whole sentences.

    Args:
        store: the store to search.
        budget: without ``k``, the passages chosen under this KV budget (entries); None is the store's default.
        k: this many passages whatever they hold; no budget then.
        policy: how nodes are scored; None is the store's default.
        filters: metadata filters, as for ``store.select``.
        doc_ids: search these documents only.
        prefilter: search only this many documents, those nearest by embedding.

    Raises:
        QueryError, BudgetError, FilterError: as ``store.select`` and ``store.retrieve`` do.
    """

    store: SharedLLMContextStore
    budget: int | None = None
    k: int | None = None
    policy: Policy | None = None
    filters: dict[str, Any] | None = None
    doc_ids: list[str] | None = None
    prefilter: int | None = None

    model_config = ConfigDict(extra="forbid")  # a misspelt setting must not pass unseen

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        model: SharedLLMModel | str | Path = DEFAULT_MODEL,
        *,
        store: SharedLLMContextStore | None = None,
        path: str | Path | None = None,
        config: StoreConfig | None = None,
        embedder: Embedder | Literal["auto"] | None = "auto",
        **settings: Any,
    ) -> SharedContextRetriever:
        """Store ``documents`` whole and search them.

        Args:
            documents: any LangChain loader's, not split. Their ids are kept, their metadata must be JSON values.
            model: whose context trees the store holds; not used when ``store`` is given.
            store: add to this store instead of making one.
            path: folder of the new store; None keeps it in memory.
            config, embedder: of the new store.
            settings: the retriever's.

        Raises:
            ConfigError: ``store`` comes with settings for a new one.
            BatchError: some documents were refused; none of them was stored.
        """
        store = new_or_given(store, model, path, config, embedder)
        retriever = cls(store=store, **settings)
        store.add(to_store(documents))
        return retriever

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **overrides: Any
    ) -> list[Document]:
        settings = {
            "policy": self.policy,
            "filters": self.filters,
            "doc_ids": self.doc_ids,
            "prefilter": self.prefilter,
            **overrides,
        }
        budget = settings.pop("budget", self.budget)
        k = settings.pop("k", None if "budget" in overrides else self.k)
        if k is None:
            return from_runs(self.store.select(query, budget=budget, **settings).runs)
        return from_runs([node] for node in self.store.retrieve(query, k, **settings))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **overrides: Any
    ) -> list[Document]:
        return await run_in_executor(
            None, self._get_relevant_documents, query, run_manager=run_manager.get_sync(), **overrides
        )
