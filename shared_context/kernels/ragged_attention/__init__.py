"""Attention over a context of which every head reads rows of its own, each head as many as it keeps.

One query against the rows of one head is ``softmax(scaling * q K^T) V``, as everywhere. What is special is that heads
keep very different numbers: padded to the fullest, a layer would take more than twice the entries. So each head's rows
are read where they lie, and parts of a context are put together by the logarithms of their softmax's denominators.
"""

from shared_context.kernels.ragged_attention.attention import (
    attention_with_lse,
    joined,
    ragged_attention,
)
from shared_context.kernels.ragged_attention.formula import attention_by_formula, ragged_attention_by_formula
from shared_context.kernels.ragged_attention.naive import ragged_attention_naive

__all__ = [
    "attention_by_formula",
    "attention_with_lse",
    "joined",
    "ragged_attention",
    "ragged_attention_by_formula",
    "ragged_attention_naive",
]
