"""Steps: the next tokens of several answers, computed together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from shared_context.kernels import RaggedContext
from shared_context.model.cache import CACHE_ARGUMENT

TOGETHER = 16
"""Answers whose next tokens are computed together at most."""

LINGER = 0.1
"""Share of the last step's time for which answers that are about to ask for their next token are waited for."""

Attend = Callable[..., tuple[torch.Tensor, None]]


@dataclass(eq=False)
class Answering:
    """What stays the same over all steps of an answer.

    Attributes:
        model: computes it.
        cache: its keys and values.
        injected: what must be entered while it is computed alone.
        ragged: what it attends to beside the cache.
        beyond: positions that its context takes and its cache has no columns for, [1].
        joins: whether its steps may be computed with others'.
    """

    model: PreTrainedModel
    cache: Cache
    injected: AbstractContextManager[None]
    ragged: RaggedContext | None
    beyond: torch.Tensor | int
    joins: bool


@dataclass(eq=False)
class Step:
    """A forward pass that an answer needs to go on.

    Attributes:
        answering: the answer.
        ids: the tokens to read, [1, tokens].
        positions: where they stand, [1, tokens].
        further: what else the model is given.
        logits: of the last token, [1, vocabulary] in float32; None before it is computed.
        fault: what was raised meanwhile.
    """

    answering: Answering
    ids: torch.Tensor
    positions: torch.Tensor
    further: dict[str, Any] = field(default_factory=dict)
    logits: torch.Tensor | None = None
    fault: BaseException | None = None

    @property
    def joins(self) -> bool:
        """Whether it may be computed with others: it is of one token, and reads nothing in place."""
        return self.answering.joins and self.ids.shape[1] == 1 and not self.further


class CacheOfSeveral(Cache):
    """The caches of several answers, each of its own length, as one that a model writes to.

    Each row of the batch attends to what is its own alone, by the attention that it would have by itself.

    Args:
        steps: one for each row of the batch.
    """

    def __init__(self, steps: Sequence[Step]):
        # They stay empty, so that no mask is made: the one token of a row sees all that the row has.
        super().__init__(layers=[DynamicLayer() for _ in steps[0].answering.cache.layers])
        self._answers = [step.answering for step in steps]
        self._kv: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        parts = zip(self._answers, key_states.split(1), value_states.split(1), strict=True)
        self._kv[layer_idx] = [answer.cache.update(key, value, layer_idx) for answer, key, value in parts]
        return key_states, value_states

    def attend(self, attend: Attend, layer: int, query: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, None]:
        """Attention of every row to what is its own, [rows, 1, heads, head_dim].

        Args:
            attend: computes it for one row.
            layer: its number.
            query: [rows, heads, 1, head_dim].
            **settings: of the layer.
        """
        rows = zip(query.split(1), self._kv.pop(layer), self._answers, strict=True)
        return torch.cat([attend(asked, *kv, None, ragged=of.ragged, **settings)[0] for asked, kv, of in rows]), None


class Steps:
    """Computes the steps of all answers of one model, those that are asked for at the same time together.

    A step reads every weight once however many answers it serves. Each thread asks for the next token of its answer;
    the one that comes first computes for all who wait, after a moment for those that computed with it before.

    Args:
        lock: held while anything is computed.
    """

    def __init__(self, lock: threading.RLock):
        self._lock = lock
        self._changed = threading.Condition()
        self._waiting: list[tuple[Step, int]] = []
        self._round = 0
        self._last: dict[int, int] = {}
        self._seconds = 0.0

    def compute(self, step: Step) -> None:
        """Put the logits into a step, with those of others that are asked for meanwhile."""
        with self._changed:
            self._waiting.append((step, threading.get_ident()))
            begun = self._round
            self._changed.notify_all()
        try:
            with self._lock:
                if step.logits is None and step.fault is None:
                    together = step.joins and (len(self._last) > 1 or begun < self._round)
                    self._run(self._taken(step, self._seconds * LINGER if together else 0.0))
        except BaseException:  # it was interrupted while it waited; nobody may compute for it any more
            with self._changed:
                self._waiting = [(other, of) for other, of in self._waiting if other is not step]
            with self._lock:
                raise
        if step.fault is not None:
            raise step.fault

    def compute_all(self, steps: Sequence[Step]) -> None:
        """Put logits, or what was raised instead, into several steps at once."""
        left = list(steps)
        with self._lock:
            while left:
                taken = [step for step in left if _joined(left[0], step)][:TOGETHER]
                left = [step for step in left if step not in taken]
                self._run(dict.fromkeys(taken, threading.get_ident()))

    def _taken(self, step: Step, seconds: float) -> dict[Step, int]:
        """The steps to compute now, and the threads that wait for them."""
        own = threading.get_ident()
        # An answer that this thread itself writes cannot come while it waits here.
        expected = {answering for answering, thread in self._last.items() if thread != own}

        def all_here() -> bool:
            return expected <= {id(waiting.answering) for waiting, _ in self._waiting}

        with self._changed:
            if seconds:
                self._changed.wait_for(all_here, seconds)
            others = [(other, of) for other, of in self._waiting if other is not step and _joined(step, other)]
            taken = {step: own, **dict(others[: TOGETHER - 1])}
            self._waiting = [(other, of) for other, of in self._waiting if other not in taken]
        return taken

    def _run(self, steps: dict[Step, int]) -> None:
        began = time.perf_counter()
        try:
            with torch.inference_mode():
                _together(list(steps)) if len(steps) > 1 else _alone(*steps)
        except BaseException as error:
            for step in steps:
                step.fault = error
        if next(iter(steps)).ids.shape[1] == 1:
            self._seconds = time.perf_counter() - began
        self._last = {id(step.answering): thread for step, thread in steps.items()}  # keeps no answer's cache alive
        with self._changed:
            self._round += 1


def _joined(step: Step, other: Step) -> bool:
    """Whether two steps may be computed together."""
    return step is other or (step.joins and other.joins and step.answering.model is other.answering.model)


def _alone(step: Step) -> None:
    of = step.answering
    further = {CACHE_ARGUMENT: of.cache, **step.further}
    with of.injected:
        out = of.model(step.ids, position_ids=step.positions, logits_to_keep=1, **further)
    step.logits = out.logits[:, -1].float()


def _together(steps: Sequence[Step]) -> None:
    cache = CacheOfSeveral(steps)
    ids = torch.cat([step.ids for step in steps])
    positions = torch.cat([step.positions + step.answering.beyond for step in steps])
    out = steps[0].answering.model(
        ids, position_ids=positions, logits_to_keep=1, several=cache, **{CACHE_ARGUMENT: cache}
    )
    for step, logits in zip(steps, out.logits[:, -1:].float(), strict=True):
        step.logits = logits
