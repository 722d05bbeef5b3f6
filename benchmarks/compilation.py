"""Ahead-of-time compilation of every kernel, for which no GPU is needed.

``python -m benchmarks.compilation`` prints what each kernel takes of each architecture: registers of a
thread, bytes of shared memory of a program, and bytes (NVIDIA) or registers (AMD) that did not fit and are spilled.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from shared_context.kernels.kv_assembly.triton_kernel import assembly_kernel, entries_of_a_program
from shared_context.kernels.late_interaction.triton_kernel import LEAVES, leaf_scores_kernel, node_scores_kernel
from shared_context.kernels.preserved_cuts.triton_kernel import preserved_cuts_kernel
from shared_context.kernels.ragged_attention.triton_kernel import (
    QUERIES,
    entries_at_a_time,
    padded,
    ragged_attention_kernel,
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Variant:
    """A kernel with the types and constants of one use.

    Args:
        name: what is printed.
        kernel: a ``@triton.jit`` function.
        types: of its arguments, by name; i32 where left out. ``:16`` marks an integer that is divisible by 16.
        constants: its constexprs, by name.
    """

    name: str
    kernel: triton.JITFunction
    types: dict[str, str]
    constants: dict[str, Any]

    def compiled(self, target: GPUTarget) -> Any:
        """The compiled kernel."""
        names = self.kernel.arg_names
        types = {n: "constexpr" if n in self.constants else self.types.get(n, "i32") for n in names}
        signature = {n: t.removesuffix(":16") for n, t in types.items()}
        # A launch finds out the same: PyTorch allocates its tensors at multiples of 16 bytes.
        aligned = {
            (i,): [["tt.divisibility", 16]] for i, t in enumerate(types.values()) if t.startswith("*") or ":16" in t
        }
        constants = {(names.index(n),): value for n, value in self.constants.items()}
        return triton.compile(ASTSource(self.kernel, signature, constants, aligned), target=target)


@dataclass(frozen=True)
class Footprint:
    """What a compiled kernel takes: registers of a thread, bytes of shared memory, what is spilled."""

    registers: int
    shared: int
    spills: int


def variants() -> Iterator[Variant]:
    """Every kernel in the forms that the library launches at its default settings."""
    for codes, words, per_word in (("i8", 16, True), ("i8", 64, True), ("bf16", 16, True), ("i8", 16, False)):
        yield Variant(
            f"leaf scores, {codes}, {words} words{', each written' if per_word else ''}",
            leaf_scores_kernel,
            {"query": "*fp32", "weights": "*fp32", "codes": f"*{codes}", "scales": "*fp16", "leaves": "*i64"}
            | {"out": "*fp32"}
            | dict.fromkeys(("leaf_size", "code_size", "codes_leaf", "codes_token", "scales_leaf"), "i32:16"),
            {
                "WORDS": words,
                "TOKENS": 32,
                "PER_WORD": per_word,
                "CODE": 64,
                "LEAVES": LEAVES,
                "HAS_SCALES": codes == "i8",
            }
            | {"ONE_BLOCK": True, "HAS_LEAVES": True, "DOT": tl.bfloat16, "codes_code": 1, "scales_token": 1},
        )
    yield Variant(
        "node scores",
        node_scores_kernel,
        {"leaf_scores": "*fp32", "out": "*fp32"},
        {"HEIGHT": 5, "CHUNKS": 16},
    )
    for hidden, channels in ((576, 1024), (4096, 1024)):
        yield Variant(
            f"split-and-search, {hidden} channels",
            preserved_cuts_kernel,
            {"query": "*fp32", "states": "*fp16", "first": "*i64", "count": "*i64", "out": "*i64"}
            | {"hidden": "i32:16", "states_leaf": "i32:16"},
            {"HEIGHT": 4, "CHANNELS": channels, "states_channel": 1},
        )
    for element, head_dim, half, interleaved in (
        ("bf16", 64, 32, False),
        ("i8", 128, 64, False),
        ("bf16", 96, 24, False),
        ("bf16", 128, 32, True),
    ):
        yield Variant(
            f"KV assembly, {element}, heads of {head_dim}, {2 * half} turned{' as neighbours' if interleaved else ''}",
            assembly_kernel,
            {"blocks": "*i64", "rows": "*i32", "cos": "*fp32", "sin": "*fp32", "out": "*bf16"}
            | {"kinds": "*i32"}
            | dict.fromkeys(("out_part", "out_layer", "out_head", "out_entry"), "i64:16"),
            {"ENTRIES": entries_of_a_program(head_dim)}
            | {"ELEMENT": tl.str_to_ty(element, None), "HALF_DIM": half, "HEAD_DIM": head_dim}
            | {"HALF": triton.next_power_of_2(half), "REST": triton.next_power_of_2(max(1, head_dim - 2 * half))}
            | {"HEAD": triton.next_power_of_2(head_dim), "QUANTIZED": element == "i8"}
            | {"ALIGNED": 2 if interleaved else 16, "INTERLEAVED": interleaved},
        )
    for element, head_dim, masked in (("bf16", 64, False), ("bf16", 128, True), ("fp16", 96, False)):
        yield Variant(
            f"ragged attention, {element}, heads of {head_dim}{', masked' if masked else ''}",
            ragged_attention_kernel,
            dict.fromkeys(("query", "keys", "values", "out"), f"*{element}")
            | {"table": "*i64", "mask": "*fp32" if masked else f"*{element}", "lse": "*fp32", "scaling": "fp32"}
            | {"row_stride": "i32:16"},
            {"HEAD_DIM": head_dim, "HEAD": padded(head_dim), "QUERIES": QUERIES, "ENTRIES": entries_at_a_time(head_dim)}
            | {"HAS_MASK": masked, "PRECISION": "tf32", "DOT": tl.str_to_ty(element, None)},
        )


def footprint(compiled: Any, target: GPUTarget) -> Footprint:
    """Read from the assembler's own report: what the metadata has is only known once a device has loaded it."""
    shared = compiled.metadata.shared
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]
        counts = {name: int(n) for name, n in re.findall(r"\.(vgpr_count|[sv]gpr_spill_count):\s+(\d+)", text)}
        return Footprint(counts["vgpr_count"], shared, counts["vgpr_spill_count"] + counts["sgpr_spill_count"])
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    counts = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    return Footprint(counts["REG"], shared, counts["STACK"] + counts["LOCAL"])


def main() -> None:
    """Compile and print a table; any failure ends it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all where none is named"
    )
    targets = parser.parse_args().targets or list(TARGETS)
    print(f"{'kernel':48} {'target':8} {'registers':>9} {'shared':>8} {'spilled':>8}")
    for variant in variants():
        for name in targets:
            taken = footprint(variant.compiled(TARGETS[name]), TARGETS[name])
            print(f"{variant.name:48} {name:8} {taken.registers:9} {taken.shared:8} {taken.spills:8}", flush=True)


if __name__ == "__main__":
    main()
