"""The rows of a run: those to train on, without end, and those kept apart to validate on."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from torch.utils.data import IterableDataset

from shared_context.errors import TrainingDataError
from shared_context.training.config import Stage, TrainingConfig
from shared_context.training.data import BLOCK, MEND, Row, read_rows
from shared_context.training.examples import (
    LONG_TEXT,
    PASSAGE,
    Example,
    ExampleMaker,
)
from shared_context.training.streams import question_stream, running_stream

logger = logging.getLogger(__name__)


class Rows:
    """The rows of all sources, those at the end kept apart.

    Args:
        sources: as :func:`~shared_context.training.data.read_rows` takes them.
        skip_broken: pass over rows that the stage cannot use.
        stage: that the rows are for.
        maker: makes examples of them.
        held_out: rows at the end that are kept apart.
    """

    def __init__(
        self, sources: Sequence[str | Path], skip_broken: bool, stage: Stage, maker: ExampleMaker, held_out: int = 0
    ):
        self.sources = sources
        self._skip_broken, self._stage, self._maker, self._held_out = skip_broken, stage, maker, held_out
        self._kept_apart: set[int] = set()

    def survey(self) -> list[Row]:
        """Read and check every row; the last ones, whose passages :meth:`training` leaves out from now on."""
        last: deque[Row] = deque(maxlen=self._held_out)
        unfounded = []
        for row, founded in self._all():
            last.append(row)
            if not founded:
                unfounded.append(row.place)
        if unfounded:
            logger.warning(
                "Rows whose answer does not stand in their passage: %d, the first is %s; they are taken as they are.",
                len(unfounded),
                unfounded[0],
            )
        self._kept_apart = {self._passage(row) for row in last}
        return list(last)

    def training(self) -> Iterator[Row]:
        """All but the last and those that share a passage with them; they are read as they are asked for."""
        waiting: deque[Row] = deque()
        for row, _ in self._all():
            waiting.append(row)
            if len(waiting) > self._held_out and self._passage(first := waiting.popleft()) not in self._kept_apart:
                yield first

    def _all(self) -> Iterator[tuple[Row, bool]]:
        """The rows, each with whether its answer stands in its passage."""
        for row in chain.from_iterable(read_rows(source, skip_broken=self._skip_broken) for source in self.sources):
            try:
                founded = self._maker.check(row) if self._stage == "questions" else bool(row.text(*LONG_TEXT))
            except TrainingDataError as error:
                if not self._skip_broken:
                    raise TrainingDataError(f"{error} {MEND}") from error
                logger.warning("A row is skipped. %s", error)
            else:
                yield row, founded

    def _passage(self, row: Row) -> int:
        return hash(row.text(*PASSAGE if self._stage == "questions" else LONG_TEXT))


class ExampleStream(IterableDataset):
    """Training examples without end; every process of several takes its own share of them."""

    def __init__(self, rows: Rows, texts: Rows, maker: ExampleMaker, config: TrainingConfig):
        self._rows, self._texts, self._maker, self._config = rows, texts, maker, config

    def __iter__(self) -> Iterator[Example]:
        config = self._config
        if config.stage == "questions":
            texts = self._texts.training if self._texts.sources else None
            return question_stream(self._rows.training, self._maker, config.tasks, seed=config.seed, texts=texts)
        return running_stream(self._rows.training, self._maker, seed=config.seed, running_tokens=config.running_tokens)


def held_out_examples(rows: Rows, maker: ExampleMaker, config: TrainingConfig) -> list[Example]:
    """Examples of the rows that are kept apart, to validate on.

    Raises:
        TrainingDataError: nothing is left to train on, or there are fewer than two.
    """
    held_out = rows.survey()
    if next(rows.training(), None) is None:
        raise TrainingDataError(
            f"held_out={config.held_out} leaves nothing to train on: the data have {len(held_out)} rows (a plain text "
            f"has one for each {BLOCK:,} characters), or all share the passages of these. Hold fewer out (--held-out)."
        )
    if config.stage == "questions":
        examples = [maker.answering(row) for row in held_out]
    else:
        # one stretch of each row, or a few long books would take all the time there is
        stretches = (maker.running(row.text(*LONG_TEXT), config.running_tokens) for row in held_out)
        examples = [example for stretch in stretches for example in _first(stretch)]
    if len(examples) < 2:
        raise TrainingDataError(
            f"{len(examples)} held-out examples: validation needs 2 or more, as one's context is another's control."
        )
    return examples[: config.validated]


def _first(items: Iterable[Example]) -> list[Example]:
    return next(([item] for item in items), [])
