"""Which leaves may be opened: none below the floor, some behind all others, in turns with them, or before all."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

FLOOR_LEAVES = 32
"""Among fewer leaves the mean says too little of what a question does not need, and there is no floor."""


def above_floor(scores: torch.Tensor, floor: float, stretch: np.ndarray) -> torch.Tensor:
    """Scores in which leaves below a share of the best one are minus infinity, so that no search opens them.

    The leaves on both sides of the best keep their scores, unless the floor is 1: what it says may begin before it or
    go on behind it, in words that have nothing in common with the query.

    Args:
        scores: [chunks, leaves], chunks in the order of documents and of their text; minus infinity where there is no
            leaf.
        floor: the share, counted from the mean: at 0.4 a leaf must reach 40% of what the best is above it; at 1 nothing
            but the best is opened.
        stretch: of an unbroken stretch of a document's chunks each has the same number, [chunks].
    """
    flat = scores.flatten()
    there = flat.isfinite().nonzero()[:, 0]
    if floor == 0 or len(there) < FLOOR_LEAVES:
        return scores
    present = flat[there]
    mean, best = present.mean(), int(present.argmax())
    above = present >= mean + floor * (present[best] - mean)
    of = stretch[there.numpy(force=True) // scores.shape[1]]
    for beside in (best - 1, best + 1) if floor < 1 else ():
        if 0 <= beside < len(of) and of[beside] == of[best]:
            above[beside] = True
    return flat.index_fill(0, there[~above], -torch.inf).view_as(scores)


def behind(scores: torch.Tensor, late: Sequence[int]) -> torch.Tensor:
    """Scores in which some leaves come after all others that may be opened.

    Args:
        scores: [chunks, leaves], as :func:`above_floor` gives them.
        late: places of leaves in the flattened scores, in the order in which they are to come.
    """
    if not late:
        return scores
    flat = scores.flatten()
    last = flat[flat.isfinite()].min()
    after = last - torch.arange(1, len(late) + 1, device=flat.device)
    return flat.index_put((torch.tensor(late, device=flat.device),), after.to(flat.dtype)).view_as(scores)


def in_turns(scores: torch.Tensor, alike: Collection[int]) -> torch.Tensor:
    """Scores in which leaves that say the same of something else take turns with all others that may be opened.

    The first comes behind one other, and each waits for one more than the one before it did.

    Args:
        scores: [chunks, leaves], as :func:`above_floor` gives them.
        alike: places of leaves in the flattened scores.
    """
    flat = scores.flatten()
    places = torch.tensor(sorted(alike), dtype=torch.long, device=flat.device)
    others = flat.index_fill(0, places, -torch.inf)
    others = others[others.isfinite()].sort(descending=True).values
    if not len(others) or not len(places):
        return scores
    places = places[flat[places].argsort(descending=True, stable=True)]
    number = torch.arange(len(places), device=flat.device)
    before = others[(number * (number + 1) // 2).clamp(max=len(others) - 1)]
    after = torch.nextafter(before, torch.full_like(before, -torch.inf))
    return flat.index_put((places,), flat[places].minimum(after)).view_as(scores)


def order_in_turns(scores: Sequence[float], alike: Collection[int], mean: float, floor: float) -> list[int]:
    """The order of passages of which those that say the same of something else take turns with all above the floor.

    Args:
        scores: of the passages, falling.
        alike: numbers of passages among them; the best is none of them.
        mean: of all passages' scores, from which the floor is counted.
        floor: share of the best one's score, as :func:`above_floor` takes it.
    """
    least = mean + floor * (scores[0] - mean)
    worth = [score if score >= least or n in alike else -np.inf for n, score in enumerate(scores)]
    return in_turns(torch.tensor(worth), alike).argsort(descending=True, stable=True).tolist()


AHEAD = 1e-3
"""What a leaf that is raised is above the one behind it: enough to be opened earlier, and no matter to the floor."""


def raised_scores(scores: torch.Tensor, ahead: Sequence[int]) -> torch.Tensor:
    """Scores in which some leaves come before all others, unless they may not be opened.

    Args:
        scores: [chunks, leaves], as :func:`above_floor` takes them.
        ahead: places of leaves in the flattened scores, in the order in which they are to come.
    """
    if not ahead:
        return scores
    flat = scores.flatten()
    places = torch.tensor(ahead, device=flat.device)
    before = flat[flat.isfinite()].max() + AHEAD * torch.arange(len(ahead), 0, -1, device=flat.device)
    return flat.index_put((places,), before.to(flat.dtype).where(flat[places].isfinite(), -torch.inf)).view_as(scores)


def recent_scores(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Scores of the last ``count`` leaves above those of all others, the very last the highest.

    Args:
        scores: [chunks, leaves], as :func:`above_floor` takes them.
        count: leaves.

    Returns:
        [chunks, leaves]; minus infinity but for those leaves.
    """
    flat = scores.flatten()
    there = flat.isfinite().nonzero()[:, 0]
    above = flat[there].max() + torch.arange(1, count + 1, device=flat.device)
    return torch.full_like(flat, -torch.inf).index_put((there[-count:],), above).view_as(scores)
