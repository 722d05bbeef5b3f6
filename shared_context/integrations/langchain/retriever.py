"""Selection from a store as a LangChain retriever, which is a document index as well."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.indexing import DeleteResponse, UpsertResponse
from langchain_core.indexing.base import DocumentIndex
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict

from shared_context import SharedLLMContextStore, SharedLLMModel, StoreConfig
from shared_context.config import Policy
from shared_context.errors import BatchError, ConfigError, UnreadableError
from shared_context.integrations.langchain.documents import SOURCE_KEY, from_passages, from_store, sync, to_store
from shared_context.integrations.langchain.pickles import PickledByReference
from shared_context.integrations.langchain.settings import DEFAULT_MODEL, new_or_given
from shared_context.store.embedder import Embedder
from shared_context.store.loading import OnError


class SharedContextRetriever(PickledByReference, DocumentIndex):
    """Finds the passages of whole documents that a question needs; the text serves any LLM.

        retriever = SharedContextRetriever(store=store, k=3)
        retriever.invoke("When does the night shift start?", filters={"year": {"$gte": 2024}})

    Every setting but ``store`` can be overridden in a call. Passages come best first, as Documents whose metadata is
    the stored document's with ``doc_id``, ``start`` and ``end`` (characters), ``level``, ``ratio`` and ``score``.
    What a budget selects side by side comes as one passage; its text is widened to whole sentences, lines or rows, and
    its ``heading`` is among its metadata.

    As a DocumentIndex it takes documents by ``upsert``, ``delete`` and ``get``, and from LangChain's ``index()``.

    Args:
        store: the store to search.
        budget: without ``k``, the passages chosen under this KV budget (entries); None is the store's default.
        k: this many passages whatever they hold; no budget then.
        policy: how nodes are scored; None is the store's default.
        filters: metadata filters, as for ``store.select``.
        doc_ids: search these documents only.
        prefilter: search only this many documents, those nearest by embedding.
        prefilter_chunks: search only this many chunks of them.
        min_score: score, between 0 and 1, below which nothing is retrieved; None is the store's.
        floor: share of the best score below which a budget is rather left unspent; None is the store's.
        recent: tokens at the end of the last document that come first whatever they say.
        fine, coarse: tokens for each KV entry of what is opened, and by level of what is not; None is the store's.
        show_metadata: the budget pays for metadata in front of passages, as a chain injects them.

    Raises:
        QueryError, BudgetError, FilterError: as ``store.select`` and ``store.retrieve`` do.
        ConfigError: a setting of selections comes with a ``k``.
    """

    store: SharedLLMContextStore
    budget: int | None = None
    k: int | None = None
    policy: Policy | None = None
    filters: dict[str, Any] | None = None
    doc_ids: list[str] | None = None
    prefilter: int | None = None
    prefilter_chunks: int | None = None
    min_score: float | None = None
    floor: float | None = None
    recent: int = 0
    fine: int | None = None
    coarse: list[int | None] | None = None
    show_metadata: bool = False

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
        adapter: str | Path | None = None,
        dtype: str | Any = "auto",
        device: str = "auto",
        source_key: str | None = SOURCE_KEY,
        on_error: OnError = "skip",
        **settings: Any,
    ) -> SharedContextRetriever:
        """Store ``documents`` whole and search them.

        A program may be run again: what is stored already stays, what changed is replaced, and of the sources that
        ``documents`` come from nothing stays that is not among them.

        Args:
            documents: any LangChain loader's, not split. Their ids are kept; without one a document is named by its
                source. Of metadata, dates, paths and the like are stored as what stands for them in
                JSON.
            model: whose context trees the store holds; not used when ``store`` is given.
            store: add to this store instead of making one.
            path: folder of the store, made where there is none; None keeps it in memory.
            config, embedder: of a new store.
            adapter, dtype, device: as in ``SharedLLMModel.from_pretrained``, where ``model`` is a name.
            source_key: the key of metadata that says what a document was read from; None reads none.
            on_error: what becomes of one that is empty or broken: "skip" leaves it out with a warning in the log,
                "raise" refuses all, a function is called with its name and error.
            settings: the retriever's.

        Raises:
            ConfigError: ``store`` comes with settings for a new one.
            BatchError: some documents were refused; none was stored.
        """
        store = new_or_given(store, model, path, config, embedder, adapter=adapter, dtype=dtype, device=device)
        retriever = cls(store=store, **settings)
        sync(store, documents, source_key, on_error)
        return retriever

    def upsert(self, items: Sequence[Document], /, **kwargs: Any) -> UpsertResponse:
        """Store documents; those whose ids are taken take the place of what is stored.

        One that is empty or broken does not keep the others from being stored; it is among the ``failed``.

        Raises:
            DocumentError, BatchError: something else is wrong with one of them; none was stored.
            ConfigError: ``kwargs`` has anything in it.
        """
        _no_options("upsert", kwargs)
        documents = to_store(items)
        failed: list[str] = []
        try:
            succeeded = self.store.add(documents, replace=True, on_error=lambda name, _: failed.append(name))
        except UnreadableError:  # the only one
            succeeded, failed = [], [documents[0].id or "#0"]
        except BatchError as error:
            if not all(isinstance(each, UnreadableError) for each in error.failures.values()):
                raise
            succeeded, failed = [], list(error.failures)
        return UpsertResponse(succeeded=succeeded, failed=failed)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """Delete documents; one that is not stored is no failure.

        Raises:
            ValueError: ``ids`` are left out.
            ConfigError: ``kwargs`` has anything in it.
        """
        _no_options("delete", kwargs)
        if ids is None:
            raise ValueError("delete() needs the ids of the documents: retriever.delete(store.ids()) deletes all")
        known = [id for id in dict.fromkeys(ids) if id in self.store]
        self.store.delete(known)
        return DeleteResponse(num_deleted=len(known), succeeded=known, num_failed=0, failed=[])

    def get(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        """The documents of these ids, whole, those that are stored.

        Raises:
            ConfigError: ``kwargs`` has anything in it.
        """
        _no_options("get", kwargs)
        return [from_store(self.store.get(id)) for id in dict.fromkeys(ids) if id in self.store]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **overrides: Any
    ) -> list[Document]:
        settings = {
            "policy": self.policy,
            "filters": self.filters,
            "doc_ids": self.doc_ids,
            "prefilter": self.prefilter,
            "prefilter_chunks": self.prefilter_chunks,
            "min_score": self.min_score,
            "floor": self.floor,
            "recent": self.recent,
            "fine": self.fine,
            "coarse": self.coarse,
            "show_metadata": self.show_metadata,
            **overrides,
        }
        budget = settings.pop("budget", self.budget)
        k = settings.pop("k", None if "budget" in overrides else self.k)
        if k is None:
            return from_passages(self.store.select(query, budget=budget, **settings).sources)
        settings.pop("show_metadata")  # only a budget has to know
        for setting in ("floor", "recent", "fine", "coarse"):
            if value := settings.pop(setting):
                raise ConfigError(f"{setting}={value!r} goes with a budget and not with k={k}: leave one of them out")
        return from_passages(self.store.retrieve(query, k, **settings))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **overrides: Any
    ) -> list[Document]:
        return await run_in_executor(
            None, self._get_relevant_documents, query, run_manager=run_manager.get_sync(), **overrides
        )


def _no_options(method: str, options: dict[str, Any]) -> None:
    if options:
        raise ConfigError(f"{method}() takes no {', '.join(options)}: leave it out")
