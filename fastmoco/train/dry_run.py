"""`train.dry_run` and `train.profile`: cost of a run, measured before it is started.

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
from fastmoco.device import algorithms, peak_memory_bytes, reserved_memory_bytes, synchronize
from fastmoco.errors import UsageError
from fastmoco.files import atomic_path
from fastmoco.pipelines.contract import ViewLoader
from fastmoco.ranks import environment_ranks
from fastmoco.roofline import matrix_flops, step_flops_per_image
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.acceleration import WARM_UP_STEPS
from fastmoco.train.checks import check_config
from fastmoco.train.data_wait import DataWait
from fastmoco.train.device_rules import with_augmentation
from fastmoco.train.header import first_step_text, log_header
from fastmoco.train.number_format import describe_precision, with_precision
from fastmoco.train.report import StepClock
from fastmoco.train.settings import TrainConfig, run_path
from fastmoco.train.step import STAGES
from fastmoco.train.trainer import Trainer
from fastmoco.waiting import waiting

STEPS = 20


@dataclass(kw_only=True, slots=True)
class DryRun:
    """Measured cost of a run."""

    first_step_seconds: float
    """Seconds of the first step, compilation included."""
    images_per_second: float
    """Throughput of the steps after the first."""
    data_wait_fraction: float
    """Fraction of that time spent waiting for the loader."""
    peak_bytes: int
    """Peak memory of the device; of this process if the device is the CPU."""
    reserved_bytes: int | None
    """The same with what torch's allocator kept for later; None if the device is the CPU."""
    flops_per_image: float
    """Operations of convolutions and matrix products: query forward and backward, key forward."""
    device_flops: float
    """Operations per second of a large matrix product in this number format."""
    number_format: str
    """Number format of the run and of that product."""
    total_steps: int
    global_batch_size: int

    @property
    def share_of_roof(self) -> float:
        """Throughput as a fraction of what the device's arithmetic alone would allow."""
        return self.images_per_second * self.flops_per_image / self.device_flops

    @property
    def total_seconds(self) -> float:
        """Estimated seconds of the complete run."""
        steps_per_second = self.images_per_second / self.global_batch_size
        return self.first_step_seconds + self.total_steps / steps_per_second

    def to_json(self) -> dict[str, Any]:
        """All figures as a JSON object."""
        derived = {"share_of_roof": self.share_of_roof, "total_seconds": self.total_seconds}
        return {**asdict(self), **derived}

    def to_text(self) -> str:
        """All figures, a line for each."""
        hours, seconds = divmod(round(self.total_seconds), 3600)
        memory = f"{self.peak_bytes / 1e9:.2f} GB"
        if self.reserved_bytes is not None:
            memory += f", {self.reserved_bytes / 1e9:.2f} GB reserved"
        roof = f"{100 * self.share_of_roof:.0f}% of {self.device_flops / 1e12:.2f} TFLOP/s"
        roof += f" in {self.number_format}"
        time_text = f"{hours} h {seconds // 60} min {seconds % 60} s"
        lines = {
            "images/s": f"{self.images_per_second:,.0f}",
            "data wait": f"{100 * self.data_wait_fraction:.1f}% of the time",
            "peak memory": memory,
            "first step": f"{self.first_step_seconds:.1f} s, compiling included",
            "roof": f"{roof}, {self.flops_per_image / 1e9:.2f} GFLOP an image",
            "whole run": f"{self.total_steps:,} steps, {time_text}",
        }
        return "\n".join(f"{name:<12}{text}" for name, text in lines.items())


def dry_run(cfg: TrainConfig) -> Path:
    """Print the cost of a run.

    Args:
        cfg: Configuration of the run; ``train.profile`` adds a table of stages and a trace.

    Returns:
        The run folder that the run would have; it is not created.

    Raises:
        UsageError: If settings conflict, or several processes were started.
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
    """Build everything of a run, and measure `STEPS` steps after the first.

    Args:
        cfg: Configuration that `check_config` accepted.
        device: Device of the run.
    """
    cfg = with_augmentation(with_precision(cfg, device), device)
    assert cfg.data.train is not None
    with (
        tempfile.TemporaryDirectory() as folder,
        open_dataset(cfg.data.train) as dataset,
        algorithms(device, reproducible=cfg.train.reproducible),
    ):
        trainer = Trainer(cfg, RunFolder(Path(folder) / "run"), dataset, device)
        groups = cfg.moco.batch_norm_splits
        flops = step_flops_per_image(trainer.step.model, cfg.pipeline.view_size, 2 * groups)
        logger = logging.Logger("fastmoco.dry_run", logging.INFO)
        logger.addHandler(logging.StreamHandler(sys.stderr))
        with closing(trainer.open_loader()) as loader:
            log_header(logger, trainer, loader)
            return _measure(trainer, loader, flops, cfg)


def _measure(trainer: Trainer, loader: ViewLoader, flops: float, cfg: TrainConfig) -> DryRun:
    start, wait = time.perf_counter(), DataWait(trainer.device)
    with waiting(first_step_text(trainer)):
        _take(trainer, loader, wait)
    first_step_seconds = time.perf_counter() - start
    if trainer.graphed:  # the steps before the first replay
        for _ in range(min(WARM_UP_STEPS, trainer.total_steps - 1)):
            _take(trainer, loader, wait)
        synchronize(trainer.device)
    clock = StepClock(wait)
    with _profiled(cfg):
        for _ in range(min(STEPS, trainer.total_steps - trainer.steps_done)):
            _take(trainer, loader, wait)
            clock.add()
        synchronize(trainer.device)
    speeds = clock.read(cfg.global_batch_size)
    return DryRun(
        first_step_seconds=first_step_seconds,
        images_per_second=speeds["images_per_second"] or cfg.global_batch_size / first_step_seconds,
        data_wait_fraction=speeds["data_wait_fraction"] or 0.0,
        peak_bytes=peak_memory_bytes(trainer.device),
        reserved_bytes=reserved_memory_bytes(trainer.device),
        flops_per_image=flops,
        device_flops=matrix_flops(trainer.device, trainer.step.autocast_dtype),
        number_format=describe_precision(cfg.precision, trainer.device),
        total_steps=trainer.total_steps,
        global_batch_size=cfg.global_batch_size,
    )


def _take(trainer: Trainer, loader: ViewLoader, wait: DataWait) -> None:
    """Do one step."""
    trainer.take(wait.next(loader), trainer.learning_rate)
    if trainer.steps_done == 1:
        synchronize(trainer.device)


@contextmanager
def _profiled(cfg: TrainConfig) -> Iterator[None]:
    """Profile the block if `train.profile` is set; print its stages, write its trace."""
    if not cfg.train.profile:
        yield
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    # Torch 2.11 warns if events are not kept, even for a single cycle.
    with profile(activities=activities, acc_events=True) as profiler:
        yield
    print(_stage_table(profiler))  # noqa: T201
    folder = run_path(cfg)
    trace = folder.with_name(f"{folder.name}-trace.json")
    with atomic_path(trace) as temporary:
        profiler.export_chrome_trace(str(temporary))
    print(f"trace       {trace} (for https://ui.perfetto.dev)")  # noqa: T201


def _stage_table(profiler: profile) -> str:
    """Milliseconds per step of each stage, on the host and in the kernels that it started."""
    lines = [f"{'stage, ms a step':<28}{'host':>9}{'device':>9}"]
    events = {event.key: event for event in profiler.key_averages()}
    steps = events[STAGES[-1]].count  # backward passes are several with train.accumulate
    for stage in STAGES:
        times = (events[stage].cpu_time_total, events[stage].device_time_total)  # microseconds
        host, device = (time_us / steps / 1e3 for time_us in times)
        lines.append(f"{stage:<28}{host:>9.2f}{device:>9.2f}")
    return "\n".join(lines)
