"""Reads the tensors of one foreign PyTorch file and writes them as safetensors: a script.

`weights_file` runs it in a process of its own, by its path: ``python -P unpickle.py FILE TENSORS``.
It imports nothing of fastmoco. `torch.load` refuses all but plain values (``weights_only=True``),
and memory, processor time and output are bounded, so that the worst that a file can do is to end
this process.

Exit codes: 0 done; 3 refused or damaged, with one line on stderr.
"""

import os
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import save_file

CPU_SECONDS = 600
SPARE_BYTES = 2 << 30
"""Memory beyond three times the file: for PyTorch itself."""
# Where training frameworks put a model's tensors, in the order of trust.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")


class Refused(ValueError):
    """The file holds no weights that can be taken in."""


def bound_resources(file_bytes: int) -> None:
    """Limit this process: memory, processor time, size of what it writes; no core file."""
    memory = 3 * file_bytes + SPARE_BYTES + _used_bytes()
    for what, value in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 2 * file_bytes + (64 << 20)),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (limit, limit))


def _used_bytes() -> int:
    """Private writable memory so far, which RLIMIT_DATA counts too."""
    with open("/proc/self/status", encoding="ascii") as file:
        found = re.search(r"VmData:\s+(\d+) kB", file.read())
    return 1024 * int(found[1]) if found else 1 << 30


def find_state(loaded: Any) -> Mapping[str, Any]:
    """The mapping of a checkpoint that holds the model's tensors.

    Raises:
        Refused: If there is none.
    """
    if not isinstance(loaded, Mapping):
        raise Refused(f"it holds a {type(loaded).__name__}, not a state dict")
    for key in CONTAINERS:
        if isinstance(loaded.get(key), Mapping) and any(_tensors(loaded[key])):
            found: Mapping[str, Any] = loaded[key]
            return found
    if any(_tensors(loaded)):
        return loaded
    keys = ", ".join(str(key) for key in list(loaded)[:8])
    raise Refused(f"it holds no state dict (its keys: {keys})")


def _tensors(state: Mapping[Any, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((k, v) for k, v in state.items() if isinstance(k, str) and isinstance(v, torch.Tensor))


def plain_tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Dense copies on the CPU, each with memory of its own.

    Raises:
        Refused: If one is of a kind that weights are not.
    """
    plain = {}
    for name, tensor in _tensors(state):
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
            raise Refused(f"{name} is no plain dense tensor")
        plain[name] = tensor.detach().to("cpu").contiguous().clone()
    return plain


def _reason(error: Exception) -> str:
    """One line of what `torch.load` says in many."""
    text = str(error)
    if found := re.search(r"GLOBAL (\S+) was not an allowed", text):
        return f"refused: unpickling it would call {found[1]}, which is not needed for weights"
    if found := re.search(r"Unsupported (?:operand|class) (\S+)", text):
        return f"refused: unpickling it would do more than read tensors ({found[1]})"
    if isinstance(error, MemoryError) or "alloc" in text.lower():
        return "refused: its tensors need far more memory than the file is large"
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"damaged or no PyTorch file ({type(error).__name__}: {line[:120]})"


def main(source: str, target: str) -> int:
    """Convert one file; returns the exit code."""
    torch.set_num_threads(1)
    bound_resources(os.path.getsize(source))
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
        save_file(plain_tensors(find_state(loaded)), target)
    except Refused as error:
        reason = str(error)
    except Exception as error:  # a crafted file can raise anything
        reason = _reason(error)
    else:
        return 0
    sys.stderr.write(f"{reason}\n")
    return 3


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
