"""What a part of ``make gpu`` is given and gives, and how it is run in a process of its own."""

import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.child import LAST_LINES
from benchmarks.harness import Plan, Timer, cuda_timer, host_timer
from benchmarks.report import Report
from fastmoco.device import algorithms, resolve_device

TOY, SMALL, FULL = "toy", "small", "full"
ROUNDS = {TOY: 1, SMALL: 3, FULL: 10}


@dataclass(frozen=True)
class Job:
    """What a part is given.

    Attributes:
        scale: `TOY` runs anywhere in seconds and measures nothing; `SMALL`; `FULL` has more rounds.
        data: A dataset of the user's, instead of images that are made; None: there is none.
        scratch: A folder for files that are shared by all parts and removed afterwards.
        seconds: The time that the part has.
    """

    scale: str
    data: str | None
    scratch: Path
    seconds: float

    @cached_property
    def device(self) -> torch.device:
        """The GPU, or the CPU where there is none."""
        return resolve_device("auto")

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def compiled(self) -> bool:
        """Whether steps are compiled, which takes a CPU longer than a toy is worth."""
        return self.scale != TOY

    @property
    def timer(self) -> Timer:
        """Times blocks of work on the device."""
        return cuda_timer if self.on_gpu else host_timer()

    def plan(self, steps: int) -> Plan:
        """So many steps in a block, and as many rounds as the scale has."""
        return Plan(self.pick(1, steps), ROUNDS[self.scale])

    def pick(self, toy: int, other: int) -> int:
        """The one that belongs to the scale."""
        return toy if self.scale == TOY else other


Work = Callable[[Job, Report], None]
"""A part: it fills the report, and raises where something is wrong."""


def run_part(
    target: str, name: str, scale: str, data: str | None, scratch: str, seconds: float
) -> dict[str, Any]:
    """Run a part; an error ends it, and the rows before it stay.

    Args:
        target: ``MODULE:FUNCTION`` of the part, a `Work`.
        name: Its name.
        scale: See `Job`.
        data: See `Job`.
        scratch: See `Job`.
        seconds: See `Job`.

    Returns:
        ``rows`` as JSON values, ``device``, ``problem`` in one line ("" if there is none), and the
        last ``lines`` of the error.
    """
    job, report = Job(scale, data, Path(scratch), seconds), Report(name, scale)
    lines: list[str] = []
    module, function = target.split(":")
    try:
        work: Work = getattr(importlib.import_module(module), function)
        with algorithms(job.device, reproducible=False):
            work(job, report)
    except Exception as error:
        report.problem = " ".join(f"{type(error).__name__}: {error}".split())
        lines = traceback.format_exc().strip().splitlines()[-LAST_LINES:]
    device = torch.cuda.get_device_name(job.device) if job.on_gpu else "cpu"
    return {
        "rows": report.to_json(),
        "device": device,
        "problem": report.problem,
        "lines": lines,
    }
