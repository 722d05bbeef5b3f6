"""Question answering over whole documents, as a LangChain Runnable."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NotRequired, Self, cast

from langchain_core.documents import Document
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import (
    BaseMessage,
    HumanMessage,
    MessageLikeRepresentation,
    SystemMessage,
    convert_to_messages,
)
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import (
    AddableDict,
    Runnable,
    RunnableConfig,
    RunnableSequence,
    RunnableSerializable,
    run_in_executor,
)
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.tools import BaseTool
from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from shared_context import SharedLLMContextStore, SharedLLMModel, StoreConfig
from shared_context.errors import ConfigError, ModelMismatchError, QueryError
from shared_context.integrations.langchain.chat_model import ChatSharedLLM
from shared_context.integrations.langchain.documents import SOURCE_KEY, as_text, divide, sync
from shared_context.integrations.langchain.messages import answer_of, text_of
from shared_context.integrations.langchain.pickles import PickledByReference
from shared_context.integrations.langchain.retriever import SharedContextRetriever
from shared_context.integrations.langchain.settings import DEFAULT_MODEL, new_or_given, of_type
from shared_context.model.prompt import CONTEXT_FOOTER, CONTEXT_HEADER
from shared_context.store.embedder import Embedder
from shared_context.store.loading import OnError

PASSAGE_SEPARATOR = "\n\n"


class ChainInput(TypedDict):
    """``input`` is the question; ``chat_history`` the turns before it, oldest first."""

    input: str | BaseMessage
    chat_history: NotRequired[list[MessageLikeRepresentation]]


class ChainOutput(TypedDict):
    """The input's keys, the passages that were injected, and the answer: a text, or what a parser in ``llm`` made."""

    input: str | BaseMessage
    context: list[Document]
    answer: Any


class SharedContextChain(PickledByReference, RunnableSerializable[ChainInput, ChainOutput]):
    """Retrieves, injects and answers: the place of ``create_retrieval_chain`` over a vector store.

        chain = SharedContextChain.from_documents(loader.load())
        chain.invoke({"input": "How warm is the drying room kept?"})   # {"input": ..., "context": [...], "answer": ...}

    With a ChatSharedLLM of the store's model the passages are not pasted into the prompt: their KV are injected from
    the store, so a first token waits for the question's tokens alone. (A passage that the store does not hold word for
    word, changed by a postprocessor or from another retriever, is pasted.) Any other chat model is given all of them as
    text. ``stream`` yields the input, then the context, then the answer piece by piece; the pieces add up. Keyword
    arguments of a call (``max_tokens=64``) go to the model.

    Args:
        store: holds the documents.
        retriever: question in, passages out; a SharedContextRetriever, or one with a reranker or a filter behind it.
        llm: a chat model or an LLM, with whatever is bound to it; with structured output, the answer is the object.
        prompt: a prompt template with ``{input}``, and ``{chat_history}`` and ``{context}`` where it wants them; other
            keys of the chain's input are its variables, too. What is pasted stands where ``{context}`` is, or in front
            of the last message; what is injected stands in front of the first user message wherever ``{context}`` is.
        system_prompt: a system message in front of the conversation, in the place of a whole ``prompt``.
        show_metadata: an injected passage has its document's metadata in front of it.

    Raises:
        ModelMismatchError: ``llm`` is a ChatSharedLLM on another model than the store's.
        ConfigError: an argument is of another type, or ``prompt`` and ``system_prompt`` are both given.
    """

    store: SharedLLMContextStore
    retriever: Runnable[str, list[Document]]
    llm: Runnable[LanguageModelInput, Any]
    prompt: BasePromptTemplate | None = None
    system_prompt: str | None = None
    show_metadata: bool = True

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    def __init__(
        self,
        *,
        store: SharedLLMContextStore,
        retriever: Runnable[str, list[Document]],
        llm: Runnable[LanguageModelInput, Any],
        **fields: Any,
    ):
        # not in a validator, where pydantic would wrap the errors in its own
        of_type("store", store, SharedLLMContextStore, "a SharedLLMContextStore")
        of_type("retriever", retriever, Runnable, "a SharedContextRetriever or another Runnable")
        of_type("llm", llm, Runnable, "a chat model, such as ChatSharedLLM(model=store.model)")
        of_type("prompt", fields.get("prompt"), BasePromptTemplate | None, "a ChatPromptTemplate")
        of_type("system_prompt", fields.get("system_prompt"), str | None, "a text")
        fields |= {"store": store, "retriever": retriever, "llm": llm}
        super().__init__(**fields)
        ours = _shared_llm(llm)
        if ours is not None and ours.model.identity != store.model.identity:
            raise ModelMismatchError(
                f"llm runs on {ours.model.name} ({ours.model.identity}), the store was made with {store.model.name} "
                f"({store.model.identity}): use ChatSharedLLM(model=store.model)"
            )
        if self.prompt is not None:
            if self.system_prompt is not None:
                raise ConfigError("prompt= and system_prompt= are both given: put the system message into the prompt")
            if "input" not in self.prompt.input_variables:
                raise ConfigError(
                    f"prompt has the variables {self.prompt.input_variables}: put the question's place, {{input}}, in"
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
        adapter: str | Path | None = None,
        dtype: str | Any = "auto",
        device: str = "auto",
        llm: Runnable[LanguageModelInput, Any] | None = None,
        prompt: BasePromptTemplate | None = None,
        system_prompt: str | None = None,
        show_metadata: bool = True,
        source_key: str | None = SOURCE_KEY,
        on_error: OnError = "skip",
        **retrieval: Any,
    ) -> Self:
        """Store ``documents`` whole and answer from them.

        A program may be run again: what is stored already stays, what changed is replaced, and of the sources that
        ``documents`` come from nothing stays that is not among them.

        Args:
            documents: any LangChain loader's, not split. Their ids are kept; without one a document is named by its
                source. Of metadata, dates, paths and the like are stored as what stands for them in
                JSON.
            model: the model that compresses, and answers where ``llm`` is None; None is that of ``llm``, or the
                default. Not used when ``store`` is given, which has its own.
            store: add to this store instead of making one.
            path: folder of the store, made where there is none; None keeps it in memory.
            config, embedder: of a new store.
            adapter, dtype, device: as in ``SharedLLMModel.from_pretrained``, where ``model`` is a name.
            llm, prompt, system_prompt, show_metadata: as for the class; ``llm`` may be a ChatSharedLLM with settings of
                its own, or any other chat model.
            source_key: the key of metadata that says what a document was read from; None reads none.
            on_error: what becomes of one that is empty or broken: "skip" leaves it out with a warning in the log,
                "raise" refuses all, a function is called with its name and error.
            retrieval: settings of the SharedContextRetriever (``budget``, ``k``, ``policy``, ``filters``, ...).

        Raises:
            BatchError: some documents were refused; none was stored.
            ConfigError: ``store`` comes with settings for a new one, or an argument is of another type.
            ModelMismatchError: ``llm`` is a ChatSharedLLM on another model than the store's.
        """
        if model is None:
            ours = _shared_llm(llm)
            model = ours.model if ours is not None else DEFAULT_MODEL
        store = new_or_given(store, model, path, config, embedder, adapter=adapter, dtype=dtype, device=device)
        chain = cls.from_store(
            store, llm=llm, prompt=prompt, system_prompt=system_prompt, show_metadata=show_metadata, **retrieval
        )
        sync(store, documents, source_key, on_error)
        return chain

    @classmethod
    def from_store(
        cls,
        store: SharedLLMContextStore,
        *,
        llm: Runnable[LanguageModelInput, Any] | None = None,
        prompt: BasePromptTemplate | None = None,
        system_prompt: str | None = None,
        show_metadata: bool = True,
        **retrieval: Any,
    ) -> Self:
        """Answer from what ``store`` holds. The other arguments are as for :meth:`from_documents`."""
        of_type("store", store, SharedLLMContextStore, "a SharedLLMContextStore")
        return cls(
            store=store,
            retriever=SharedContextRetriever(store=store, show_metadata=show_metadata, **retrieval),
            llm=llm or ChatSharedLLM(model=store.model),
            prompt=prompt,
            system_prompt=system_prompt,
            show_metadata=show_metadata,
        )

    def invoke(self, input: ChainInput, config: RunnableConfig | None = None, **kwargs: Any) -> ChainOutput:
        """Answer one question."""
        # What LangChain calls by the names of its arguments, config among them, its types know in one order alone.
        return self._call_with_config(self._answer, input, config, **kwargs)  # type: ignore[arg-type]

    async def ainvoke(self, input: ChainInput, config: RunnableConfig | None = None, **kwargs: Any) -> ChainOutput:
        """Answer one question in a thread."""
        return await self._acall_with_config(self._aanswer, input, config, **kwargs)  # type: ignore[arg-type]

    def stream(self, input: ChainInput, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[ChainOutput]:
        """Answer one question piece by piece."""
        # the same as in invoke
        yield from self._transform_stream_with_config(iter([input]), self._pieces, config, **kwargs)  # type: ignore[arg-type]

    async def astream(
        self, input: ChainInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[ChainOutput]:
        """Answer one question piece by piece, in a thread."""

        async def inputs() -> AsyncIterator[ChainInput]:
            yield input

        pieces = self._atransform_stream_with_config(inputs(), self._apieces, config, **kwargs)  # type: ignore[arg-type]
        async for piece in pieces:
            yield piece

    def as_tool(self, args_schema: type[BaseModel] | None = None, **options: Any) -> BaseTool:
        """A tool of one argument, ``input``, the question; ``args_schema`` and ``options`` as LangChain has them."""
        if args_schema is None:  # LangChain would ask for every key, those that may be left out among them
            options.setdefault("arg_types", {"input": str})
        return super().as_tool(args_schema, **options)

    def _answer(self, input: ChainInput, config: RunnableConfig, **kwargs: Any) -> ChainOutput:
        passages = self.retriever.invoke(_question(input), config)
        messages, context = self._prompt(input, passages)
        message = self.llm.invoke(messages, config, **context, **kwargs)
        return _output(**_passed_through(input), context=passages, answer=answer_of(message))

    async def _aanswer(self, input: ChainInput, config: RunnableConfig, **kwargs: Any) -> ChainOutput:
        passages = await self.retriever.ainvoke(_question(input), config)
        messages, context = await run_in_executor(config, self._prompt, input, passages)
        message = await self.llm.ainvoke(messages, config, **context, **kwargs)
        return _output(**_passed_through(input), context=passages, answer=answer_of(message))

    def _pieces(self, inputs: Iterator[ChainInput], config: RunnableConfig, **kwargs: Any) -> Iterator[ChainOutput]:
        for input in inputs:
            question = _question(input)
            yield _output(**_passed_through(input))
            passages = self.retriever.invoke(question, config)
            yield _output(context=passages)
            messages, context = self._prompt(input, passages)
            for chunk in self.llm.stream(messages, config, **context, **kwargs):
                yield _output(answer=answer_of(chunk))

    async def _apieces(
        self, inputs: AsyncIterator[ChainInput], config: RunnableConfig, **kwargs: Any
    ) -> AsyncIterator[ChainOutput]:
        async for input in inputs:
            question = _question(input)
            yield _output(**_passed_through(input))
            passages = await self.retriever.ainvoke(question, config)
            yield _output(context=passages)
            messages, context = await run_in_executor(config, self._prompt, input, passages)
            async for chunk in self.llm.astream(messages, config, **context, **kwargs):
                yield _output(answer=answer_of(chunk))

    def _prompt(self, input: ChainInput, passages: list[Document]) -> tuple[list[BaseMessage], dict[str, Any]]:
        """The conversation to be answered, and the keyword argument with what is injected into it, if anything is."""
        question, history = _question(input), _history(input)
        injected: dict[str, Any] = {}
        if _shared_llm(self.llm) is not None:
            spans, passages = divide(self.store, passages)
            if spans:
                selection = self.store.selection_from(spans, query=question, show_metadata=self.show_metadata)
                injected["context"] = selection
        pasted = PASSAGE_SEPARATOR.join(map(as_text, passages))
        if self.prompt is None:
            messages = [*history, HumanMessage(question)]
            if self.system_prompt:
                messages.insert(0, SystemMessage(self.system_prompt))
        else:
            given = {**input, "input": question, "chat_history": history, "context": pasted}
            messages = self.prompt.invoke(given).to_messages()
        if pasted and (self.prompt is None or "context" not in self.prompt.input_variables):
            last = messages[-1]
            text = f"{CONTEXT_HEADER}{pasted}{CONTEXT_FOOTER}{text_of(last)}"
            messages[-1] = last.model_copy(update={"content": text})
        return messages, injected


def _shared_llm(llm: object) -> ChatSharedLLM | None:
    """The ChatSharedLLM that answers, whatever is bound to it or parses its answers; None where another model does."""
    while isinstance(llm, RunnableBindingBase | RunnableSequence):
        llm = llm.bound if isinstance(llm, RunnableBindingBase) else llm.first
    return llm if isinstance(llm, ChatSharedLLM) else None


def _question(input: ChainInput) -> str:
    if not isinstance(input, dict) or "input" not in input:
        raise QueryError(f"SharedContextChain was given {input!r}: it takes {{'input': question}}")
    question = input["input"]
    if not isinstance(question, str | BaseMessage):
        raise QueryError(f"input is a {type(question).__name__}: the question is a text or a message")
    return text_of(question) if isinstance(question, BaseMessage) else question


def _history(input: ChainInput) -> list[BaseMessage]:
    history = input.get("chat_history") or []
    if isinstance(history, str | BaseMessage):
        raise QueryError(f"chat_history is a {type(history).__name__}: it takes a list of messages, oldest first")
    return convert_to_messages(history)


def _output(**some: Any) -> ChainOutput:
    """Some of an output's keys, or all of them; pieces of one output add up."""
    return cast("ChainOutput", AddableDict(some))


def _passed_through(input: ChainInput) -> dict[str, Any]:
    return {key: value for key, value in input.items() if key not in ("context", "answer")}
