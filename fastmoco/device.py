"""Which device a run uses."""

import os

import torch

from fastmoco.errors import UsageError


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


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that was queued; a CPU queues nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
