"""The shards of a store as Ray actors, on as many machines as Ray has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from shared_context.config import require
from shared_context.errors import ConfigError, ShardUnavailableError, SharedContextError
from shared_context.shards.shard import Place, Shard


def import_ray(address: str | None = None) -> Any:
    """The module ray, connected.

    Args:
        address: of a cluster; None takes the one that is named by RAY_ADDRESS or that runs on this machine, or else
            starts one here. Where the program is connected already, that stays.

    Raises:
        ConfigError: it is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"Ray is needed for this ({error}): pip install sharedllm[ray]") from error
    if not ray.is_initialized():
        try:
            ray.init(address, log_to_driver=False, include_dashboard=False)
        except Exception as error:  # ray has no class for all that can go wrong there
            raise ConfigError(
                f"Ray cannot be started or reached ({error}). Check {address or 'RAY_ADDRESS'}; "
                "for a cluster that asks for a token set RAY_AUTH_MODE=token."
            ) from error
    return ray


def answered(get: Callable[[], Any]) -> Any:
    """What a shard elsewhere answers; the exception where it failed, its own where that is one of this library's.

    Args:
        get: waits for the answer.

    Raises:
        RayError: it did not answer.
    """
    from ray.exceptions import RayTaskError

    try:
        return get()
    except RayTaskError as error:
        cause = error.cause
        return cause if isinstance(cause, SharedContextError) else error


class RayWorkers:
    """Shards in Ray actors, one each. Folders must be reachable on every machine; addresses are fetched there.

    A process that dies is started again by Ray, and what was asked meanwhile is asked again.

    Args:
        places, vocabulary, read_only: as :class:`~shared_context.shards.crew.LocalWorkers` takes them.
        device: left aside: shards compare on processors.
        timeout: seconds that a shard may take for an answer, and for starting again where it has died.
        start_timeout: seconds that the shards may take to be started and read.
        restarts: how often a process that dies is started again.
        options: of the actors, see ``ray.remote``: ``num_cpus``, ``resources`` and so on.
    """

    def __init__(
        self,
        places: Sequence[Place],
        vocabulary: int,
        read_only: bool,
        device: str = "cpu",
        *,
        timeout: float = 60.0,
        start_timeout: float = 600.0,
        restarts: int = 3,
        **options: Any,
    ):
        require(timeout > 0, "timeout", timeout, "must be more seconds than 0")
        self._ray, self._timeout = import_ray(), timeout
        actor = self._ray.remote(Shard).options(max_restarts=restarts, max_task_retries=restarts, **options)
        self._actors = [actor.remote(place, vocabulary, read_only) for place in places]
        started = [actor.__ray_ready__.remote() for actor in self._actors]
        self._ray.wait(started, num_returns=len(started), timeout=start_timeout)

    def __len__(self) -> int:
        return len(self._actors)

    def ask(self, questions: dict[int, tuple[str, tuple[Any, ...]]]) -> dict[int, Any]:
        """Ask several at once."""
        waiting = {
            number: getattr(self._actors[number], method).remote(*arguments)
            for number, (method, arguments) in questions.items()
        }
        ready, _ = self._ray.wait(list(waiting.values()), num_returns=len(waiting), timeout=self._timeout)
        on_time = set(ready)
        return {number: self._answer(asked) if asked in on_time else self._late() for number, asked in waiting.items()}

    def _late(self) -> ShardUnavailableError:
        return ShardUnavailableError(f"no answer for {self._timeout:g} seconds")

    def _answer(self, asked: Any) -> Any:
        try:
            return answered(partial(self._ray.get, asked))
        except self._ray.exceptions.RayError as error:
            return ShardUnavailableError(str(error).partition("\n")[0])

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self._ray.kill(actor)
