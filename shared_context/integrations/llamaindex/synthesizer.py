"""SharedContextSynthesizer: answers over retrieved nodes by injecting their KV instead of pasting their text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.prompts.default_prompts import DEFAULT_TEXT_QA_PROMPT
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryType
from llama_index.core.types import RESPONSE_TEXT_TYPE

from shared_context.errors import ConfigError, ModelMismatchError
from shared_context.integrations.llamaindex.copies import PlainOverStore
from shared_context.integrations.llamaindex.llm import SharedLLM
from shared_context.integrations.llamaindex.nodes import divide, tells_metadata

if TYPE_CHECKING:
    from shared_context import SharedLLMContextStore

QUESTION = PromptTemplate("{query_str}")
ABOVE = "(the context above)"
"""Stands in a template's ``{context_str}`` where the whole context is injected: it precedes the prompt."""


def check_model(llm: SharedLLM, store: SharedLLMContextStore) -> None:
    """Raise ModelMismatchError unless ``llm`` runs the model whose KV ``store`` holds."""
    mine, own = llm.shared_model, store.model
    if mine.identity != own.identity:
        raise ModelMismatchError(
            f"the store holds KV of {own.name} ({own.identity}) and the llm runs {mine.name} ({mine.identity}), which "
            "cannot read them: answer with SharedLLM(model=store.model), or make a store with the other model"
        )


class SharedContextSynthesizer(PlainOverStore, BaseSynthesizer):
    """Turns the nodes it is given back into a selection of the store and answers over their KV, in one call.

    What postprocessors dropped is not injected; their order does not matter, the most promising passage is read last.
    Nodes that the store does not hold word for word (another retriever's, or text that was changed on the way, masked
    for instance) are pasted into the prompt as text beside the injected rest.

    Args:
        store: the store the nodes come from.
        llm: a SharedLLM over the store's model; None makes one.
        text_qa_template: wording of the question, with ``{query_str}``. Its ``{context_str}``, if it has one, is
            filled with the text that is pasted, or refers to the injected context. None asks the bare question,
            worded by LlamaIndex's default template if there is text to paste.
        output_cls: a pydantic class that the answer is parsed into.
        show_metadata: inject the documents' metadata in front of their passages, but for what they exclude. Where a
            node's metadata were changed on the way, none are injected.
        streaming, empty_response, callback_manager: as in other synthesizers.

    Raises:
        ModelMismatchError: ``llm`` runs another model than the one whose KV the store holds.
        ConfigError: ``llm`` is not a SharedLLM.
    """

    _llm: SharedLLM

    def __init__(
        self,
        store: SharedLLMContextStore,
        llm: SharedLLM | None = None,
        *,
        text_qa_template: BasePromptTemplate | None = None,
        output_cls: type[BaseModel] | None = None,
        show_metadata: bool = True,
        streaming: bool = False,
        empty_response: str | None = None,
        callback_manager: CallbackManager | None = None,
    ):
        llm = llm if llm is not None else SharedLLM(model=store.model)
        if not isinstance(llm, SharedLLM):
            raise ConfigError(
                f"llm is a {type(llm).__name__}: KV can be injected into a SharedLLM only; for another LLM use "
                "LlamaIndex's get_response_synthesizer, which pastes text"
            )
        check_model(llm, store)
        if streaming and output_cls is not None:
            raise ConfigError("streaming=True with output_cls: an answer is parsed when it is whole, leave one out")
        super().__init__(
            llm=llm,
            callback_manager=callback_manager,
            streaming=streaming,
            output_cls=output_cls,
            empty_response=empty_response,
        )
        self._store = store
        self._show_metadata = show_metadata
        self._text_qa_template = text_qa_template

    def _get_prompts(self) -> PromptDictType:
        return {"text_qa_template": self._text_qa_template or QUESTION}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._text_qa_template = prompts.get("text_qa_template", self._text_qa_template)

    # The base class hands texts to get_response; the nodes they come from go along as an argument of the response.

    def synthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        return super().synthesize(query, nodes, additional_source_nodes, chosen=nodes, **response_kwargs)

    async def asynthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        return await super().asynthesize(query, nodes, additional_source_nodes, chosen=nodes, **response_kwargs)

    def get_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        chosen: Sequence[NodeWithScore] | None = None,
        **prompt_args: Any,
    ) -> RESPONSE_TEXT_TYPE:
        """The answer over the nodes ``chosen``; where only ``text_chunks`` are given, over them as pasted text."""
        llm, template = self._prepare(query_str, text_chunks, chosen)
        if self._output_cls is not None:
            return llm.structured_predict(self._output_cls, template, **prompt_args)
        if self._streaming:
            return llm.stream(template, **prompt_args)
        return llm.predict(template, **prompt_args)

    async def aget_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        chosen: Sequence[NodeWithScore] | None = None,
        **prompt_args: Any,
    ) -> RESPONSE_TEXT_TYPE:
        """:meth:`get_response` without blocking the event loop."""
        llm, template = await asyncio.to_thread(self._prepare, query_str, text_chunks, chosen)
        if self._output_cls is not None:
            return await llm.astructured_predict(self._output_cls, template, **prompt_args)
        if self._streaming:
            return await llm.astream(template, **prompt_args)
        return await llm.apredict(template, **prompt_args)

    def _prepare(
        self, query_str: str, text_chunks: Sequence[str], chosen: Sequence[NodeWithScore] | None
    ) -> tuple[SharedLLM, BasePromptTemplate]:
        """The LLM with what is injected, and the question as it is put, with the text that has to be pasted."""
        selection, pasted = None, list(text_chunks)
        if chosen is not None:
            spans, foreign = divide(chosen, self._store)
            told = self._show_metadata and tells_metadata(chosen, self._store)
            selection = self._store.selection_from(spans, query=query_str, show_metadata=told) if spans else None
            pasted = [scored.get_content(metadata_mode=MetadataMode.LLM) for scored in foreign]
        template = self._text_qa_template or QUESTION
        text = "\n\n".join(filter(None, pasted))
        if "context_str" in template.template_vars:
            template = template.partial_format(context_str=text or ABOVE)
        elif text:
            query_str = DEFAULT_TEXT_QA_PROMPT.format(context_str=text, query_str=query_str)
        # Formatting makes a copy, and needs to: structured output leaves its parser in the template it is given.
        return self._llm.with_context(selection), template.partial_format(query_str=query_str)
