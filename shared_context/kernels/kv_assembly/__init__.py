"""The KV of encoded chunks, and their assembly into what the decoder is injected with."""

from shared_context.kernels.kv_assembly.assembly import assemble, rotate_keys
from shared_context.kernels.kv_assembly.chunk_kv import ChunkKV

__all__ = ["ChunkKV", "assemble", "rotate_keys"]
