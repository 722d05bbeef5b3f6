"""The paper's policy over all context trees at once."""

from __future__ import annotations

import torch

from shared_context.kernels.launch import or_pytorch, triton_serves
from shared_context.kernels.preserved_cuts.naive import preserved_cuts_naive


def preserved_cuts(
    query: torch.Tensor, states: torch.Tensor, first: torch.Tensor, count: torch.Tensor, height: int
) -> torch.Tensor:
    """The preserved cut of every tree (arXiv 2603.04759, section 3).

    From the root, of two children the one more similar to the query is split further and the other is preserved; at
    the last level both are. A node is compared by its last token, which is that of its last leaf, so the right child
    is as similar as its parent and a descent looks at ``height + 1`` leaves. One Triton launch on CUDA and HIP.

    Args:
        query: hidden state of the query's last token, float32 [hidden].
        states: hidden state of every leaf's last token, floating point [leaves, hidden], a tree's leaves in a row.
        first: row of each tree's first leaf, int64 [trees].
        count: leaves of each tree, int64 [trees], at most ``2**height``; the places behind them are empty.
        height: levels below the root.

    Returns:
        int64 [trees, height + 1]: the sibling that was preserved at each level from 1 to ``height``, and the leaf
        that was reached. Node ``(w, k)`` is ``2**w + k``; 0 stands for no node. Where similarities are equal or NaN
        the left child is taken.
    """
    if len(first) and triton_serves(query):
        with or_pytorch():
            from shared_context.kernels.preserved_cuts.triton_kernel import preserved_cuts_triton

            return preserved_cuts_triton(query, states, first, count, height)
    return preserved_cuts_naive(query, states, first, count, height)
