"""Script that reads the tensors of a foreign PyTorch file and writes them as safetensors.

`weights_file` runs it in a child process by its path: ``python -P unpickle.py FILE TENSORS``. It
imports nothing of fastmoco. `torch.load` accepts only plain values (``weights_only=True``), and
memory, processor time and output are limited, so a malicious file can at most end this process.

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
"""Memory for PyTorch itself, beside three times the file's size."""
# Keys under which training frameworks store a model's tensors, tried in this order.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")


class Refused(ValueError):
    """The file has no weights that can be imported."""


def bound_resources(file_bytes: int) -> None:
    """Limit memory, processor time and output size of this process; no core file."""
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
    """Private writable memory so far, which counts towards RLIMIT_DATA."""
    with open("/proc/self/status", encoding="ascii") as file:
        found = re.search(r"VmData:\s+(\d+) kB", file.read())
    return 1024 * int(found[1]) if found else 1 << 30


def find_state(loaded: Any) -> Mapping[str, Any]:
    """Find the mapping of a checkpoint that contains the model's tensors.

    Raises:
        Refused: If there is no such mapping.
    """
    if not isinstance(loaded, Mapping):
        raise Refused(f"it contains a {type(loaded).__name__}, not a state dict")
    for key in CONTAINERS:
        if isinstance(loaded.get(key), Mapping) and any(_tensors(loaded[key])):
            found: Mapping[str, Any] = loaded[key]
            return found
    if any(_tensors(loaded)):
        return loaded
    keys = ", ".join(str(key) for key in list(loaded)[:8])
    raise Refused(f"it contains no state dict (its keys: {keys})")


def _tensors(state: Mapping[Any, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((k, v) for k, v in state.items() if isinstance(k, str) and isinstance(v, torch.Tensor))


def plain_tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Dense copies on the CPU, each with memory of its own.

    Raises:
        Refused: If one is sparse, quantized or complex.
    """
    plain = {}
    for name, tensor in _tensors(state):
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
            raise Refused(f"{name} is not a plain dense tensor")
        plain[name] = tensor.detach().to("cpu").contiguous().clone()
    return plain


def _reason(error: Exception) -> str:
    """Shorten an error of `torch.load` to one line."""
    text = str(error)
    if found := re.search(r"GLOBAL (\S+) was not an allowed", text):
        return f"refused: unpickling it would call {found[1]}, which is not needed for weights"
    if found := re.search(r"Unsupported (?:operand|class) (\S+)", text):
        return f"refused: unpickling it would do more than read tensors ({found[1]})"
    if isinstance(error, MemoryError) or "alloc" in text.lower():
        return "refused: its tensors need far more memory than the size of the file"
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"damaged or not a PyTorch file ({type(error).__name__}: {line[:120]})"


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
