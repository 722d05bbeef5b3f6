"""The KV of encoded chunks, and their assembly into what the decoder is injected with."""

from shared_context.kernels.kv_assembly.assembly import assemble
from shared_context.kernels.kv_assembly.chunk_kv import ChunkKV
from shared_context.kernels.kv_assembly.reference import assemble_reference, rotate_keys

__all__ = ["ChunkKV", "assemble", "assemble_reference", "rotate_keys"]
