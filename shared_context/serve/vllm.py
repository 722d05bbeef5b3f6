"""A vLLM server beside: it is handed selections, and hands over chunks, through a folder that both see."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import httpx2
import torch
from transformers import PreTrainedModel

from shared_context.errors import ConfigError, SelectionError
from shared_context.integrations.vllm import encodings
from shared_context.integrations.vllm.selections import parameters, remove_selection, write_selection
from shared_context.model.compressor import bottom_layers
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.serve.faults import Refusal

CONNECT_SECONDS = 5.0
PROBE = "The keeper counts the boats at dusk, writes their names into the book and hangs the lantern by the door."
LIKENESS = 0.1
"""Nats by which the engine's likelihood of a token of PROBE may be off on average. Half precision makes 0.01 of it, and
0.04 with an adapter, which is merged into the weights here and not there; of several adapters the nearest is taken."""
CHUNKS_AT_ONCE = 2
"""Chunks that the engine is asked for at a time: it says nothing before one is done, and many would take it longer."""
NEARNESS = 0.1
"""How far off the engine's keys and values of PROBE may be on average, of what these are on average themselves."""


@dataclass(frozen=True)
class Names:
    """What a server calls a model.

    Attributes:
        base: as it is, which answers what has no context.
        reading: with its adapter's decoding set, which answers behind a context.
        compressing: with its adapter's compressing set, which chunks are computed by.
    """

    base: str
    reading: str
    compressing: str


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
        self._chunks = asyncio.Semaphore(CHUNKS_AT_ONCE)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin, in the event loop that the connections belong to."""
        self._loop = asyncio.get_running_loop()

    def compress_for(self, model: SharedLLMModel) -> None:
        """Have the server compute the chunks of a model's stores, too, from now on."""
        model.compressor.engine = VLLMCompressor(self, model)

    def wait_for(self, work: Coroutine[Any, Any, torch.Tensor]) -> torch.Tensor:
        """What comes of something that the server is asked; waited for in another thread than the event loop's.

        Raises:
            Refusal: it fails.
        """
        assert self._loop is not None  # the application has started
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

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
            reading = await self._adapted(name, adapters, "decode", model, ids)
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
        id = await asyncio.to_thread(write_selection, self.selections, ids[:-1], key_values.unbind(1))
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
        compressing = name
        if model.compressor.engine is not None:
            if model.has_adapter:
                compressing = await self._adapted(name, adapters, "compress", model, ids)
            await self._check_chunk(compressing, model, ids)
        return Names(name, reading, compressing)

    async def _adapted(
        self, name: str, adapters: Sequence[str], part: Literal["decode", "compress"], model: SharedLLMModel,
        ids: Sequence[int],
    ) -> str:  # fmt: skip
        """By which name the server has a set of a model's adapter.

        Raises:
            Refusal: by none.
        """
        weights = model.reading_model if part == "decode" else model.compressing_model
        distances = {other: await self._distance(other, weights, ids) for other in adapters}
        nearest = min(distances, key=distances.__getitem__, default=name)
        if distances.get(nearest, math.inf) > LIKENESS:
            raise self._without_adapter(name, part, model)
        return nearest

    async def _check_chunk(self, name: str, model: SharedLLMModel, ids: Sequence[int]) -> None:
        """Make sure that the server's keys and values of a text are the model's own but for rounding.

        Raises:
            Refusal: there are none, or they are not.
        """
        prefix = list(model.prompt_format.prefix)
        own = (await asyncio.to_thread(_own_rows, model, ids)).float()
        layers, _, *shape = own.shape
        found = await self._chunk(name, [*prefix, *ids], len(prefix), (layers, *shape), model.dtype)
        if not (found.float() - own).abs().mean() <= NEARNESS * own.abs().mean():  # nor NaN
            raise self._unusable(f"they are not those of {model.name}")

    async def chunk(
        self,
        model: SharedLLMModel,
        ids: Sequence[int],
        prefix: int,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Keys and values of a chunk, as :class:`~shared_context.model.compressor.ChunkEngine` has them.

        Raises:
            Refusal: the server does not compute them, or what came cannot be used.
        """
        names = await self.check(model)
        async with self._chunks:
            return await self._chunk(names.compressing, ids, prefix, shape, dtype)

    async def _chunk(
        self, name: str, ids: Sequence[int], prefix: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        try:
            id = encodings.make_room(self.selections)
            try:
                # Salted, so that nobody can tell from the time it takes whether somebody else's document says the same.
                asked = {"model": name, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "cache_salt": id}
                await self._json(
                    "POST", "/v1/completions", {**asked, "kv_transfer_params": encodings.parameters(id, prefix)}
                )
                return await asyncio.to_thread(encodings.read_encoding, self.selections, id, ids, shape, dtype)
            finally:
                encodings.remove_room(self.selections, id)
        except SelectionError as error:
            raise self._unusable(str(error)) from error

    def _unusable(self, reason: str) -> Refusal:
        self.forget()
        return Refusal(
            502, f"The keys and values of a chunk that the engine at {self.url} computed cannot be used; the server's "
            "log has the reason under this request's id.", code="engine_key_values", reason=reason,
        )  # fmt: skip

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

    def _without_adapter(self, name: str, part: str, model: SharedLLMModel) -> Refusal:
        return Refusal(
            502,
            f"The engine at {self.url} serves {name!r} without the adapter of {model.name!r}; write it with "
            "shared-context export-lora ADAPTER FOLDER and start the engine with --enable-lora --lora-modules "
            f"{part}=FOLDER/{part}.",
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
            raise self.failed(response.status_code, message_of(found))
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
                504, f"The engine at {self.url} said nothing for {self.timeout:g} seconds; ask again when it has less "
                "to do, or serve with a longer --engine-timeout.", code="engine_slow",
            )  # fmt: skip
        return Refusal(503, f"The engine at {self.url} cannot be reached; is it running?", code="engine_down")

    def failed(self, status: int, message: str) -> Refusal:
        """What an answer that the engine did not finish is told as."""
        self.forget()
        return Refusal(
            502, f"The engine at {self.url} failed the request ({status}: {message[:200]}); its log has the reason.",
            code="engine_failed",
        )  # fmt: skip


class VLLMCompressor:
    """Chunks by a vLLM server, for the compressor of a model; asked in other threads than the event loop's."""

    name = "vllm"

    def __init__(self, vllm: VLLM, model: SharedLLMModel):
        self._vllm, self._model = vllm, model

    def key_values(
        self, ids: Sequence[int], prefix: int, shape: tuple[int, int, int, int], dtype: torch.dtype
    ) -> torch.Tensor:
        """As :class:`~shared_context.model.compressor.ChunkEngine` has it.

        Raises:
            Refusal: the server does not compute them, or what came cannot be used.
        """
        return self._vllm.wait_for(self._vllm.chunk(self._model, ids, prefix, shape, dtype))


def _own_rows(model: SharedLLMModel, ids: Sequence[int]) -> torch.Tensor:
    """A text's keys and values by this process, [layers, 2, tokens, kv_heads, head_dim]."""
    with torch.inference_mode():
        return model.compressor.key_values([torch.tensor(ids)])[:, :, 0].permute(1, 0, 3, 2, 4).cpu()


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


def parsed(data: str | bytes) -> Any:
    """JSON; None where it is none."""
    try:
        return json.loads(data)
    except ValueError:
        return None


def message_of(body: Any) -> str:
    """What an engine says in the body of an error."""
    error = body.get("error", body) if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else "no message"
