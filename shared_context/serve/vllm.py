"""Answers written by a vLLM server beside, which is handed selections through a folder that both see."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import torch

from shared_context.errors import ConfigError
from shared_context.integrations.vllm.selections import parameters, remove_selection, write_selection
from shared_context.model.assembled import AssembledPrompt
from shared_context.model.compressor import bottom_layers
from shared_context.model.generation import Completion
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.serve.faults import Refusal

CONNECT_SECONDS = 5.0
PROBE = "The keeper counts the boats at dusk, writes their names into the book and hangs the lantern by the door."
LIKENESS = 0.1
"""Nats by which the engine's likelihood of a token of PROBE may be off on average; half precision makes 0.01 of it."""
_TAKEN = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k",
          "seed": "seed", "stop": "stop"}  # fmt: skip


class VLLM:
    """A vLLM server with this library's connector.

    It is looked at before its first answer, and again after one that failed: whether it is there, has the same weights,
    reads the folder, and refuses a selection that is not in it, which it would without the connector answer from
    nothing.

    Args:
        url: of its root.
        selections: the folder that its connector reads.
        timeout: seconds for which it may be silent.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, url: str, selections: Path, timeout: float = 60.0):
        if not selections.is_dir():
            raise ConfigError(f"There is no folder {selections}; make the one that vLLM's connector was given.")
        self.url, self.selections, self.timeout = url.rstrip("/"), selections, timeout
        self._client = httpx2.AsyncClient(
            base_url=self.url,
            timeout=httpx2.Timeout(timeout, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=None),
            trust_env=False,
        )
        self._serves: dict[str, str] = {}
        self._checking = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def check(self, model: SharedLLMModel) -> str:
        """Make sure that answers will be those of a model; returns what the server calls it.

        Raises:
            Refusal: they would not, or there is nobody.
        """
        async with self._checking:
            if model.fingerprint not in self._serves:
                self._serves[model.fingerprint] = await self._look(model)
            return self._serves[model.fingerprint]

    async def _look(self, model: SharedLLMModel) -> str:
        served = (await self._json("GET", "/v1/models"))["data"]
        name = served[0]["id"] if served else ""
        ids, key_values, expected = await asyncio.to_thread(_probe, model)
        plain = {"model": name, "prompt": ids, "max_tokens": 1, "temperature": 0}
        try:
            answer = await self._json("POST", "/v1/completions", {**plain, "prompt_logprobs": 0})
            rows = answer["choices"][0]["prompt_logprobs"][1:]
            found = [row[str(id)]["logprob"] for row, id in zip(rows, ids[1:], strict=True)]
        except (Refusal, KeyError, TypeError, ValueError) as error:
            if isinstance(error, Refusal) and error.code != "engine_failed":
                raise
            raise self._other_model(name, model) from error
        if sum(abs(a - b) for a, b in zip(found, expected, strict=True)) / len(expected) > LIKENESS:
            raise self._other_model(name, model)
        missing = uuid4().hex
        if await self._answers(
            {**plain, "kv_transfer_params": parameters(missing, len(ids) - 1), "cache_salt": missing}
        ):
            raise Refusal(
                502,
                f"The engine at {self.url} has no connector: it answered without a selection that it was told of. "
                "Start it with --kv-transfer-config, see docs/serving.md.",
                code="engine_without_connector",
            )
        id = await asyncio.to_thread(write_selection, self.selections, ids[:-1], key_values)
        try:
            injected = {**plain, "kv_transfer_params": parameters(id, len(ids) - 1), "cache_salt": id}
            if not await self._answers(injected):
                raise Refusal(
                    502,
                    f"The engine at {self.url} cannot read selections from {self.selections}; start it with this "
                    "folder as 'selections' in kv_connector_extra_config.",
                    code="engine_selections",
                )
        finally:
            remove_selection(self.selections, id)
        return name

    def _other_model(self, name: str, model: SharedLLMModel) -> Refusal:
        return Refusal(
            502,
            f"The engine at {self.url} serves {name!r}, which is another model than {model.name!r}; start it with the "
            "model that the store was made with.",
            code="engine_other_model",
        )

    async def _answers(self, body: Mapping[str, Any]) -> bool:
        try:
            answer = await self._json("POST", "/v1/completions", body)
        except Refusal as error:
            if error.code != "engine_failed":
                raise
            return False
        return answer["choices"][0]["finish_reason"] != "error"

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = await self._client.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise self.unreached(error) from error
        try:
            found = response.json()
        except ValueError:
            found = None
        if response.status_code != 200 or not isinstance(found, dict):
            raise self.failed(response.status_code, _message(found))
        return found

    def open(self, body: Mapping[str, Any]) -> Any:
        """A streamed completion, to be entered."""
        return self._client.stream("POST", "/v1/completions", json=body)

    def forget(self) -> None:
        """Look anew before the next answer."""
        self._serves.clear()

    def unreached(self, error: httpx2.HTTPError) -> Refusal:
        """What a connection that failed is told as."""
        self.forget()
        if isinstance(error, httpx2.ReadTimeout | httpx2.WriteTimeout | httpx2.PoolTimeout):
            return Refusal(
                504, f"The engine at {self.url} said nothing for {self.timeout:g} seconds.", code="engine_slow"
            )
        return Refusal(503, f"The engine at {self.url} cannot be reached; is it running?", code="engine_down")

    def failed(self, status: int, message: str) -> Refusal:
        """What an answer that the engine did not finish is told as."""
        self.forget()
        return Refusal(
            502, f"The engine at {self.url} failed the request ({status}: {message[:200]}); its log has the reason.",
            code="engine_failed",
        )  # fmt: skip


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
        name = await self._vllm.check(self._model)
        await beside(self._hand_over, assemble)
        assert self._prompt is not None  # it was handed over
        body: dict[str, Any] = {
            "model": name,
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
                raise self._vllm.failed(response.status_code, _message(_parsed(await response.aread())))
        except httpx2.HTTPError as error:
            raise self._vllm.unreached(error) from error
        self._lines = response.aiter_lines()

    def _hand_over(self, assemble: Callable[[], AssembledPrompt]) -> None:
        prompt = self._prompt = assemble()
        if prompt.computed:
            ids = prompt.token_ids[: prompt.computed]
            self._id = write_selection(self._vllm.selections, ids, prompt.key_values)
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
                event = _parsed(data)
                if not isinstance(event, dict) or "choices" not in event:
                    raise self._vllm.failed(200, _message(event))
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                for choice in event["choices"]:
                    finish_reason = choice.get("finish_reason") or finish_reason
                    if choice.get("text"):
                        first = first or time.perf_counter() - began
                        said.append(choice["text"])
                        yield said[-1]
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


def _probe(model: SharedLLMModel) -> tuple[list[int], torch.Tensor, list[float]]:
    """A text's tokens, keys and values of all but the last, and the likelihood of all but the first."""
    ids = model.tokenize(PROBE).ids.tolist()
    given = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        rows = model.hf_model(given).logits[0, :-1].float().log_softmax(-1)
        layers = bottom_layers(model.hf_model, model.hf_model.config.num_hidden_layers)
        key_values = layers.key_values(given[:, :-1])[:, :, 0].transpose(2, 3).cpu()
    return ids, key_values, rows.gather(1, given[0, 1:, None])[:, 0].tolist()


def _parsed(data: str | bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _message(body: Any) -> str:
    """What an engine says in the body of an error."""
    error = body.get("error", body) if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else "no message"
