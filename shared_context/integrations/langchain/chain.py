"""Question answering over whole documents, as a LangChain Runnable."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NotRequired, Self

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, HumanMessage, MessageLikeRepresentation, convert_to_messages
from langchain_core.runnables import AddableDict, Runnable, RunnableConfig, RunnableSerializable, run_in_executor
from pydantic import ConfigDict
from typing_extensions import TypedDict

from shared_context import Selection, SharedLLMContextStore, SharedLLMModel, StoreConfig
from shared_context.errors import ModelMismatchError, QueryError
from shared_context.integrations.langchain.chat_model import ChatSharedLLM
from shared_context.integrations.langchain.documents import divide, to_store
from shared_context.integrations.langchain.messages import text_of
from shared_context.integrations.langchain.retriever import SharedContextRetriever
from shared_context.integrations.langchain.settings import DEFAULT_MODEL, new_or_given
from shared_context.store.embedder import Embedder


class ChainInput(TypedDict):
    """``input`` is the question; ``chat_history`` the turns before it, oldest first."""

    input: str | BaseMessage
    chat_history: NotRequired[list[MessageLikeRepresentation]]


class ChainOutput(TypedDict):
    """The input's keys, the passages that were injected, and the answer."""

    input: str | BaseMessage
    context: list[Document]
    answer: str


class SharedContextChain(RunnableSerializable[ChainInput, ChainOutput]):
    """Retrieves, injects and answers: the place of ``create_retrieval_chain`` over a vector store.

        chain = SharedContextChain.from_documents(loader.load())
        chain.invoke({"input": "How warm is the drying room kept?"})   # {"input": ..., "context": [...], "answer": ...}

    The passages are not pasted into the prompt: their KV are injected from the store, so a first token waits for the
    question's tokens alone. (A passage that the store does not hold word for word, changed by a postprocessor or from
    another retriever, is pasted.) ``stream`` yields the input, then the context, then the answer piece by piece; the
    pieces add up. Keyword arguments of a call (``max_tokens=64``) go to the model.

    Args:
        store: holds the documents.
        retriever: question in, passages out; a SharedContextRetriever, or one with a reranker or a filter behind it.
        llm: a chat model on the store's model.

    Raises:
        ModelMismatchError: ``llm`` runs on another model than the store's.
    """

    store: SharedLLMContextStore
    retriever: Runnable[str, list[Document]]
    llm: ChatSharedLLM

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    def __init__(
        self,
        *,
        store: SharedLLMContextStore,
        retriever: Runnable[str, list[Document]],
        llm: ChatSharedLLM,
        **fields: Any,
    ):
        super().__init__(store=store, retriever=retriever, llm=llm, **fields)
        # not in a validator, where pydantic would wrap the error in its own
        if llm.model.identity != store.model.identity:
            raise ModelMismatchError(
                f"llm runs on {llm.model.name} ({llm.model.identity}), the store was made with {store.model.name} "
                f"({store.model.identity}): use ChatSharedLLM(model=store.model)"
            )

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        model: SharedLLMModel | str | Path | None = None,
        *,
        store: SharedLLMContextStore | None = None,
        path: str | Path | None = None,
        config: StoreConfig | None = None,
        embedder: Embedder | Literal["auto"] | None = "auto",
        llm: ChatSharedLLM | None = None,
        **retrieval: Any,
    ) -> Self:
        """Store ``documents`` whole and answer from them.

        Args:
            documents: any LangChain loader's, not split. Their ids are kept, their metadata must be JSON values.
            model: the model that compresses and answers; None is that of ``llm``, or the default. Not used when
                ``store`` is given, which has its own.
            store: add to this store instead of making one.
            path: folder of the new store; None keeps it in memory.
            config, embedder: of the new store.
            llm: a ChatSharedLLM with settings of its own.
            retrieval: settings of the SharedContextRetriever (``budget``, ``k``, ``policy``, ``filters``, ...).

        Raises:
            BatchError: some documents were refused, for instance because they are stored already (then open the store
                and use :meth:`from_store`); none of them was stored.
            ConfigError: ``store`` comes with settings for a new one.
            ModelMismatchError: ``llm`` runs on another model than the store's.
        """
        if model is None:
            model = llm.model if llm is not None else DEFAULT_MODEL
        store = new_or_given(store, model, path, config, embedder)
        chain = cls.from_store(store, llm=llm, **retrieval)
        store.add(to_store(documents))
        return chain

    @classmethod
    def from_store(cls, store: SharedLLMContextStore, *, llm: ChatSharedLLM | None = None, **retrieval: Any) -> Self:
        """Answer from what ``store`` holds. ``llm`` and ``retrieval`` are as for :meth:`from_documents`."""
        retriever = SharedContextRetriever(store=store, **retrieval)
        return cls(store=store, retriever=retriever, llm=llm or ChatSharedLLM(model=store.model))

    def invoke(self, input: ChainInput, config: RunnableConfig | None = None, **kwargs: Any) -> ChainOutput:
        """Answer one question."""
        return self._call_with_config(self._answer, input, config, **kwargs)

    async def ainvoke(self, input: ChainInput, config: RunnableConfig | None = None, **kwargs: Any) -> ChainOutput:
        """Answer one question in a thread."""
        return await self._acall_with_config(self._aanswer, input, config, **kwargs)

    def stream(
        self, input: ChainInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[dict[str, Any]]:
        """Answer one question piece by piece."""
        yield from self._transform_stream_with_config(iter([input]), self._pieces, config, **kwargs)

    async def astream(
        self, input: ChainInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Answer one question piece by piece, in a thread."""

        async def inputs() -> AsyncIterator[ChainInput]:
            yield input

        async for piece in self._atransform_stream_with_config(inputs(), self._apieces, config, **kwargs):
            yield piece

    def _answer(self, input: ChainInput, config: RunnableConfig, **kwargs: Any) -> ChainOutput:
        passages = self.retriever.invoke(_question(input), config)
        messages, context = self._prompt(input, passages)
        message = self.llm.invoke(messages, config, context=context, **kwargs)
        return {**_passed_through(input), "context": passages, "answer": str(message.text)}

    async def _aanswer(self, input: ChainInput, config: RunnableConfig, **kwargs: Any) -> ChainOutput:
        passages = await self.retriever.ainvoke(_question(input), config)
        messages, context = await run_in_executor(config, self._prompt, input, passages)
        message = await self.llm.ainvoke(messages, config, context=context, **kwargs)
        return {**_passed_through(input), "context": passages, "answer": str(message.text)}

    def _pieces(self, inputs: Iterator[ChainInput], config: RunnableConfig, **kwargs: Any) -> Iterator[dict[str, Any]]:
        for input in inputs:
            question = _question(input)
            yield AddableDict(_passed_through(input))
            passages = self.retriever.invoke(question, config)
            yield AddableDict(context=passages)
            messages, context = self._prompt(input, passages)
            for chunk in self.llm.stream(messages, config, context=context, **kwargs):
                yield AddableDict(answer=str(chunk.text))

    async def _apieces(
        self, inputs: AsyncIterator[ChainInput], config: RunnableConfig, **kwargs: Any
    ) -> AsyncIterator[dict[str, Any]]:
        async for input in inputs:
            question = _question(input)
            yield AddableDict(_passed_through(input))
            passages = await self.retriever.ainvoke(question, config)
            yield AddableDict(context=passages)
            messages, context = await run_in_executor(config, self._prompt, input, passages)
            async for chunk in self.llm.astream(messages, config, context=context, **kwargs):
                yield AddableDict(answer=str(chunk.text))

    def _prompt(self, input: ChainInput, passages: list[Document]) -> tuple[list[BaseMessage], Selection | None]:
        """The conversation to be answered, and what is injected into it."""
        question = _question(input)
        spans, foreign = divide(self.store, passages)
        asked = HumanMessage("\n\n".join([*(passage.page_content for passage in foreign), question]))
        messages = [*convert_to_messages(input.get("chat_history") or []), asked]
        return messages, self.store.selection_from(spans, query=question) if spans else None


def _question(input: ChainInput) -> str:
    if not isinstance(input, dict) or "input" not in input:
        raise QueryError(f"SharedContextChain was given {input!r}: it takes {{'input': question}}")
    question = input["input"]
    return text_of(question) if isinstance(question, BaseMessage) else question


def _passed_through(input: ChainInput) -> dict[str, Any]:
    return {key: value for key, value in input.items() if key not in ("context", "answer")}
