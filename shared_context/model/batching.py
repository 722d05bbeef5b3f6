"""Batching: which requests run together, and as what the whole model is given them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from shared_context.config import require
from shared_context.model.context import ContextKV
from shared_context.model.requests import Request


def batches(
    requests: Sequence[Request], size: int, new_tokens: Sequence[int], window: int, in_window: bool
) -> Iterator[list[int]]:
    """Numbers of the requests that run together: a batch shares the columns of its prefix, and its reader.

    Sliding windows count a batch's columns, not a row's tokens, so that those have to fit the window together.

    Args:
        requests: all of them.
        size: of a batch at most.
        new_tokens: of each answer.
        window: tokens that a batch may take.
        in_window: whether injected KV take room in it.
    """
    require(size >= 1, "batch_size", size, "must be 1 or more prompts")
    alike: defaultdict[tuple[tuple[int, ...], bool], list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        alike[request.prompt.prefix, request.reads].append(index)

    entries = [r.context_entries if in_window else 0 for r in requests]

    def columns(batch: Sequence[int]) -> int:
        parts = (entries, [len(r.prompt) for r in requests], new_tokens)
        return sum(max(part[index] for index in batch) for part in parts)

    for group in alike.values():
        batch: list[int] = []
        for index in group:
            if batch and (len(batch) == size or columns([*batch, index]) > window):
                yield batch
                batch = []
            batch.append(index)
        yield batch


@dataclass(frozen=True)
class Columns:
    """A batch as rows of token ids: context, padded on the left; prefix; running text, padded on the left.

    Attributes:
        ids: [batch, columns].
        mask: [batch, columns], 0 where a row is padded.
        longest: tokens of the longest running text.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    longest: int

    @classmethod
    def of(
        cls,
        contexts: Sequence[ContextKV | None],
        prefix: Sequence[int],
        texts: Sequence[Sequence[int]],
        padding: int,
    ) -> Columns:
        """Arrange a batch.

        Args:
            contexts: what stands in the cache for each row; None for nothing.
            prefix: that all rows share.
            texts: the running text of each row.
            padding: the id of what pads.
        """
        width = max((c.columns for c in contexts if c is not None), default=0)
        longest = max(map(len, texts))
        rows, masks = [], []
        for context, text in zip(contexts, texts, strict=True):
            shown = context.token_ids if context is not None else torch.zeros(0, dtype=torch.long)
            gaps = width - len(shown), longest - len(text)
            after = [*prefix, *[padding] * gaps[1], *text]
            rows.append(torch.cat([torch.full((gaps[0],), padding), shown, torch.tensor(after, dtype=torch.long)]))
            masks.append(torch.ones_like(rows[-1]))
            masks[-1][: gaps[0]] = 0
            masks[-1][width + len(prefix) : width + len(prefix) + gaps[1]] = 0
        return cls(torch.stack(rows), torch.stack(masks), longest)
