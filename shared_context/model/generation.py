"""What a generation gives back, whole or piece by piece."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any, Literal

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from shared_context.kernels.launch import wait_for
from shared_context.model.cache import RoomyCache
from shared_context.model.steps import Answering, Step, Steps

REPLACEMENT = "\ufffd"
"""What stands in a text for bytes that make no character, or none yet."""


@dataclass(frozen=True)
class Completion:
    """An answer and what it took.

    Attributes:
        text: the answer, without the stop string.
        finish_reason: "stop" where the model ended or a stop string came, "length" where max_new_tokens did.
        prompt_tokens: tokens of the prompt that were read as text, pasted context included.
        context_entries: injected KV entries per layer.
        completion_tokens: tokens generated.
        time_to_first_token: seconds from the call, or the first piece of a stream being asked for, to the first token.
        seconds: from the same moment to the last token; of a stream, the reader's own time between pieces included.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    context_entries: int
    completion_tokens: int
    time_to_first_token: float
    seconds: float

    def _repr_html_(self) -> str:
        """For notebooks: the answer, and what it took."""
        cut_off = ", cut off by max_new_tokens" if self.finish_reason == "length" else ""
        figures = (
            f"{self.context_entries:,} KV entries and {self.prompt_tokens:,} tokens read; first token after "
            f"{self.time_to_first_token:.2f} s, {self.completion_tokens:,} tokens in {self.seconds:.2f} s{cut_off}"
        )
        answer = '<pre dir="auto" style="font: inherit; white-space: pre-wrap; overflow-wrap: anywhere">'
        return f"{answer}{escape(self.text)}</pre>\n<p><small>{figures}</small></p>"


class Clock(StoppingCriteria):
    """Notes when the first token was there; never stops the generation.

    Args:
        device: where the model is; seconds are read when it is done.

    Attributes:
        first_token: seconds from the clock's making to the first token.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._start = time.perf_counter()
        self.first_token: float | None = None

    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        wait_for(self._device)
        return time.perf_counter() - self._start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        if self.first_token is None:
            self.first_token = self.elapsed()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class StopStrings(StoppingCriteria):
    """Ends the rows of a batch whose answer has come to a stop string.

    transformers' own looks for the strings in every word of the vocabulary first, which takes longer than a short
    answer. Here the end of each answer is read as text after every token.

    Args:
        tokenizer: the model's.
        stop: the strings, none of them empty.
        begin: column in which the answers begin.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], begin: int):
        self._decode = partial(tokenizer.batch_decode, skip_special_tokens=True)
        self._stop = stop
        self._begin = begin
        # A token is a byte at least. What stands in front of the first one whole is read, too: it decides on spaces.
        self._reach = max(len(s.encode(errors="surrogatepass")) for s in stop) + 4

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        ends = self._decode(input_ids[:, max(self._begin, input_ids.shape[1] - self._reach) :])
        return torch.tensor([any(s in text for s in self._stop) for text in ends], device=input_ids.device)


def one_by_one(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    answering: Answering,
    generator: torch.Generator | None = None,
    **model_kwargs: Any,
) -> Iterator[Step | int]:
    """The steps of an answer, and the new token after each, which whoever reads on has computed.

    What transformers' ``generate(custom_generate=...)`` calls with everything prepared, in place of its own sampling
    loop, which would not give control back until the last token. It computes in the thread that asks: a thread of its
    own would bring a second set of OpenMP threads into the process, and then both sets sleep where one would spin,
    which makes every step half as slow again.

    Args:
        answering: the answer, whose cache is that of ``model_kwargs``; one row needs no padding, so there is no mask.
        generator: the source of chance; None is torch's global one.
    """
    cache = answering.cache
    in_place = cache.in_place if isinstance(cache, RoomyCache) else None
    unread = {} if in_place is None else {"in_place": in_place}
    while True:
        known = cache.get_seq_length()
        positions = torch.arange(known, input_ids.shape[1], device=input_ids.device)[None]
        step = Step(answering, input_ids[:, known:], positions, unread)
        yield step
        assert step.logits is not None  # it is computed before this goes on
        scores = logits_processor(input_ids, step.logits)
        if generation_config.do_sample:
            token = torch.multinomial(scores.softmax(-1), 1, generator=generator)
        else:
            token = scores.argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, token], dim=-1)
        ended = stopping_criteria(input_ids, scores).all()
        yield int(token.item())
        if ended:
            return
        if unread:
            # Every further step has one query, too little work to be done in many small pieces.
            assert isinstance(cache, RoomyCache)
            cache.fill()
            unread = {}


class Detokenizer:
    """Turns the tokens of an answer into text, each as soon as its characters are whole.

    What a token says can hang on the one before it (sentencepiece drops the space in front of a text's first word), so
    each is read behind the last ones that were given. tokenizers' own DecodeStream does the same and raises where a
    model's bytes make no characters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._decode = partial(tokenizer.decode, skip_special_tokens=True)
        self._tokens: list[int] = []
        self._begin = self._given = 0
        self._length = 0

    def put(self, token: int) -> str:
        """The text that this token completes."""
        self._tokens.append(token)
        before, text = (self._decode(self._tokens[self._begin : end]) for end in (self._given, len(self._tokens)))
        if text.endswith(REPLACEMENT):
            return ""
        self._begin, self._given = self._given, len(self._tokens)
        piece = text[len(before) :]
        self._length += len(piece)
        return piece

    def end(self) -> str:
        """What is left: characters that were never completed."""
        return self._decode(self._tokens)[self._length :]


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string in it."""
    ends = [at for s in stop if (at := text.find(s)) >= 0]
    return text[: min(ends)] if ends else text


def until_stop(pieces: Iterable[str | Step], stop: Sequence[str]) -> Iterator[str | Step]:
    """The pieces of a text up to its first stop string; an end that may begin one is held back.

    Steps that are to be computed between the pieces are handed on.
    """
    longest = max((len(s) for s in stop), default=1) - 1
    held = ""
    for piece in pieces:
        if isinstance(piece, Step):
            yield piece
            continue
        held += piece
        kept = cut_at_stop(held, stop)
        if len(kept) < len(held):
            if kept:
                yield kept
            return
        ready = held[: max(0, len(held) - longest)]
        held = held[len(ready) :]
        if ready:
            yield ready
    if held:
        yield held


class CompletionStream(Iterator[str]):
    """The pieces of an answer, each computed when it is asked for, by any thread, one at a time.

    Closing the stream, or dropping it, ends the generation. Other generations may run between two pieces, and tokens
    that several threads ask for at the same time, each of a stream of its own, are computed together.

    Args:
        generate: makes the pieces, and the steps that are to be computed between them; puts the completion into the
            list that it is given, however it ends.
        steps: computes them.
    """

    def __init__(self, generate: Callable[[list[Completion]], Generator[str | Step]], steps: Steps):
        # The pieces know nothing of this object, so that dropping it ends them at once.
        self._completion: list[Completion] = []
        self._pieces = generate(self._completion)
        self._steps = steps
        self._step: Step | None = None
        self._lock = threading.Lock()

    @property
    def completion(self) -> Completion | None:
        """The answer up to where it was read and what it took; None before its end or :meth:`close`."""
        return self._completion[0] if self._completion else None

    def __next__(self) -> str:
        with self._lock:
            while not isinstance(piece := self._go_on(), str):
                try:
                    self._steps.compute(piece)
                except BaseException as error:
                    piece.fault = error
            return piece

    def close(self) -> None:
        """End the generation, after the piece that another thread may be computing; further ones never are."""
        with self._lock:
            self._pieces.close()

    def _go_on(self) -> str | Step:
        """The next piece, or a step that is to be computed first.

        Raises:
            StopIteration: the answer has ended.
            BaseException: what came of the last step.
        """
        step, self._step = self._step, None
        if step is not None and step.logits is None and step.fault is None:
            self._step = step
            return step
        item = self._pieces.throw(step.fault) if step is not None and step.fault else next(self._pieces)
        self._step = item if isinstance(item, Step) else None
        return item


def advance(streams: Sequence[CompletionStream]) -> list[str | BaseException | None]:
    """One more token of each stream, those of one model computed together.

    Returns:
        For each the text that its token completes, which may be none yet; None at its end; or what was raised.
    """
    with ExitStack() as reading:
        for stream in streams:
            reading.enter_context(stream._lock)
        found = [_gone_on(stream) for stream in streams]
        asked: defaultdict[Steps, list[Step]] = defaultdict(list)
        for stream, item in zip(streams, found, strict=True):
            if isinstance(item, Step):
                asked[stream._steps].append(item)
        for computer, steps in asked.items():
            computer.compute_all(steps)
        found = [
            _gone_on(stream) if isinstance(item, Step) else item for stream, item in zip(streams, found, strict=True)
        ]
    return ["" if isinstance(item, Step) else item for item in found]


def _gone_on(stream: CompletionStream) -> str | Step | BaseException | None:
    try:
        return stream._go_on()
    except StopIteration:
        return None
    except BaseException as error:
        return error


class AsyncCompletionStream(AsyncIterator[str]):
    """A :class:`CompletionStream` for an event loop: each piece is computed in a thread, when it is asked for.

    Cancelling the task that waits for a piece ends the generation, and so does closing or dropping the stream.

    Args:
        begin: makes the stream; called in a thread when the first piece is asked for, which raises what it raises.
    """

    def __init__(self, begin: Callable[[], CompletionStream]):
        self._begin = begin
        self._stream: CompletionStream | None = None

    @property
    def completion(self) -> Completion | None:
        """The answer up to where it was read and what it took; None before its end or :meth:`aclose`."""
        return self._stream.completion if self._stream is not None else None

    async def __anext__(self) -> str:
        if self._stream is None:
            self._stream = await asyncio.to_thread(self._begin)
        try:
            piece = await asyncio.to_thread(next, self._stream, None)  # StopIteration would not leave the thread
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """End the generation, after the piece that is being computed."""
        if self._stream is not None:
            await asyncio.shield(asyncio.to_thread(self._stream.close))
