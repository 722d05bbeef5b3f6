"""Answers written by a vLLM server beside, piece by piece."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import httpx2

from shared_context.integrations.vllm.selections import parameters, remove_selection, write_selection
from shared_context.model.assembled import AssembledPrompt
from shared_context.model.generation import Completion
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.serve.faults import Refusal
from shared_context.serve.vllm import VLLM, message_of, parsed

_TAKEN = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k",
          "seed": "seed", "stop": "stop"}  # fmt: skip


class RemoteStream:
    """One answer of vLLM's, piece by piece; whoever makes it closes it, however it ends.

    Args:
        vllm: who writes it.
        model: which assembles the prompt.
        entries: that are injected.
        options: as :meth:`SharedLLMModel.stream` takes them.

    Attributes:
        completion: what it took; None before its end.

    Raises:
        Refusal: something is asked for that is written in the process only.
    """

    def __init__(self, vllm: VLLM, model: SharedLLMModel, entries: int, options: Mapping[str, Any]):
        if options.get("response_schema") is not None:
            raise Refusal(
                400, "response_format is followed by answers that are written in the process, and not by an engine "
                "beside; leave it out, or serve without --engine.", param="response_format",
            )  # fmt: skip
        self._vllm, self._model, self._entries, self._options = vllm, model, entries, options
        self._opened = AsyncExitStack()
        self._prompt: AssembledPrompt | None = None
        self._id: str | None = None
        self._closed = False
        self.completion: Completion | None = None

    async def open(self, beside: Callable[..., Awaitable[Any]], assemble: Callable[[], AssembledPrompt]) -> None:
        """Hand the prompt over.

        Args:
            beside: calls what takes long in another thread.
            assemble: puts the prompt together.

        Raises:
            Refusal: the engine does not take it.
            SharedContextError: the context is one that the engine cannot be given.
        """
        names = await self._vllm.check(self._model)
        await beside(self._hand_over, assemble)
        assert self._prompt is not None  # it was handed over
        body: dict[str, Any] = {
            "model": names.reading if self._prompt.computed else names.base,
            "prompt": list(self._prompt.token_ids),
            "stream": True,
            "stream_options": {"include_usage": True},
            "stop_token_ids": list(self._model.ends),
            **{_TAKEN[option]: value for option, value in self._options.items() if option in _TAKEN},
        }
        if self._id is not None:
            transfer = parameters(self._id, self._prompt.computed)
            body |= {"kv_transfer_params": transfer, "cache_salt": self._id}
        try:
            response = await self._opened.enter_async_context(self._vllm.open(body))
            if response.status_code != 200:
                raise self._vllm.failed(response.status_code, message_of(parsed(await response.aread())))
        except httpx2.HTTPError as error:
            raise self._vllm.unreached(error) from error
        self._lines = response.aiter_lines()

    def _hand_over(self, assemble: Callable[[], AssembledPrompt]) -> None:
        prompt = self._prompt = assemble()
        if prompt.computed:
            ids = prompt.token_ids[: prompt.computed]
            self._id = write_selection(self._vllm.selections, ids, prompt.layers())
        if self._closed:  # meanwhile
            self._remove()

    def _remove(self) -> None:
        if self._id is not None:
            remove_selection(self._vllm.selections, self._id)

    async def close(self) -> None:
        """End the answer; the engine is told by the connection's end."""
        self._closed = True
        self._remove()
        await self._opened.aclose()

    async def pieces(self) -> AsyncGenerator[str]:
        """The pieces of the text."""
        began, first, said, finish_reason, tokens = time.perf_counter(), None, [], None, 0
        try:
            async for line in self._lines:
                data = line.removeprefix("data: ").strip()
                if not data or data == "[DONE]":
                    continue
                event = parsed(data)
                try:
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                    found = [(str(one.get("text") or ""), one.get("finish_reason")) for one in event["choices"]]
                except (KeyError, TypeError, AttributeError) as error:
                    raise self._vllm.failed(200, message_of(event)) from error
                for text, reason in found:
                    finish_reason = reason or finish_reason
                    if text:
                        first = first or time.perf_counter() - began
                        said.append(text)
                        yield text
        except httpx2.HTTPError as error:
            raise self._vllm.unreached(error) from error
        if finish_reason not in ("stop", "length"):
            raise self._vllm.failed(200, f"ended with {finish_reason!r}")
        seconds = time.perf_counter() - began
        assert self._prompt is not None  # it was handed over
        read = len(self._prompt.token_ids) - self._entries
        self.completion = Completion(
            "".join(said), finish_reason, read, self._entries, tokens, first or seconds, seconds
        )
