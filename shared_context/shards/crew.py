"""The shards of a store where they run: in this process, asked side by side on all cores."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Literal, Protocol, TypeVar

from shared_context.errors import ShardUnavailableError, SharedContextError
from shared_context.shards.shard import Place, Shard

logger = logging.getLogger(__name__)

T = TypeVar("T")

Missing = Literal["raise", "answer"]
"""What becomes of a question where a shard does not answer: it fails, or the others answer it."""


class Workers(Protocol):
    """Where shards run."""

    def __len__(self) -> int:
        """How many there are."""

    def ask(self, questions: dict[int, tuple[str, tuple[Any, ...]]]) -> dict[int, Any]:
        """Ask several at once.

        Args:
            questions: by the shard's number, a method of :class:`~shared_context.shards.shard.Shard` and its arguments.

        Returns:
            By number the answers; where there is none the exception.
        """

    def close(self) -> None:
        """Let them go."""


class LocalWorkers:
    """Shards in this process.

    Args:
        places: where they are.
        vocabulary, read_only, device: as :class:`~shared_context.shards.shard.Shard` takes them.
    """

    def __init__(self, places: Sequence[Place], vocabulary: int, read_only: bool, device: str):
        # Not one for each: more than there are cores take each other's, and the interpreter.
        self._pool = ThreadPoolExecutor(min(len(places), os.cpu_count() or 1), thread_name_prefix="shard")
        opening = [self._pool.submit(Shard, place, vocabulary, read_only, device) for place in places]
        wait(opening)
        self._shards = [future.result() for future in opening if future.exception() is None]
        if len(self._shards) < len(places):
            self.close()
            raise next(error for future in opening if (error := future.exception()) is not None)

    def __len__(self) -> int:
        return len(self._shards)

    def ask(self, questions: dict[int, tuple[str, tuple[Any, ...]]]) -> dict[int, Any]:
        """Ask several at once."""
        waiting = {
            number: self._pool.submit(getattr(self._shards[number], method), *arguments)
            for number, (method, arguments) in questions.items()
        }
        return {number: future.exception() or future.result() for number, future in waiting.items()}

    def close(self) -> None:
        """Close their files."""
        self._pool.shutdown()
        for shard in self._shards:
            shard.close()


class Crew:
    """All shards of a store that answer.

    Args:
        workers: where they run.
        missing: what becomes of a question where one does not answer.

    Attributes:
        lost: numbers of those that have not answered; they are not asked again until :meth:`recall`.
    """

    def __init__(self, workers: Workers, missing: Missing = "raise"):
        self._workers, self._missing = workers, missing
        self.lost: set[int] = set()

    @property
    def present(self) -> list[int]:
        """Numbers of the shards that are asked."""
        return [number for number in range(len(self._workers)) if number not in self.lost]

    def recall(self) -> None:
        """Ask those again that did not answer."""
        self.lost.clear()

    def ask(self, questions: dict[int, tuple[str, tuple[Any, ...]]]) -> dict[int, Any]:
        """Ask several shards at once; answers by number.

        Raises:
            ShardUnavailableError: one did not answer; it is lost from now on.
            SharedContextError: one answered with an error of its own.
        """
        answers = self._workers.ask(questions)
        errors = {number: answer for number, answer in answers.items() if isinstance(answer, BaseException)}
        for error in errors.values():
            if isinstance(error, SharedContextError) and not isinstance(error, ShardUnavailableError):
                raise error
        if errors:
            number, error = next(iter(errors.items()))
            if self._missing == "answer":
                self.lost |= errors.keys()
                logger.warning("shards %s do not answer: %s", sorted(errors), error)
            raise ShardUnavailableError(
                f"Shard {number} of {len(self._workers)} does not answer ({type(error).__name__}: {error}). Open the "
                "store again, or with missing='answer' to have the others answer without it."
            ) from error
        return answers

    def ask_all(self, method: str, *arguments: Any) -> dict[int, Any]:
        """Ask all that are present the same."""
        return self.ask(dict.fromkeys(self.present, (method, arguments)))

    def ask_one(self, number: int, method: str, *arguments: Any) -> Any:
        """Ask one."""
        return self.ask({number: (method, arguments)})[number]

    def answered(self, ask: Callable[[], T]) -> T:
        """What ``ask`` gives, which asks shards; again without those that are lost meanwhile.

        Raises:
            ShardUnavailableError: one did not answer, and the others may not answer without it, or none is left.
        """
        while True:
            lost = len(self.lost)
            try:
                return ask()
            except ShardUnavailableError:
                if len(self.lost) == lost or not self.present:
                    raise

    def close(self) -> None:
        """Let the shards go."""
        self._workers.close()
