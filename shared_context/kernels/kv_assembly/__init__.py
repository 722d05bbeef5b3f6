"""The KV of encoded chunks, and their assembly into what the decoder is injected with."""

from shared_context.kernels.kv_assembly.assembly import AssemblyByLayer, assemble
from shared_context.kernels.kv_assembly.chunk_kv import ChunkKV
from shared_context.kernels.kv_assembly.ragged import RaggedContext, assemble_ragged, assemble_ragged_reference
from shared_context.kernels.kv_assembly.ragged_kv import RaggedKV
from shared_context.kernels.kv_assembly.reference import assemble_reference, rotate_keys
from shared_context.kernels.kv_assembly.rotary import Rotary

__all__ = [
    "AssemblyByLayer",
    "ChunkKV",
    "RaggedContext",
    "RaggedKV",
    "Rotary",
    "assemble",
    "assemble_ragged",
    "assemble_ragged_reference",
    "assemble_reference",
    "rotate_keys",
]
