"""What is computed from single results: span recall, likeness of answers, and means with their confidence intervals."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shared_context.evaluation.questions import Span

RESAMPLES = 10_000
"""How often questions are drawn anew, with replacement, for an interval."""


def covered(shown: Iterable[Span], wanted: Iterable[Span], documents: Mapping[str, str]) -> float:
    """The share of the wanted characters that are shown.

    Overlapping spans count once, and blanks not at all: who splits a text drops those at the ends of its parts.

    Args:
        shown, wanted: in any order.
        documents: texts by id.

    Raises:
        ValueError: nothing is wanted.
    """
    asked, seen = (
        {(span.document, at) for span in spans for at in range(span.start, span.end)} for spans in (wanted, shown)
    )
    asked = {(id, at) for id, at in asked if not documents[id][at].isspace()}
    if not asked:
        raise ValueError("no characters are wanted; a share needs at least one")
    return len(asked & seen) / len(asked)


def holds_a_span(shown: Iterable[Span], wanted: Iterable[Span]) -> bool:
    """Whether one of the wanted spans lies, from its first character to its last, inside the shown text.

    Args:
        shown: in any order; those of one document that touch or overlap count as one.
        wanted: any one of them is enough.
    """
    runs: list[Span] = []
    for span in sorted(shown, key=lambda s: (s.document, s.start)):
        if runs and runs[-1].document == span.document and span.start <= runs[-1].end:
            runs[-1] = Span(span.document, runs[-1].start, max(span.end, runs[-1].end))
        else:
            runs.append(span)
    return any(
        run.document == span.document and run.start <= span.start and span.end <= run.end
        for span in wanted
        for run in runs
    )


# ---- answers, compared as SQuAD's evaluation compares them


def normalized(text: str) -> str:
    """Lower case without punctuation, articles and superfluous blanks."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """1 where the answer is a gold one, else 0."""
    return float(normalized(answer) in {normalized(one) for one in gold})


def containment(answer: str, gold: Sequence[str]) -> float:
    """1 where a gold answer stands in the answer, word for word, else 0."""
    words = f" {normalized(answer)} "
    return float(any(f" {normalized(one)} " in words for one in gold if normalized(one)))


def f1(answer: str, gold: Sequence[str]) -> float:
    """F1 of the words, against the gold answer that fits best."""
    return max((_f1(normalized(answer).split(), normalized(one).split()) for one in gold), default=0.0)


def _f1(answer: list[str], gold: list[str]) -> float:
    common = sum((Counter(answer) & Counter(gold)).values())
    return 2 * common / (len(answer) + len(gold)) if common else 0.0


_NOT_THERE = re.compile(
    r"""\b(?:
        (?:is|are|was|were|do|does|did|has|have|can|could)(?:\ not|n['’]t)\ (?:\w+ly\ )?(?:been\ )?
            (?:mention|state|say|specif|provid|contain|includ|list|give|tell|describ|answer|find|found|known|available)
        | no\ (?:\w+\ )?(?:information|mention|answer|details?|record)
        | not\ (?:any|enough)\ information
        | not\ (?:\w+ly\ )?(?:mentioned|stated|specified|provided|given|included|listed|known|available|there)
        | (?:do|does)(?:\ not|n['’]t)\ (?:know|have)
        | unable\ to
        | nothing\ (?:about|on)
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def is_refusal(answer: str) -> bool:
    """Whether an English answer begins, in its first two sentences, by saying that what was asked for is not there.

    It is told by its words, so that an answer which denies something else in such words counts as well.
    """
    beginning = re.split(r"(?<=[.!?])\s+", answer.strip())[:2]
    return any(_NOT_THERE.search(sentence) for sentence in beginning)


# ---- means over questions


@dataclass(frozen=True)
class Mean:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


def mean_with_interval(values: Sequence[float] | np.ndarray, *, level: float = 0.95, seed: int = 0) -> Mean:
    """Mean over questions with a percentile bootstrap interval.

    Args:
        values: one number per question.
        level: share of the resampled means that the interval holds.
        seed: of the drawing.

    Raises:
        ValueError: there are none.
    """
    if len(values) == 0:
        raise ValueError("no results; a mean needs at least one")
    known = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [rng.choice(known, (100, len(known))).mean(axis=1) for _ in range(RESAMPLES // 100)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Mean(float(known.mean()), float(low), float(high))


def paired_difference(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, *, level: float = 0.95, seed: int = 0
) -> Mean:
    """Mean of ``first - second`` over the same questions, as :func:`mean_with_interval` gives it.

    Args:
        first, second: one number per question, in the same order.
        level, seed: of the interval.

    Raises:
        ValueError: the two differ in length or are empty.
    """
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(f"{len(first)} and {len(second)} results; a paired difference needs as many, at least one")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return mean_with_interval(differences, level=level, seed=seed)


def verdict(difference: Mean, *, more_is_better: bool = True) -> str:
    """What a difference says of its first side: better or worse, or neither where the interval holds 0."""
    if difference.low <= 0 <= difference.high:
        return "not told apart"
    return "better" if (difference.mean > 0) is more_is_better else "worse"
