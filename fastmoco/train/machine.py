"""What a run may use: kind, memory and number of its devices."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastmoco.memory import total_bytes
from fastmoco.moco.settings import Precision

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The devices of a run."""

    kind: str
    """cpu or cuda."""
    memory_bytes: int
    """Memory of each device in bytes, used or not: a rule gives the same result every time."""
    units: int
    """Cores of a CPU that one process uses, multiprocessors of a GPU; only for duration."""
    devices: int = 1
    """Number of devices, one process each."""
    precision: Precision = Precision.float32
    """What `Precision.auto` is there."""


def machine_of(device: "torch.device", devices: int = 1) -> Machine:
    """Read a device's memory, size and number format, for a run on `devices` like it."""
    import torch

    from fastmoco.optim.precision import choose_precision

    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        memory, units = found.total_memory, found.multi_processor_count
    else:
        memory = total_bytes()
        units = min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
    return Machine(
        kind=device.type,
        memory_bytes=memory,
        units=units,
        devices=devices,
        precision=choose_precision(device)[0],
    )
