"""Times of every kernel: ``python -m benchmarks.kernels``.

On a GPU each kernel stands beside eager PyTorch, ``torch.compile`` of the reference, and the bytes it must move at the
measured bandwidth of a copy; times are medians of CUDA events, and the inputs change from run to run so that the cache
does not flatter. Elsewhere the path of processors stands beside the reference. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from shared_context.kernels.kv_assembly import ChunkKV, assemble, assemble_reference
from shared_context.kernels.late_interaction import (
    late_interaction_scores,
    late_interaction_scores_naive,
    node_scores,
    node_scores_naive,
)
from shared_context.kernels.launch import wait_for

TOKENS = (131_072, 1_048_576, 10_485_760)
LEAF_SIZE, CODE_SIZE, WORDS, CHUNK_SIZE = 32, 64, 16, 1024
ENTRIES = (1024, 8192)
MODELS = {"SmolLM2-135M": (30, 3, 64), "Llama-3-8B": (32, 8, 128), "Qwen2.5-72B": (80, 8, 128)}
"""Layers, KV heads and head size."""

ROTATED_BYTES = 1 << 29
"""Inputs are made as often as it takes to fill this much, which is more than a cache holds."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """One row of a table: what a kernel and its rivals take, in milliseconds, and the bytes that must be moved."""

    name: str
    nbytes: int
    kernel: float
    eager: float
    compiled: float | None


def rotating(calls: Sequence[Call]) -> Call:
    """One call that makes the next of ``calls`` every time."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def milliseconds(calls: Sequence[Call], device: torch.device) -> float:
    """Median time of a call."""
    call = rotating(calls)
    if device.type == "cuda":
        from triton.testing import do_bench

        return do_bench(call, warmup=50, rep=200, return_mode="median")
    call()
    wait_for(device)
    times: list[float] = []
    until = time.perf_counter() + 2
    while len(times) < 3 or (len(times) < 25 and time.perf_counter() < until):
        start = time.perf_counter()
        call()
        wait_for(device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def timed(
    name: str, nbytes: int, kernel: Callable, reference: Callable, inputs: Sequence[tuple], device: torch.device
) -> Timed:
    """A kernel and its reference, eager and (on a GPU) compiled, over the same inputs."""

    def over(function: Callable) -> float:
        return milliseconds([partial(function, *given) for given in inputs], device)

    compiled = None
    if device.type == "cuda":
        torch.compiler.reset()
        compiled = over(torch.compile(reference, dynamic=False))
    return Timed(name, nbytes, over(kernel), over(reference), compiled)


def copies(nbytes: int) -> int:
    """How many inputs of ``nbytes`` to take turns with."""
    return max(2, min(16, ROTATED_BYTES // nbytes))


def leaf_scores(tokens: int, device: torch.device) -> list[Timed]:
    """Scores of all leaves of ``tokens`` tokens, and then of all nodes."""
    leaves = tokens // LEAF_SIZE
    nbytes = tokens * (CODE_SIZE + 2) + 4 * leaves
    inputs = []
    for _ in range(copies(nbytes)):
        codes = torch.randint(-127, 128, (leaves, LEAF_SIZE, CODE_SIZE), dtype=torch.int8, device=device)
        scales = torch.rand((leaves, LEAF_SIZE), device=device).half()
        query = torch.nn.functional.normalize(torch.randn((WORDS, CODE_SIZE), device=device), dim=-1)
        inputs.append((query, torch.rand(WORDS, device=device), codes, scales))
    adjacent = torch.arange(leaves - 1, device=device) % 64 != 63  # documents of 64 leaves
    rows = [
        timed(f"leaf scores, {tokens:,} tokens", nbytes, partial(late_interaction_scores, adjacent=adjacent),
              partial(late_interaction_scores_naive, adjacent=adjacent), inputs, device)
    ]  # fmt: skip
    chunks = tokens // CHUNK_SIZE
    scores = [(torch.randn((chunks, CHUNK_SIZE // LEAF_SIZE), device=device),) for _ in range(4)]
    moved = 4 * chunks * (3 * CHUNK_SIZE // LEAF_SIZE - 1)
    return [*rows, timed(f"node scores, {tokens:,} tokens", moved, node_scores, node_scores_naive, scores, device)]


def kv_assembly(model: str, entries: int, quantize: bool, device: torch.device) -> Timed:
    """A selection of whole leaves, one of each chunk."""
    layers, heads, head_dim = MODELS[model]
    dtype = torch.bfloat16
    inv_freq = 1.0 / 500_000 ** (torch.arange(0, head_dim, 2) / head_dim)
    values = 2 * layers * heads * entries * head_dim
    nbytes = values * ((1 if quantize else 2) + 2)
    rows = [torch.arange(LEAF_SIZE, 2 * LEAF_SIZE) for _ in range(entries // LEAF_SIZE)]
    deltas = [torch.full((LEAF_SIZE,), 100 * i) for i in range(len(rows))]
    inputs = []
    for _ in range(max(1, copies(nbytes) // 4)):
        # chunks of two leaves: where the rows around a leaf lie makes no difference
        shape = (2, layers, heads, 2 * LEAF_SIZE, head_dim)
        chunks = [ChunkKV(torch.randn(shape, dtype=dtype, device=device)) for _ in rows]
        chunks = [chunk.quantized() for chunk in chunks] if quantize else chunks
        out = torch.empty((2, layers, heads, entries, head_dim), dtype=dtype, device=device)
        inputs.append((chunks, rows, deltas, inv_freq, out))
    name = f"KV assembly, {model}, {entries:,} entries, {'int8' if quantize else 'bfloat16'}"
    return timed(name, nbytes, assemble, assemble_reference, inputs, device)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per millisecond by a copy of half a gigabyte."""
    pairs = [torch.empty((2, ROTATED_BYTES), dtype=torch.int8, device=device) for _ in range(2)]
    return 2 * ROTATED_BYTES / milliseconds([partial(target.copy_, source) for target, source in pairs], device)


def report(rows: Sequence[Timed], bandwidth: float) -> str:
    """A Markdown table; the share of copy bandwidth is that of the bytes which no kernel can do without."""
    lines = [
        "| kernel | ms | eager ms | times faster | torch.compile ms | share of copy bandwidth |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        compiled = "-" if row.compiled is None else f"{row.compiled:.3f}"
        share = row.nbytes / row.kernel / bandwidth
        times = f"{row.kernel:.3f} | {row.eager:.3f} | {row.eager / row.kernel:.1f} | {compiled}"
        lines.append(f"| {row.name} | {times} | {share:.0%} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--tokens", type=int, nargs="*", help="sizes of the store; 128K, 1M and, on a GPU, 10M")
    parser.add_argument("--models", nargs="*", choices=list(MODELS), help="sizes of KV; all, or on a processor one")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    on_gpu = device.type == "cuda"
    tokens = given.tokens if given.tokens is not None else TOKENS if on_gpu else TOKENS[:2]
    models = given.models if given.models is not None else list(MODELS) if on_gpu else list(MODELS)[:1]
    name = torch.cuda.get_device_name(device) if on_gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
    bandwidth = copy_bandwidth(device)
    print(f"{name}, PyTorch {torch.__version__}, a copy moves {bandwidth / 1e6:.0f} GB/s\n")
    with torch.inference_mode():
        rows = [row for count in tokens for row in leaf_scores(count, device)]
        for model, entries, quantize in itertools.product(models, ENTRIES if on_gpu else ENTRIES[:1], (False, True)):
            rows.append(kv_assembly(model, entries, quantize, device))
    print(report(rows, bandwidth))


if __name__ == "__main__":
    main()
