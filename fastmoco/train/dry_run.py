"""`train.dry_run` and `train.profile`: what a run would cost, before it is started.

Everything is built as the run would build it, in a folder that is removed afterwards; a run folder
of the same name is neither read nor changed.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fastmoco.data.dataset import open_dataset
from fastmoco.device import synchronize
from fastmoco.errors import UsageError
from fastmoco.files import atomic_path
from fastmoco.optim.precision import AUTOCAST_DTYPES
from fastmoco.pipelines.contract import ViewLoader
from fastmoco.ranks import environment_ranks
from fastmoco.roofline import matrix_flops, step_flops_per_image
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.acceleration import WARM_UP_STEPS
from fastmoco.train.checks import check_config
from fastmoco.train.report import StepClock, log_header
from fastmoco.train.settings import TrainConfig, run_path
from fastmoco.train.step import STAGES
from fastmoco.train.trainer import Trainer

STEPS = 20


@dataclass(kw_only=True, slots=True)
class DryRun:
    """What was measured."""

    first_step_seconds: float
    """With compiling."""
    images_per_second: float
    """Of the steps after the first."""
    data_wait_fraction: float
    peak_bytes: int
    """Of the device's memory, or of this process where the device is the CPU."""
    flops_per_image: float
    """Of convolutions and matrix products: query forward and backward, key forward."""
    device_flops: float
    """What a large matrix product reaches in this precision, a second."""
    total_steps: int
    global_batch_size: int

    @property
    def share_of_roof(self) -> float:
        """Of what the device's arithmetic would allow, were nothing else to do."""
        return self.images_per_second * self.flops_per_image / self.device_flops

    @property
    def total_seconds(self) -> float:
        """Of the whole run."""
        steps_per_second = self.images_per_second / self.global_batch_size
        return self.first_step_seconds + self.total_steps / steps_per_second

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            **asdict(self),
            "share_of_roof": self.share_of_roof,
            "total_seconds": self.total_seconds,
        }

    def to_text(self) -> str:
        """A line for each figure."""
        hours, seconds = divmod(round(self.total_seconds), 3600)
        lines = [
            ("images/s", f"{self.images_per_second:,.0f}"),
            ("data wait", f"{100 * self.data_wait_fraction:.1f}% of the time"),
            ("peak memory", f"{self.peak_bytes / 1e9:.2f} GB"),
            ("first step", f"{self.first_step_seconds:.1f} s, compiling included"),
            (
                "roof",
                f"{100 * self.share_of_roof:.0f}% of {self.device_flops / 1e12:.2f} TFLOP/s, "
                f"{self.flops_per_image / 1e9:.2f} GFLOP an image",
            ),
            (
                "whole run",
                f"{self.total_steps:,} steps, {hours} h {seconds // 60} min {seconds % 60} s",
            ),
        ]
        return "\n".join(f"{name:<12}{text}" for name, text in lines)


def dry_run(cfg: TrainConfig) -> Path:
    """Print what a run costs.

    Args:
        cfg: Of the run; ``train.profile`` adds a table of stages and a trace.

    Returns:
        The run folder that the run would have: this makes none.

    Raises:
        UsageError: If settings do not fit each other, or several processes were started.
    """
    ranks = environment_ranks()
    device = check_config(cfg, ranks)
    if ranks.several:
        raise UsageError(
            "train.dry_run and train.profile measure one device; start them without torchrun, "
            "with the batch of one device"
        )
    print(measure_cost(cfg, device).to_text())  # noqa: T201
    return run_path(cfg)


def measure_cost(cfg: TrainConfig, device: torch.device) -> DryRun:
    """Build all of a run, do `STEPS` steps after the first, measure them.

    Args:
        cfg: Checked already.
        device: Of the run.
    """
    assert cfg.data.train is not None
    with tempfile.TemporaryDirectory() as folder, open_dataset(cfg.data.train) as dataset:
        trainer = Trainer(cfg, RunFolder(Path(folder) / "run"), dataset, device)
        groups = cfg.moco.batch_norm_splits
        flops = step_flops_per_image(trainer.step.model, cfg.pipeline.view_size, 2 * groups)
        with closing(trainer.open_loader()) as loader:
            log_header(_stderr_logger(), trainer, loader)
            return _measure(trainer, loader, flops, cfg)


def _stderr_logger() -> logging.Logger:
    logger = logging.Logger("fastmoco.dry_run", logging.INFO)
    logger.addHandler(logging.StreamHandler(sys.stderr))
    return logger


def _measure(trainer: Trainer, loader: ViewLoader, flops: float, cfg: TrainConfig) -> DryRun:
    start = time.perf_counter()
    _take(trainer, loader)
    first_step_seconds = time.perf_counter() - start
    if trainer.graphed:  # those that are not replayed yet
        for _ in range(min(WARM_UP_STEPS, trainer.total_steps - 1)):
            _take(trainer, loader)
        synchronize(trainer.device)
    clock = StepClock()
    with _profiled(cfg):
        for _ in range(min(STEPS, trainer.total_steps - trainer.steps_done)):
            clock.add(_take(trainer, loader))
        synchronize(trainer.device)
    speeds = clock.read(cfg.global_batch_size)
    return DryRun(
        first_step_seconds=first_step_seconds,
        images_per_second=speeds["images_per_second"] or cfg.global_batch_size / first_step_seconds,
        data_wait_fraction=speeds["data_wait_fraction"] or 0.0,
        peak_bytes=_peak_bytes(trainer.device),
        flops_per_image=flops,
        device_flops=matrix_flops(trainer.device, AUTOCAST_DTYPES[cfg.precision]),
        total_steps=trainer.total_steps,
        global_batch_size=cfg.global_batch_size,
    )


def _take(trainer: Trainer, loader: ViewLoader) -> float:
    """One step; gives the seconds that it waited for data."""
    batch = next(loader)
    trainer.take(batch, trainer.learning_rate)
    if trainer.steps_done == 1:
        synchronize(trainer.device)
    return batch.data_wait_seconds


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Of this program alone: getrusage's peak is also that of the process which started it.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@contextmanager
def _profiled(cfg: TrainConfig) -> Iterator[None]:
    """Profile the block where `train.profile` asks for it; print its stages, write its trace."""
    if not cfg.train.profile:
        yield
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    # Torch 2.11 warns where events are not kept, even of a single cycle.
    with profile(activities=activities, acc_events=True) as profiler:
        yield
    print(_stage_table(profiler))  # noqa: T201
    folder = run_path(cfg)
    trace = folder.with_name(f"{folder.name}-trace.json")
    with atomic_path(trace) as temporary:
        profiler.export_chrome_trace(str(temporary))
    print(f"trace       {trace} (for https://ui.perfetto.dev)")  # noqa: T201


def _stage_table(profiler: profile) -> str:
    """Milliseconds a step of each stage, on the host and of the kernels it started."""
    lines = [f"{'stage, ms a step':<28}{'host':>9}{'device':>9}"]
    events = {event.key: event for event in profiler.key_averages()}
    steps = events[STAGES[-1]].count  # backward passes are several with train.accumulate
    for stage in STAGES:
        event = events[stage]
        host = event.cpu_time_total / steps / 1e3
        device = event.device_time_total / steps / 1e3
        lines.append(f"{stage:<28}{host:>9.2f}{device:>9.2f}")
    return "\n".join(lines)
