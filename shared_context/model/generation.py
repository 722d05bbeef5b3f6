"""What a generation gives back, whole or piece by piece."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, TextIteratorStreamer


@dataclass(frozen=True)
class Completion:
    """An answer and what it took.

    Attributes:
        text: the answer, without the stop string.
        finish_reason: "stop" where the model ended or a stop string came, "length" where max_new_tokens did.
        prompt_tokens: tokens of the prompt that were read as text, pasted context included.
        context_entries: injected KV entries per layer.
        completion_tokens: tokens generated.
        time_to_first_token: seconds from the call to the first token.
        seconds: from the call to the last token.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    context_entries: int
    completion_tokens: int
    time_to_first_token: float
    seconds: float


class Clock(StoppingCriteria):
    """Notes when the first token was there; never stops the generation by itself, unless it is told to.

    Attributes:
        first_token: seconds from the clock's making to the first token.
        cancelled: set to end the generation at the next token.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.first_token: float | None = None
        self.cancelled = threading.Event()

    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        if self.first_token is None:
            self.first_token = self.elapsed()
        return torch.full((len(input_ids),), self.cancelled.is_set(), dtype=torch.bool, device=input_ids.device)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string in it."""
    ends = [at for s in stop if (at := text.find(s)) >= 0]
    return text[: min(ends)] if ends else text


class Worker:
    """One thread that does what it is given, in turn, for as long as the process lives.

    A thread's first parallel operation makes threads of its own to share the work with, which costs as much as half of
    the time to the first token; a stream that came with a new thread would pay it every time.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def do(self, task: Callable[[], None]) -> None:
        """Do ``task``, which must not raise, when the ones before it are done."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shared-context-stream", daemon=True)
                self._thread.start()
        self._tasks.put(task)

    def _run(self) -> None:
        while True:
            self._tasks.get()()


@dataclass
class _Outcome:
    """How a streamed generation ended."""

    done: threading.Event = field(default_factory=threading.Event)
    completion: Completion | None = None
    error: BaseException | None = None


class CompletionStream(Iterator[str]):
    """The pieces of an answer as they come; :attr:`completion` is the whole of it, once the last piece was taken.

    The answer is generated in another thread. Closing the stream, or dropping it, ends the generation.

    Args:
        worker: the thread.
        tokenizer: the model's.
        generate: called there with a streamer; returns the completion.
        clock: the generation's clock, which can cancel it.
        stop: stop strings, which are never part of a piece.
    """

    def __init__(
        self,
        worker: Worker,
        tokenizer: PreTrainedTokenizerBase,
        generate: Callable[[TextIteratorStreamer], Completion],
        clock: Clock,
        stop: Sequence[str],
    ):
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        outcome = _Outcome()

        # The thread and the pieces know nothing of this object, so that dropping it is noticed at once.
        def run() -> None:
            try:
                outcome.completion = generate(streamer)
            except BaseException as error:  # handed to the reader's thread, which raises it
                outcome.error = error
                streamer.end()
            finally:
                outcome.done.set()

        self._clock, self._outcome = clock, outcome
        self._pieces = _pieces(streamer, outcome, stop)
        worker.do(run)

    @property
    def completion(self) -> Completion | None:
        """The whole answer and what it took; None until it is there."""
        return self._outcome.completion

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End the generation at its next token."""
        self._clock.cancelled.set()
        self._outcome.done.wait()

    def __del__(self) -> None:
        self._clock.cancelled.set()


def _pieces(streamer: Iterable[str], outcome: _Outcome, stop: Sequence[str]) -> Iterator[str]:
    """What a streamer gives, up to the first stop string; the end that may begin one is held back."""
    longest = max((len(s) for s in stop), default=1) - 1
    held = ""
    stopped = False
    for piece in streamer:
        held += piece
        if stopped or not held:
            continue
        kept = cut_at_stop(held, stop)
        stopped = len(kept) < len(held)
        ready = kept if stopped else held[: len(held) - longest]
        held = "" if stopped else held[len(ready) :]
        if ready:
            yield ready
    outcome.done.wait()
    if outcome.error is not None:
        raise outcome.error
    if held and not stopped:
        yield held
