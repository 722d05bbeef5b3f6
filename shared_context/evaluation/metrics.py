"""What is computed from single results: span recall, and differences with their confidence intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Span = tuple[int, int]


def holds_a_span(shown: Iterable[Span], wanted: Iterable[Span]) -> bool:
    """Whether one of the wanted spans lies, from its first character to its last, inside the shown text.

    Args:
        shown: spans of one document, ``[start, end)``, in any order; those that touch or overlap count as one.
        wanted: spans of the same document.
    """
    runs: list[Span] = []
    for start, end in sorted(shown):
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((start, end))
    return any(run[0] <= start and end <= run[1] for start, end in wanted for run in runs)


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its confidence interval."""

    mean: float
    low: float
    high: float


def paired_difference(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Mean of ``first - second`` over the same questions, with a percentile bootstrap interval.

    Args:
        first, second: one number per question, in the same order.
        level: share of the resampled means that the interval holds.
        resamples: how often the questions are drawn anew, with replacement.
        seed: of the drawing.

    Raises:
        ValueError: the two differ in length or are empty.
    """
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(f"{len(first)} and {len(second)} results; a paired difference needs as many, at least one")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [rng.choice(differences, len(differences)).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(differences.mean()), float(low), float(high))
