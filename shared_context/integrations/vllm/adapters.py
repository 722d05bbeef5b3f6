"""Adapters in vLLM's build for processors, whose own way with them is neither quick nor, in company, right.

It copies an adapter's matrices once for every token and multiplies each copy with one row: a chunk of 540 tokens takes
20 times as long as without an adapter. Tokens of requests without one, whose index is -1, get the last of all adapters
when the same step has requests with one (vllm-project/vllm, pull request 48421). And a request for the likelihoods of
its prompt ends the whole server when the step has others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

Runs = Iterator[tuple[slice, int]]
"""Rows that follow each other and have the same adapter, and which one."""


def install(module: Any) -> None:
    """Have vLLM multiply as is said here.

    Args:
        module: ``vllm.lora.punica_wrapper.punica_cpu``, which calls what is replaced by its global names.
    """
    module.sgmv_shrink, module.sgmv_expand_slice = shrink, expand
    module.bgmv_shrink, module.bgmv_expand = shrink_of_head, expand_of_head


def shrink(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor,
    indices: torch.Tensor, batches: int, longest: int, tokens: int, scaling: float,
) -> None:  # fmt: skip
    """To the rank of adapters, one product for each run of tokens of the same one.

    Args:
        inputs: [tokens, in].
        weights: of all adapters, [adapters, 1, rank, in].
        output: [tokens, rank]; rows of tokens without an adapter stay as they are.
        lengths: of the runs.
        indices: of their adapters; -1 is none.
        scaling: of what comes out.
        starts, batches, longest, tokens: as vLLM hands them; they follow from the lengths.
    """
    _multiply(inputs, weights, output, _runs(lengths, indices), scaling=scaling)


def expand(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor,
    indices: torch.Tensor, batches: int, longest: int, tokens: int, first: int, size: int, add: bool,
) -> None:  # fmt: skip
    """From the rank of adapters to some columns of a layer's output.

    Args:
        inputs: [tokens, rank].
        weights: of all adapters, [adapters, 1, size, rank].
        output: [tokens, columns]; rows of tokens without an adapter stay as they are.
        lengths, indices: as of :func:`shrink`.
        first, size: of the columns.
        add: to what is there.
        starts, batches, longest, tokens: as of :func:`shrink`.
    """
    _multiply(inputs, weights, output[:, first : first + size], _runs(lengths, indices), add=add)


def shrink_of_head(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, indices: torch.Tensor, scaling: float
) -> None:
    """As :func:`shrink`, where the model's head is adapted; there is an index for each request."""
    _multiply(inputs, weights, output, _runs_of_requests(len(inputs), indices), scaling=scaling)


def expand_of_head(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, indices: torch.Tensor, add_inputs: bool
) -> None:
    """As :func:`expand`, where the model's head is adapted; columns behind the adapter's are padding."""
    columns = output[:, : weights.shape[-2]]
    _multiply(inputs, weights, columns, _runs_of_requests(len(inputs), indices), add=add_inputs)


def _multiply(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, runs: Runs, *, scaling: float = 1.0,
    add: bool = False,
) -> None:  # fmt: skip
    for rows, adapter in runs:
        matrix = weights[adapter, 0].T.to(output.dtype)
        output[rows].addmm_(inputs[rows].to(output.dtype), matrix, beta=int(add), alpha=scaling)


def _runs(lengths: torch.Tensor, indices: torch.Tensor) -> Runs:
    """The runs that have an adapter."""
    stop = 0
    for length, adapter in zip(lengths.tolist(), indices.tolist(), strict=True):
        start, stop = stop, stop + length
        if adapter >= 0:
            yield slice(start, stop), adapter


def _runs_of_requests(rows: int, indices: torch.Tensor) -> Runs:
    """The runs where each request has a row, or one all of them; vLLM does not tell what else they are of.

    That is so where likelihoods of a prompt are asked for beside other requests: no adapter is taken for the head then.
    This library's have none for it.
    """
    if len(indices) not in (1, rows):
        return iter(())
    adapters, lengths = torch.unique_consecutive(indices, return_counts=True)
    return _runs(lengths if len(indices) == rows else lengths * rows, adapters)
