"""The engine: one thread that writes all answers, a token of each at a time, and the queue in front of it."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from shared_context.model.generation import CompletionStream, advance
from shared_context.serve.faults import Refusal

T = TypeVar("T")

ASSUMED_SECONDS = 5.0
"""What an answer takes, as long as none has been given."""


@dataclass
class _Job:
    """A stream that is being read.

    Attributes:
        put: hands a piece, the exception that ended the stream, or None at its end to whoever waits.
        gone: nobody waits any more.
    """

    stream: CompletionStream
    put: Callable[[str | BaseException | None], None]
    gone: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Writes answers, several at a time.

    A single thread gives all answers their next tokens, which the model computes together: threads of their own would
    each bring a set of OpenMP threads along, and wait for each other in no order. What comes before an answer,
    selecting and encoding, is done in other threads meanwhile, and so is what changes a store.

    Args:
        parallel: answers at a time.
        waiting: requests that may wait.
    """

    def __init__(self, parallel: int, waiting: int):
        self.parallel, self.limit = parallel, parallel + waiting
        self.admitted = 0
        self.running = 0
        self._slots = asyncio.Semaphore(parallel)
        self._seconds = ASSUMED_SECONDS
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._beside = ThreadPoolExecutor(parallel, thread_name_prefix="shared-context-beside")
        self._changing = ThreadPoolExecutor(1, thread_name_prefix="shared-context-change")
        self._thread = threading.Thread(target=self._write, name="shared-context-answers", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that were admitted and are not worked on yet."""
        return self.admitted - self.running

    def close(self) -> None:
        """End the threads, after what they are doing."""
        self._jobs.put(None)
        self._thread.join()
        self._beside.shutdown()
        self._changing.shutdown()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A place among those that are worked on, in the order of coming.

        Raises:
            Refusal: too many wait already; ``Retry-After`` says when it is worth coming back.
        """
        if self.admitted >= self.limit:
            seconds = max(1, round(self._seconds * self.admitted / self.parallel))
            raise Refusal(
                429,
                f"{self.admitted} requests are worked on or wait, as many as this server takes; come back in about "
                f"{seconds} seconds.",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )
        self.admitted += 1
        try:
            async with self._slots:
                self.running += 1
                started = time.monotonic()
                try:
                    yield
                finally:
                    self.running -= 1
                    self._seconds += 0.2 * (time.monotonic() - started - self._seconds)
        finally:
            self.admitted -= 1

    async def beside(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """What a thread beside the answers computes: selections, their keys and values, readings of a store."""
        return await asyncio.get_running_loop().run_in_executor(self._beside, partial(call, *args, **options))

    async def change(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """What changes a store, one change after the other."""
        return await asyncio.get_running_loop().run_in_executor(self._changing, partial(call, *args, **options))

    async def pieces(self, stream: CompletionStream) -> AsyncGenerator[str]:
        """The pieces of an answer as they are written; not reading on, or closing this, ends it.

        A slow reader holds nobody up: pieces wait here, no more than the answer has tokens.
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Queue[str | BaseException | None] = asyncio.Queue()

        def put(piece: str | BaseException | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is left to read
                loop.call_soon_threadsafe(ready.put_nowait, piece)

        job = _Job(stream, put)
        self._jobs.put(job)
        try:
            while (piece := await ready.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            job.gone.set()

    def _write(self) -> None:
        """Work of the thread: a token of every answer at a time, until the engine is closed."""
        jobs: list[_Job] = []
        open_ = True
        while open_ or jobs:
            with suppress(queue.Empty):
                while True:
                    job = self._jobs.get(block=not jobs and open_)
                    if job is None:
                        open_ = False
                        break
                    jobs.append(job)
            gone = [job for job in jobs if job.gone.is_set()]
            for job in gone:
                with suppress(Exception):  # nobody is left to tell, and the other answers go on
                    job.stream.close()
            jobs = [job for job in jobs if job not in gone]
            found = advance([job.stream for job in jobs])
            for job, piece in zip(jobs, found, strict=True):
                if piece != "":
                    job.put(piece)
            jobs = [job for job, piece in zip(jobs, found, strict=True) if isinstance(piece, str)]
