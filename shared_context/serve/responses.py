"""Answers in OpenAI's form, whole or as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from shared_context.errors import SharedContextError
from shared_context.serve.answering import Answer
from shared_context.serve.citations import annotation, seen_parts
from shared_context.serve.faults import Refusal
from shared_context.serve.protocol import ChatRequest

DONE = "data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Server-sent events. When the client goes away their source is closed at once."""

    def __init__(self, events: AsyncGenerator[str]):
        self._events = events
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


def event(value: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def usage(answer: Answer) -> dict[str, Any]:
    """What an answer took. Injected entries are counted as cached tokens of the prompt, which they stand for."""
    completion = answer.completion
    prompt = completion.prompt_tokens + completion.context_entries
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion.completion_tokens,
        "total_tokens": prompt + completion.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": completion.context_entries,
            "injected_tokens": completion.context_entries,
        },
    }


def citations(answer: Answer) -> list[dict[str, Any]]:
    """The citations of an answer."""
    return [annotation(citation, answer.completion.text) for citation in answer.citations]


def chat_completion(answer: Answer) -> dict[str, Any]:
    """A whole chat completion."""
    message = {
        "role": "assistant",
        "content": answer.completion.text,
        "refusal": None,
        "annotations": citations(answer),
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.completion.finish_reason}
    return {**_head(answer), **_seen(answer), "choices": [choice], "usage": usage(answer)}


def text_completion(answer: Answer) -> dict[str, Any]:
    """A whole text completion."""
    completion = answer.completion
    choice = {"index": 0, "text": completion.text, "logprobs": None, "finish_reason": completion.finish_reason}
    return {**_head(answer), **_seen(answer), "choices": [choice], "usage": usage(answer)}


async def events(answer: Answer, pieces: AsyncGenerator[str]) -> AsyncGenerator[str]:
    """The pieces of an answer as events; what goes wrong meanwhile is the last one."""
    chat = isinstance(answer.request, ChatRequest)
    head = _head(answer, chunk=True)

    def chunk(piece: str | None, finish_reason: str | None = None, **delta: Any) -> str:
        if chat:
            content = {} if piece is None else {"content": piece}
            choice = {"index": 0, "delta": {**delta, **content}, "logprobs": None, "finish_reason": finish_reason}
        else:
            choice = {"index": 0, "text": piece or "", "logprobs": None, "finish_reason": finish_reason}
        return event({**head, "choices": [choice]})

    try:
        if chat:
            yield chunk("", role="assistant")
        if answer.request.seen:
            yield event({**head, **_seen(answer), "choices": []})
        async for piece in pieces:
            yield chunk(piece)
        last = {"annotations": citations(answer)} if chat else {}
        yield chunk(None, answer.completion.finish_reason, **last)
        options = answer.request.stream_options
        if options is not None and options.include_usage:
            yield event({**head, "choices": [], "usage": usage(answer)})
        yield DONE
    except (Refusal, SharedContextError) as error:
        refusal = error if isinstance(error, Refusal) else Refusal.of(error)
        answer.told["reason"] = refusal.reason or refusal.code
        yield event(refusal.body())
    finally:
        await pieces.aclose()


def _seen(answer: Answer) -> dict[str, Any]:
    """What was seen of documents, where it was asked for."""
    if not answer.request.seen:
        return {}
    fine = answer.request.fine or answer.served.store.config.tree.fine
    return {"seen": seen_parts(answer.passages, fine)}


def _head(answer: Answer, *, chunk: bool = False) -> dict[str, Any]:
    chat = isinstance(answer.request, ChatRequest)
    kind = "chat.completion" if chat else "text_completion"
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{answer.id}",
        "object": f"{kind}.chunk" if chat and chunk else kind,
        "created": answer.created,
        "model": answer.served.name,
    }
