"""Number formats of the forward and backward pass."""

from functools import cache
from pathlib import Path

import torch

from fastmoco.moco.settings import Precision

AUTOCAST_DTYPES = {
    Precision.float32: torch.float32,
    Precision.fp16: torch.float16,
    Precision.bf16: torch.bfloat16,
}
"""`Precision.auto` is one of these, see `choose_precision`."""
BF16_CAPABILITY = 8
"""First compute capability of GPUs with matrix units for bf16 (CUDA programming guide, "Compute
Capabilities")."""
FP16_CAPABILITY = 7
"""The same for fp16."""
BF16_FLAGS = ("amx_bf16", "avx512_bf16")
"""Instructions of a CPU that multiply in bf16, as Linux calls them."""


def choose_precision(device: torch.device) -> tuple[Precision, str]:
    """What `Precision.auto` is on a device, and why; a rule, nothing is timed."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        reason = f"compute capability {capability[0]}.{capability[1]}"
        if capability[0] >= BF16_CAPABILITY:
            return Precision.bf16, reason
        chosen = Precision.fp16 if capability[0] >= FP16_CAPABILITY else Precision.float32
        return chosen, reason
    flags = _cpu_flags()
    if found := next((flag for flag in BF16_FLAGS if flag in flags), None):
        return Precision.bf16, f"this CPU has {found}"
    return Precision.float32, "this CPU has no instructions for bf16"


@cache
def _cpu_flags() -> frozenset[str]:
    """Instruction sets of the first processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """The number format itself in place of `Precision.auto`."""
    return choose_precision(device)[0] if precision is Precision.auto else precision


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype for `autocast`."""
    return AUTOCAST_DTYPES[resolve_precision(precision, device)]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Context in which convolutions and matrix products run in `dtype`; float32: unchanged."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
