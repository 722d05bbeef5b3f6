"""The endpoint on Ray Serve: replicas of the front, and a deployment of each shard.

Needs the extra ``ray-serve``. An application is one file, whose ``args`` are :class:`Fronts`::

    applications:
      - name: handbook
        import_path: shared_context.serve.ray:app
        args: {stores: [/data/handbook.shards], keys: /data/keys.json}
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from shared_context.config import require
from shared_context.errors import ConfigError, ShardUnavailableError, StoreFormatError
from shared_context.model.loading import read_config
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.remote.address import is_address, is_store
from shared_context.serve.access import Keys
from shared_context.serve.app import create_app
from shared_context.serve.opening import named, only_model, open_stores
from shared_context.serve.settings import ServeConfig
from shared_context.serve.vllm import VLLM
from shared_context.shards.opening import made_with, number_of_shards
from shared_context.shards.ray_workers import answered
from shared_context.shards.shard import Place, Shard
from shared_context.store.shard_folders import shard_folders
from shared_context.store.store import SharedLLMContextStore

try:
    from ray import serve
    from ray.exceptions import RayActorError
    from ray.serve.handle import DeploymentHandle
except ImportError as error:
    raise ImportError(f"Ray Serve is needed for this: pip install 'sharedllm[ray-serve]' ({error})") from error

AGAIN_AFTER = 0.2
"""Seconds after which a shard is asked again that died."""


class Fronts(BaseModel):
    """What is served, and how: the ``args`` of an application; limits as in :class:`ServeConfig`.

    Attributes:
        stores: addresses, or absolute folders that every machine reaches; NAME=PLACE gives one another name.
        keys: file of API keys, which every machine reaches; None needs ``anyone``.
        anyone: whoever reaches Ray Serve's port may ask.
        model, adapter, dtype, device: as for ``shared-context serve``.
        engine: address of a vLLM that writes the answers; ``selections`` is the folder that both read.
        engine_compresses: it computes the keys and values of chunks, too.
        shard_timeout: seconds that a shard may take for an answer, starting anew where it has died included.
    """

    model_config = ConfigDict(extra="forbid")

    stores: list[str]
    keys: str | None = None
    anyone: bool = False
    model: str | None = None
    adapter: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    engine: str | None = None
    selections: str | None = None
    engine_compresses: bool = False
    parallel: int = ServeConfig.parallel
    queue: int = ServeConfig.queue
    budget: int = ServeConfig.budget
    max_tokens: int = ServeConfig.max_tokens
    shard_timeout: float = 60.0

    def serving(self) -> ServeConfig:
        """The limits of one replica."""
        return ServeConfig(parallel=self.parallel, queue=self.queue, budget=self.budget, max_tokens=self.max_tokens)


class ShardReplica:
    """One shard of a store, for all fronts.

    Args:
        place: of its store.
        model: name or folder of the model, of which the vocabulary is needed and no weights.
    """

    def __init__(self, place: Place, model: str):
        config, _, _ = read_config(model)
        self._shard = Shard(place, config.vocab_size, read_only=isinstance(place, tuple))

    def ask(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """What a method of the shard answers."""
        return getattr(self._shard, method)(*arguments)


class Handles:
    """Shards behind Ray Serve, as the workers of a store. One that dies is started again, and asked again.

    Args:
        handles: of the shards in their order.
        timeout: seconds that each may take.
    """

    def __init__(self, handles: Sequence[DeploymentHandle], timeout: float):
        self._handles, self._timeout = handles, timeout

    def __len__(self) -> int:
        return len(self._handles)

    def ask(self, questions: dict[int, tuple[str, tuple[Any, ...]]]) -> dict[int, Any]:
        """Ask several at once."""
        end = time.monotonic() + self._timeout
        asked = {number: self._handles[number].ask.remote(*question) for number, question in questions.items()}
        return {number: self._answer(number, questions[number], response, end) for number, response in asked.items()}

    def _answer(self, number: int, question: tuple[str, tuple[Any, ...]], response: Any, end: float) -> Any:
        while True:
            left = max(0.0, end - time.monotonic())
            try:
                return answered(partial(response.result, timeout_s=left))
            except RayActorError as error:
                if left < AGAIN_AFTER:
                    return ShardUnavailableError(str(error).partition("\n")[0])
            except TimeoutError:
                return ShardUnavailableError(f"no answer for {self._timeout:g} seconds")
            time.sleep(AGAIN_AFTER)
            response = self._handles[number].ask.remote(*question)

    def close(self) -> None:
        """Nothing: Ray Serve ends them."""


class Front:
    """The endpoint; it answers and changes no document.

    Args:
        fronts: what is served.
        shards: by the names of stores of shards, the handles of these.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, fronts: Fronts, shards: dict[str, list[DeploymentHandle]]
    ) -> None:
        self._fronts, self._opened = fronts, ExitStack()
        # Handles are waited for, which no event loop may do.
        self._stores = await asyncio.to_thread(self._open, fronts, shards)

    def _open(self, fronts: Fronts, shards: dict[str, list[DeploymentHandle]]) -> dict[str, SharedLLMContextStore]:
        load: Callable[[str], SharedLLMModel] = partial(
            SharedLLMModel.from_pretrained, adapter=fronts.adapter, dtype=fronts.dtype, device=fronts.device
        )
        workers = {
            name: {"workers": partial(_handles, handles, fronts.shard_timeout)} for name, handles in shards.items()
        }
        return open_stores(named(fronts.stores), self._opened, load=load, model=fronts.model, options=workers)

    def __serve_build_asgi_app__(self) -> FastAPI:
        fronts, vllm = self._fronts, None
        if fronts.engine is not None and fronts.selections is not None:
            model = only_model(self._stores)
            vllm = VLLM(fronts.engine, Path(fronts.selections), fronts.serving().engine_timeout)
            if fronts.engine_compresses:
                vllm.compress_for(model)
        keys = Keys(Path(fronts.keys)) if fronts.keys is not None else None
        return create_app(self._stores, config=fronts.serving(), keys=keys, vllm=vllm, read_only=True)

    def __del__(self) -> None:
        self._opened.close()


def _handles(handles: Sequence[DeploymentHandle], timeout: float, *_: object) -> Handles:
    return Handles(handles, timeout)


def app(args: Fronts) -> serve.Application:
    """The application: deployments ``front`` and, of a store of shards NAME, ``NAME-shard-000`` and so on.

    Each deployment is scaled by its own entry in the file. Several replicas of one shard are for published stores: in
    a folder that somebody writes to, they would differ for a moment.

    Raises:
        ConfigError: settings that exclude each other, or nobody said who may ask.
        StoreFormatError, StoreUnavailableError, SnapshotNotFoundError: there is no store at a place.
    """
    if args.keys is None and not args.anyone:
        raise ConfigError("keys=None: everybody who reaches the port could ask. Give a file of keys, or anyone: true.")
    if (args.engine is None) is not (args.selections is None):
        raise ConfigError("engine and selections go together: vLLM's address, and the folder that its connector reads.")
    limits = args.serving()
    if args.engine_compresses and args.engine is None:
        raise ConfigError("engine_compresses: name the engine that is to compute chunks, engine and selections.")
    shards = {name: _shards(name, place, args.model) for name, place in named(args.stores).items()}
    front = serve.deployment(
        serve.ingress()(Front), name="front", max_ongoing_requests=limits.parallel + limits.queue + BESIDE
    )
    return front.bind(args, {name: bound for name, bound in shards.items() if bound})


BESIDE = 16
"""Requests that a front takes beyond its queue, so that it is the front that refuses them, with 429 and a time."""


def _shards(name: str, place: str, model: str | None) -> list[serve.Application]:
    """Those of a store; none where it is of one file."""
    absolute = is_address(place) or Path(place).is_absolute()
    require(absolute, f"the place of the store {name!r}", place, "must be an address or an absolute folder")
    if not is_store(place):
        raise StoreFormatError(f"there is no store in {place}: make one with shared-context ingest, or check the path")
    count = number_of_shards(place)
    if count is None:
        return []
    places: Sequence[Place] = (
        [(place, number) for number in range(count)] if is_address(place) else shard_folders(Path(place))
    )
    model = model or made_with(place)["model"]
    names = (f"{name}-shard-{number:03}" for number in range(count))
    # It waits more than it computes; the file may give it more.
    shard = serve.deployment(ShardReplica, ray_actor_options={"num_cpus": 0.1})
    return [shard.options(name=of).bind(at, model) for of, at in zip(names, places, strict=True)]
