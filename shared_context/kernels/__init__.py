"""Kernels: one folder each, every fast version beside its plain-PyTorch reference.

``triton`` is imported only when a kernel is launched; without it, and without a GPU, PyTorch does the work.
"""

from shared_context.kernels.kv_assembly import (
    AssemblyByLayer,
    ChunkKV,
    RaggedContext,
    RaggedKV,
    Rotary,
    assemble,
    assemble_ragged,
    assemble_reference,
    rotate_keys,
)
from shared_context.kernels.late_interaction import late_interaction_scores, node_scores, quantize_codes
from shared_context.kernels.preserved_cuts import preserved_cuts
from shared_context.kernels.ragged_attention import (
    attention_by_formula,
    attention_with_lse,
    joined,
    ragged_attention,
    ragged_attention_by_formula,
)

__all__ = [
    "AssemblyByLayer",
    "ChunkKV",
    "RaggedContext",
    "RaggedKV",
    "Rotary",
    "assemble",
    "assemble_ragged",
    "assemble_reference",
    "attention_by_formula",
    "attention_with_lse",
    "joined",
    "late_interaction_scores",
    "node_scores",
    "preserved_cuts",
    "quantize_codes",
    "ragged_attention",
    "ragged_attention_by_formula",
    "rotate_keys",
]
