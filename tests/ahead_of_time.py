"""Triton kernels compiled for cards that are not there: what they need of each.

``python -m tests.ahead_of_time`` prints the table of docs/step.md.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastmoco.moco.kernels import info_nce as kernels

CARDS = {
    80: ("A100", 163),
    86: ("RTX 30, A10", 99),
    89: ("RTX 40, L4", 99),
    90: ("H100, H200", 227),
    100: ("B200", 227),
    120: ("RTX 50", 99),
}
"""Compute capability: cards, and the shared memory of a block in KiB (CUDA programming guide)."""
DIMS = (64, 128, 256, 512)
POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin"


class Needs(NamedTuple):
    """What a compiled kernel needs."""

    shared_bytes: int
    """Shared memory of a block."""
    registers: int
    """Registers of a thread, at most 255."""
    spilled_bytes: int
    """Registers that are kept in memory instead."""


def compile_sums(capability: int, dim: int, dtype: torch.dtype = torch.float16) -> Needs:
    """Compile the kernel of the sums for the queue's dtype."""
    tile, queue = kernels.tile_for(dim, dtype), POINTERS[dtype]
    floats = ("positive", "maximum", "total", "mean")
    signature = {"query": queue, "queue": queue, **dict.fromkeys(floats, "*fp32"), "rank": "*i32"}
    signature |= {"num_queries": "i32", "num_keys": "i32", "dim": "i32", "scale": "fp32"}
    constants = {
        "part_keys": 2048,
        "block_queries": tile.queries,
        "block_keys": tile.keys,
        "block_dim": dim,
        "precision": "ieee" if dtype is torch.float32 else "tf32",
    }
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return _compile(kernels.sums_kernel, capability, signature, constants, options)


def compile_merge(capability: int, dim: int) -> Needs:
    """Compile the kernel that merges the parts."""
    floats = ("maximum", "total", "mean", "positive", "key", "value", "gradient")
    signature = dict.fromkeys(floats, "*fp32")
    signature |= {"rank": "*i32", "above": "*i64"}
    signature |= {"num_queries": "i32", "dim": "i32", "factor": "fp32"}
    constants = {"parts": 66, "block_parts": 128, "step": kernels.MERGED_PARTS, "block_dim": dim}
    return _compile(kernels.merge_kernel, capability, signature, constants, {})


def _compile(
    kernel: Any,
    capability: int,
    signature: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, int],
) -> Needs:
    names = list(kernel.arg_names)
    ordered = {name: signature.get(name, "constexpr") for name in names}
    # Addresses and sizes are multiples of 16, as at a launch.
    aligned = [i for i, name in enumerate(names) if ordered[name][0] in "*i"]
    source = ASTSource(
        fn=kernel,
        signature=ordered,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={**options, **kernels.FUSION}
    )
    return Needs(compiled.metadata.shared, *_registers(compiled.asm["ptx"]))


def _registers(ptx: str) -> tuple[int, int]:
    """Registers and spilled bytes, as the assembler counts them."""
    found = re.search(r"\.target (\w+)", ptx)
    assert found
    assemblers = sorted(PTXAS.glob("ptxas*"))  # ptxas-blackwell knows the newer cards too
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [
            assemblers[-1],
            "-v",
            f"--gpu-name={found[1]}",
            path,
            "-o",
            path.with_suffix(".o"),
        ]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    used = re.search(r"Used (\d+) registers", text)
    stored = re.search(r"(\d+) bytes spill stores", text)
    assert used, text
    assert stored, text
    return int(used[1]), int(stored[1])


def table() -> list[str]:
    """The rows of docs/step.md."""
    lines = ["| card | " + " | ".join(f"C = {dim}" for dim in DIMS) + " | merge, C = 128 |"]
    lines.append("|---|" + "---:|" * (len(DIMS) + 1))
    for capability, (cards, _) in CARDS.items():
        needs = [compile_sums(capability, dim) for dim in DIMS] + [compile_merge(capability, 128)]
        cells = [
            f"{n.registers}, {n.spilled_bytes}, {n.shared_bytes / 1024:.0f} KiB" for n in needs
        ]
        lines.append(f"| {cards} (sm_{capability}) | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))  # noqa: T201
