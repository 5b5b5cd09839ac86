"""Which device a run uses, and whether torch.compile works there."""

import os
import warnings
from functools import cache

import torch

from fastmoco.schema import Compile, UsageError


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is a device, else the CPU.

    Raises:
        UsageError: If the name is no device, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"device={name} is unknown; set device to auto, cpu, cuda or cuda:N"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device={name} is not supported; set device to auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device={name} is not there (torch sees {torch.cuda.device_count()}); set device=cpu"
        )
    return device


def describe_device(device: torch.device) -> str:
    """One line for the run's header."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads)"


@cache
def _compile_failure(device: torch.device) -> str | None:
    """Compile one addition: nothing else proves compiler, headers and cache folder together."""
    try:
        with warnings.catch_warnings():
            # torch warns of its own old parts while it loads the compiler (2.11 does).
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except Exception as error:  # the toolchain fails in more ways than torch names
        return str(error).strip().splitlines()[0]
    return None


def resolve_compile(choice: Compile, device: torch.device) -> tuple[bool, str]:
    """Whether to compile, and a line that says so.

    Raises:
        UsageError: If it must and cannot.
    """
    if choice is Compile.never:
        return False, "eager (train.compile=never)"
    failure = _compile_failure(device)
    if failure is None:
        return True, "torch.compile"
    if choice is Compile.always:
        raise UsageError(f"torch.compile fails here: {failure}; set train.compile=auto or never")
    return (
        False,
        f"eager, torch.compile fails here ({failure}); a C++ compiler (g++) makes it faster",
    )
