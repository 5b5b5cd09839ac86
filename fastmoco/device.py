"""The device of a run."""

import os
from pathlib import Path

import torch

from fastmoco.errors import UsageError


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA if there is a GPU, else the CPU.

    Raises:
        UsageError: If the name is unknown, or the device does not exist.
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
            f"device={name} does not exist; torch sees {torch.cuda.device_count()} CUDA devices; "
            "set device=cpu"
        )
    return device


def describe_device(device: torch.device) -> str:
    """Describe a device in one line, for the run's header."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads)"


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished all queued work; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that torch allocated on a GPU; on a CPU, most that this process had in use."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage would include the peak of the process which started this one.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
