"""What surrounds a leaf counts: the section that it is of, the leaves beside it, the run that it would be shown in."""

from __future__ import annotations

import numpy as np
import torch

from shared_context.config import StoreConfig
from shared_context.store.leaves import Leaves


def touching(leaves: Leaves, rows: np.ndarray) -> np.ndarray:
    """Whether each leaf is the one before the next in its document, bool [rows - 1].

    Args:
        rows: rising rows of ``leaves``.
    """
    document = leaves.document[rows]
    return (document[1:] == document[:-1]) & (np.diff(rows) == 1)


LONGEST_SECTION = 512
"""Tokens."""


def section_leaves(shown: int, leaf_size: int) -> int:
    """Leaves on each side of a leaf that are of one section with it.

    A section is about as long as what will be shown: of a long story a small budget shows the best places, and a large
    one runs of text. Beyond LONGEST_SECTION nothing was gained.

    Args:
        shown: tokens that will be shown.
        leaf_size: tokens of a leaf.
    """
    return min(shown, LONGEST_SECTION) // (2 * leaf_size)


def with_section(scores: torch.Tensor, touch: np.ndarray, reach: int, weight: float) -> torch.Tensor:
    """Scores to which ``weight`` of what a leaf's section is above the mean of all is added, on the average.

    Args:
        scores: [leaves], leaves in document order.
        touch: of the leaves, see :func:`touching`.
        reach: leaves on each side that are of the section; fewer where those that touch end.
        weight: share of the section's score.
    """
    row = np.arange(len(scores))
    edges = _stretches(touch, len(scores))
    begin, end = np.maximum(row - reach, edges[0]), np.minimum(row + reach + 1, edges[1])
    return scores + weight * _means(scores - scores.mean(), begin, end)


def _stretches(touch: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each leaf, the first one of its unbroken stretch and the one behind the last, [leaves]."""
    first = np.concatenate([[0], np.flatnonzero(~touch) + 1])
    lengths = np.diff(first, append=count)
    return np.repeat(first, lengths), np.repeat(first + lengths, lengths)


def _means(scores: torch.Tensor, begin: np.ndarray, end: np.ndarray) -> torch.Tensor:
    """The mean score from one row up to another, for each pair of rows."""
    sums = torch.nn.functional.pad(scores.double().cumsum(dim=0), (1, 0))
    first, last = (torch.from_numpy(edge).to(scores.device) for edge in (begin, end))
    return ((sums[last] - sums[first]) / (last - first)).to(scores.dtype)


LONGEST_RUN = 512
"""Tokens."""

RUN_WEIGHT = 0.7
RUNS_FROM, RUNS_FULLY = 1 / 20, 1 / 16
"""Shares of a text. Chosen on half of the stories: more weight shows all of the evidence more often and less of it on
the mean. Below a twentieth, what is asked of many passages about a thing apiece is shown less often."""


def run_leaves(shown: int, leaf_size: int) -> int:
    """Leaves of a run: half of what will be shown, so that there is room for two."""
    return min(shown, 2 * LONGEST_RUN) // (2 * leaf_size)


def run_weight(shown: int, tokens: int) -> float:
    """How much the run counts that a leaf is in, and by so much less the leaf itself.

    Of much text a few leaves have to be the right ones, each by itself. Where a good part of the text will be shown,
    those are in it, and what is missing is what lies between and beside them.

    Args:
        shown: tokens that will be shown.
        tokens: of all text that is considered.
    """
    share = min(shown, 2 * LONGEST_RUN) / max(tokens, 1)
    return RUN_WEIGHT * min(1.0, max(0.0, (share - RUNS_FROM) / (RUNS_FULLY - RUNS_FROM)))


def with_runs(scores: torch.Tensor, touch: np.ndarray, length: int, weight: float) -> torch.Tensor:
    """Scores of which ``weight`` is the mean of the best run that a leaf is in, and the rest its own.

    Args:
        scores: [leaves], leaves in document order.
        touch: of the leaves, see :func:`touching`.
        length: leaves of a run; leaves that touch are one run where they are fewer.
        weight: share of the run's mean, 0 to 1.
    """
    if weight == 0 or length < 2:
        return scores
    row = np.arange(len(scores))
    begin, end = _stretches(touch, len(scores))
    of_run = _means(scores, row, np.minimum(row + length, end))
    begins = torch.from_numpy(row + length <= end).to(scores.device)
    of_run = torch.nn.functional.pad(of_run.where(begins, -torch.inf), (length - 1, 0), value=-torch.inf)
    best = torch.nn.functional.max_pool1d(of_run[None], length, stride=1)[0]
    short = torch.from_numpy(end - begin < length).to(scores.device)
    return torch.lerp(scores, _means(scores, begin, end).where(short, best), weight)


def with_neighbours(scores: torch.Tensor, touch: np.ndarray, weight: float) -> torch.Tensor:
    """Scores to which each leaf's neighbours in its document add ``weight`` of what they are above the mean.

    Args:
        scores: [leaves], leaves in document order.
        touch: of the leaves, see :func:`touching`.
        weight: share of a neighbour's score.
    """
    above = (scores - scores.mean()) * weight
    same = torch.from_numpy(touch).to(scores.device)
    smoothed = scores.clone()
    smoothed[1:] += above[:-1] * same
    smoothed[:-1] += above[1:] * same
    return smoothed


def with_surroundings(
    scores: torch.Tensor, touch: np.ndarray, config: StoreConfig, shown: int, tokens: int | None
) -> torch.Tensor:
    """Scores to which all that surrounds a leaf is added.

    Args:
        scores: [leaves], leaves in document order.
        touch: of the leaves, see :func:`touching`.
        config: what sections and neighbours weigh.
        shown: tokens that will be shown.
        tokens: of all text that is considered; None where leaves that follow one another are not shown as one text.
    """
    leaf_size = config.tree.leaf_size
    scores = with_section(scores, touch, section_leaves(shown, leaf_size), config.section_weight)
    scores = with_neighbours(scores, touch, config.neighbour_weight)
    if tokens is None:
        return scores
    return with_runs(scores, touch, run_leaves(shown, leaf_size), run_weight(shown, tokens))
