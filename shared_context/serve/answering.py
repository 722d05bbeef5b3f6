"""From a request to the pieces of its answer: select, encode, write."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4

from opentelemetry.trace import Span

from shared_context.errors import ConfigError
from shared_context.model.generation import Completion, CompletionStream
from shared_context.serve.access import Caller
from shared_context.serve.citations import shown
from shared_context.serve.faults import Refusal
from shared_context.serve.protocol import ChatRequest, CompletionRequest
from shared_context.serve.room import Room
from shared_context.serve.stores import ServedStore
from shared_context.serve.vllm_stream import RemoteStream
from shared_context.store.citing import Citation, leaned_on
from shared_context.store.selection import JoinedSelections, Selection
from shared_context.store.turns import next_turn

Prompt = str | list[dict[str, Any]]


@dataclass
class Answer:
    """The answer to one request.

    Attributes:
        room: where it is worked on.
        served: the store that is asked.
        request: what is asked.
        caller: who asks.
        told: what the log says of the request; the answer adds what it took.
        id, created: as OpenAI's protocol has them.
        context: what is injected; None where nothing is. Known once the first piece has been read.
        passages: what of it is of documents, and of no conversation.
        completion: the whole answer; None before its end.
        citations: the passages that it rests on; none before its end.
    """

    room: Room
    served: ServedStore
    request: ChatRequest | CompletionRequest
    caller: Caller
    told: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    context: Selection | JoinedSelections | None = None
    passages: Selection | None = None
    completion: Completion = None  # type: ignore[assignment]  # it is there once all is written
    citations: list[Citation] = field(default_factory=list)

    async def pieces(self) -> AsyncGenerator[str]:
        """The pieces of the text; an empty one first, as soon as the request is known to be answered.

        Raises:
            Refusal: the queue is full.
            SharedContextError: the request cannot be answered.
        """
        engine, began = self.room.engine, time.monotonic()
        operation = "chat" if isinstance(self.request, ChatRequest) else "text_completion"
        about = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "shared_context",
            "gen_ai.request.model": self.served.name,
            "gen_ai.response.id": self.id,
        }
        with self.room.tracing.span(f"{operation} {self.served.name}", attributes=about) as span:
            async with engine.slot():
                with self.room.tracing.span("select", span):
                    selecting = time.monotonic()
                    prompt = await engine.beside(self._select)
                    seconds = {"selection": time.monotonic() - selecting}
                writing = self._in_process if self.room.vllm is None else self._by_vllm
                async with AsyncExitStack() as ending:
                    stream, pieces = await writing(prompt, span, ending)
                    yield ""
                    if self.room.vllm is None:
                        await self._encode(span)
                    with ExitStack() as first:
                        first.enter_context(self.room.tracing.span("first_token", span))
                        async for piece in pieces:
                            if "first_token" not in seconds:
                                seconds["first_token"] = time.monotonic() - began
                                first.close()
                            yield piece
                assert stream.completion is not None  # it was read to its end
                self.completion = stream.completion
                self.citations = await engine.beside(self._cite, prompt)
                await self._remember()
            seconds["answer"] = time.monotonic() - began
            span.set_attribute("gen_ai.usage.input_tokens", self.completion.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", self.completion.completion_tokens)
            span.set_attribute("gen_ai.response.finish_reasons", [self.completion.finish_reason])
            self.told["tokens"] = self.completion.completion_tokens
            self.told["injected"] = self.completion.context_entries
            self.room.metrics.answer(self.served.name, self.completion, seconds)

    async def _in_process(
        self, prompt: Prompt, span: Span, ending: AsyncExitStack
    ) -> tuple[CompletionStream, AsyncIterator[str]]:
        options = self.request.generation(self.room.config.max_tokens)
        stream = await self.room.engine.beside(
            self.served.store.model.stream, prompt, context=self.context, formatted=self._formatted, **options
        )
        return stream, await ending.enter_async_context(aclosing(self.room.engine.pieces(stream)))

    async def _by_vllm(
        self, prompt: Prompt, span: Span, ending: AsyncExitStack
    ) -> tuple[RemoteStream, AsyncIterator[str]]:
        model, entries = self.served.store.model, self.context.kv_entries if self.context else 0
        options = self.request.generation(self.room.config.max_tokens)
        assert self.room.vllm is not None
        stream = RemoteStream(self.room.vllm, model, entries, options)
        ending.push_async_callback(stream.close)
        await self._encode(span)
        assemble = partial(
            model.assemble,
            prompt,
            context=self.context,
            max_new_tokens=options["max_new_tokens"],
            formatted=self._formatted,
        )
        await stream.open(self.room.engine.beside, assemble)
        return stream, await ending.enter_async_context(aclosing(stream.pieces()))

    async def _encode(self, span: Span) -> None:
        """Have the keys and values of the passages at hand."""
        if self.passages:
            with self.room.tracing.span("encode", span, {"shared_context.kv_entries": self.passages.kv_entries}):
                await self.room.engine.beside(self.served.store.warm, self.passages)

    def _cite(self, prompt: Prompt) -> list[Citation]:
        """What the answer rests on. An engine beside spares the model here work, so that it has to be asked for."""
        wanted = self.request.citations or ("attention" if self.room.vllm is None else "shown")
        if wanted == "shown" or self.context is None or not self.passages or not isinstance(self.request, ChatRequest):
            return shown(self.passages)
        try:
            attention = self.served.store.model.attribute(prompt, self.completion.text, context=self.context)
        except ConfigError:  # it is one that is not watched
            return shown(self.passages)
        # What is remembered of a conversation stands before the passages.
        return leaned_on(self.passages, attention[-len(self.passages.nodes) :])

    @property
    def _formatted(self) -> bool:
        return isinstance(self.request, CompletionRequest) and self.request.formatted

    @property
    def _memory(self) -> Any:
        assert isinstance(self.request, ChatRequest) and self.request.conversation is not None
        return self.served.store.conversation(self.caller.own(self.request.conversation))

    def _select(self) -> Prompt:
        """Choose the context; returns the prompt that it belongs to."""
        request, store = self.request, self.served.store
        asked = request.selecting(self.room.config.budget)
        self._check_documents(asked["doc_ids"])
        asked["filters"] = self.caller.narrowed(asked["filters"])
        if isinstance(request, CompletionRequest):
            if request.context:
                self.context = self.passages = store.select(request.text, **asked)
            return request.text
        messages = [message.turn() for message in request.messages]
        if request.conversation is None:
            if request.context:
                self.context = self.passages = store.select(_question(messages), **asked)
            return messages
        question = self._next_message(messages)
        if "budget" not in asked:
            raise Refusal(400, "A conversation is answered under a budget; give one instead of ratio.", param="ratio")
        if not request.context:
            self.context = self._memory.select(question, budget=asked["budget"]) or None
            return [*self._memory.recent(), {"role": "user", "content": question}]
        turns, self.context, self.passages = next_turn(store, self._memory, question, **asked)
        return turns

    def _check_documents(self, ids: list[str] | None) -> None:
        """Refuse documents that the caller may not see in the words for those that there are not."""
        if ids is None or self.caller.filters is None:
            return
        seen = set(self.served.store.ids(self.caller.filters))
        unknown = next((id for id in ids if id not in seen), None)
        if unknown is not None:
            raise Refusal(404, f"There is no document {unknown[:64]!r}.", code="document_not_found", param="doc_ids")

    @staticmethod
    def _next_message(messages: list[dict[str, str]]) -> str:
        """What is new in a conversation that the store remembers."""
        if len(messages) != 1 or messages[0]["role"] != "user":
            raise Refusal(
                400,
                f"A conversation is remembered by the store: send the user's new message alone, not "
                f"{len(messages)} messages; or leave conversation out and send all of them.",
                param="messages",
            )
        return messages[0]["content"]

    async def _remember(self) -> None:
        """Add the exchange to the conversation that it belongs to."""
        if isinstance(self.request, CompletionRequest) or self.request.conversation is None:
            return
        question = self.request.messages[-1].turn()["content"]
        for role, content in (("user", question), ("assistant", self.completion.text)):
            await self.room.engine.beside(self._memory.append, role, content)


def _question(messages: list[dict[str, str]]) -> str:
    """What is searched for: the user's last message."""
    users = [message["content"] for message in messages if message["role"] == "user"]
    return users[-1] if users else messages[-1]["content"]
