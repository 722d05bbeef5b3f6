"""Answers written by a vLLM server beside, which is handed selections through a folder that both see."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import torch
from transformers import PreTrainedModel

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
"""Nats by which the engine's likelihood of a token of PROBE may be off on average. Half precision makes 0.01 of it, and
0.04 with an adapter, which is merged into the weights here and not there; of several adapters the nearest is taken."""
_TAKEN = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k",
          "seed": "seed", "stop": "stop"}  # fmt: skip


@dataclass(frozen=True)
class Names:
    """What a server calls a model.

    Attributes:
        base: as it is, which answers what has no context.
        reading: with its adapter's decoding set, which answers behind a context.
    """

    base: str
    reading: str


class VLLM:
    """A vLLM server with this library's connector.

    It is looked at before its first answer, and again after one that failed: whether it is there, has the same weights,
    of an adapter too, reads the folder, and refuses a selection that is not in it, which it would without the connector
    answer from nothing.

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
        self._serves: dict[str, Names] = {}
        self._checking = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def check(self, model: SharedLLMModel) -> Names:
        """Make sure that answers will be those of a model; returns what the server calls it.

        Raises:
            Refusal: they would not, or there is nobody.
        """
        async with self._checking:
            if model.identity not in self._serves:
                self._serves[model.identity] = await self._look(model)
            return self._serves[model.identity]

    async def _look(self, model: SharedLLMModel) -> Names:
        name, *adapters = await self._models() or [""]
        ids, key_values = await asyncio.to_thread(_probe, model)
        if await self._distance(name, model.hf_model, ids) > LIKENESS:
            raise self._other_model(name, model)
        reading = name
        if model.has_adapter:
            distances = {other: await self._distance(other, model.reading_model, ids) for other in adapters}
            reading = min(distances, key=distances.__getitem__, default=name)
            if distances.get(reading, math.inf) > LIKENESS:
                raise self._without_adapter(name, model)
        plain = {"model": name, "prompt": ids, "max_tokens": 1, "temperature": 0}
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
        return Names(name, reading)

    async def _models(self) -> list[str]:
        listed = await self._json("GET", "/v1/models")
        try:
            return [str(one["id"]) for one in listed["data"]]
        except (KeyError, TypeError) as error:
            raise self.failed(200, "no list of models came") from error

    async def _distance(self, name: str, weights: PreTrainedModel, ids: Sequence[int]) -> float:
        """By how many nats the likelihoods of a text's tokens differ on average; infinity where it gives none."""
        asked = {"model": name, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        expected = await asyncio.to_thread(_likelihoods, weights, ids)
        try:
            rows = (await self._json("POST", "/v1/completions", asked))["choices"][0]["prompt_logprobs"][1:]
            found = [row[str(id)]["logprob"] for row, id in zip(rows, ids[1:], strict=True)]
            return sum(abs(a - b) for a, b in zip(found, expected, strict=True)) / len(expected)
        except (Refusal, KeyError, TypeError, ValueError) as error:
            if isinstance(error, Refusal) and error.code != "engine_failed":
                raise
            return math.inf

    def _without_adapter(self, name: str, model: SharedLLMModel) -> Refusal:
        return Refusal(
            502,
            f"The engine at {self.url} serves {name!r} without the adapter of {model.name!r}; write it with "
            "shared-context export-lora ADAPTER FOLDER and start the engine with --enable-lora --lora-modules "
            "decode=FOLDER/decode.",
            code="engine_without_adapter",
        )

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
        try:
            return answer["choices"][0]["finish_reason"] != "error"
        except (KeyError, IndexError, TypeError) as error:
            raise self.failed(200, "no completion came") from error

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
                try:
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                    found = [(str(one.get("text") or ""), one.get("finish_reason")) for one in event["choices"]]
                except (KeyError, TypeError, AttributeError) as error:
                    raise self._vllm.failed(200, _message(event)) from error
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


def _probe(model: SharedLLMModel) -> tuple[list[int], torch.Tensor]:
    """A text's tokens, and keys and values of all but the last."""
    ids = model.tokenize(PROBE).ids.tolist()
    with torch.inference_mode():
        layers = bottom_layers(model.hf_model, model.hf_model.config.num_hidden_layers)
        given = torch.tensor([ids[:-1]], device=model.device)
        return ids, layers.key_values(given)[:, :, 0].transpose(2, 3).cpu()


def _likelihoods(weights: PreTrainedModel, ids: Sequence[int]) -> list[float]:
    """Of all tokens but the first, in nats."""
    with torch.inference_mode():
        given = torch.tensor([list(ids)], device=weights.device)
        rows = weights(given).logits[0, :-1].float().log_softmax(-1)
        return rows.gather(1, given[0, 1:, None])[:, 0].tolist()


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
