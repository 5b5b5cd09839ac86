"""Tiny runs for campaigns: what they are given, and what they leave; for the other process."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmoco.configuration import load_config
from fastmoco.data.convert import ConvertConfig, convert
from fastmoco.files import file_sha256
from fastmoco.moco.mechanism import Views
from fastmoco.runs.checkpoint_files import newest_first, step_of
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.train import loop
from fastmoco.train.pretrain import pretrain
from fastmoco.train.review import Review
from fastmoco.train.settings import TrainConfig
from fastmoco.train.step import TrainStep
from fastmoco.train.trainer import Trainer
from tests.pictures import write_class_folders

OPTIONS = [
    "global_batch_size=8",
    "pipeline.view_size=16",
    "pipeline.center_crop=1.0",
    "model.encoder=resnet18",
    "model.stem=small_stride2",
    "model.width=4",
    "moco.dim=8",
    "moco.queue_size=16",
    "moco.batch_norm_splits=2",
    "optimizer.name=adamw",
    "optimizer.learning_rate=0.002",
    "train.epochs=10",
    "train.compile=never",
    "train.report=false",
    "monitor.every_epochs=0",
    "checkpoint.keep=20",
]
TIMES = {
    "images_per_second",
    "data_wait_fraction",
    "step_seconds",
    "device_memory_peak_bytes",
    "device_memory_reserved_bytes",
}


def write_dataset(folder: Path) -> Path:
    """48 images: 6 steps an epoch."""
    write_class_folders(folder / "src", classes=4, per_class=12)
    path = folder / "x.beton"
    convert(str(folder / "src"), path, ConvertConfig(workers=1, page_bytes=1 << 21))
    return path


def run_options(data: Path, run: Path, *more: str) -> list[str]:
    """Options of a run."""
    return [f"data.train={data}", f"run_dir={run}", *OPTIONS, *more]


def train(options: list[str]) -> None:
    """Train without pictures, which take most of the time of so small a run."""
    loop.write_first_views = lambda _: None
    Review._draw = lambda self: read_metrics(self._trainer.run.metrics)  # type: ignore[method-assign]
    pretrain(load_config(TrainConfig, options))


def saved(run: Path) -> dict[int, str]:
    """SHA-256 of the weights of each checkpoint, by its step."""
    found = newest_first(run / "checkpoints")
    return {step_of(one): file_sha256(one.with_suffix(".safetensors")) for one in found}


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics without what is measured by a clock."""
    rows = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def reached(run: Path) -> str:
    """How far a run came that was killed, from its files."""
    if not (run / "config.yaml").exists():
        return "before the run folder is claimed"
    if partial := next(run.rglob("*.partial"), None):
        name = re.sub(r"\d{8}", "N", partial.name.removeprefix(".").removesuffix(".partial"))
        return f"while {name} is written"
    log = run / "train.log"
    text = log.read_text() if log.exists() else ""
    if "step 1/" not in text:
        return "before the first step"
    if "verdict " in text:
        return "after the last step"
    rows, steps = len(read_metrics(run / "metrics.jsonl")), saved(run)
    return f"after {rows} rows, {len(steps)} saves"


# ---------------------------------------------------------------------- numbers


def train_spoiled(options: list[str], what: str, value: str, step: int) -> None:
    """Train, with one number of one step replaced on the last rank."""
    plain = Trainer.take

    def take(self: Trainer, batch: Any, rate: float) -> Tensor:
        if self.steps_done + 1 == step and self.ranks.rank == self.ranks.world_size - 1:
            SPOILERS[what](self.step, float(value))
        return plain(self, batch, rate)

    Trainer.take = take  # type: ignore[method-assign]
    train(options)


def _with_first(tensor: Tensor, value: float) -> Tensor:
    """The tensor, with another first value."""
    tensor[(0,) * tensor.dim()] = value
    return tensor


def _spoil_loss(step: TrainStep, value: float) -> None:
    handle = step.model.register_forward_hook(
        lambda _module, _inputs, output: replace(output, loss=output.loss * value)
    )
    _once(step, handle.remove)


def _spoil_gradient(step: TrainStep, value: float) -> None:
    def spoil(gradient: Tensor) -> Tensor:
        handle.remove()
        return _with_first(gradient.clone(), value)

    handle = next(iter(step.model.learnable())).register_hook(spoil)


def _spoil_view(step: TrainStep, value: float) -> None:
    plain = step.make_views

    def make_views(*given: Tensor, **exchange: Any) -> Views:
        step.make_views = plain  # type: ignore[method-assign]
        views = plain(*given, **exchange)
        views.query[0, 0, 0, 0] = value
        return views

    step.make_views = make_views  # type: ignore[method-assign]


def _spoil_statistics(step: TrainStep, value: float) -> None:
    layer = next(m for m in step.model.query_encoder.modules() if hasattr(m, "running_var"))

    def spoil(module: torch.nn.Module, _inputs: Any, _output: Any) -> None:
        # As a fault of memory would: autograd, which keeps the tensor for ranks, is not told.
        module.running_var.data[0] = value  # type: ignore[index,operator,union-attr]

    handle = layer.register_forward_hook(spoil)
    _once(step, handle.remove)


def _spoil_optimizer(step: TrainStep, value: float) -> None:
    state = next(iter(step.optimizer.state.values()))
    _with_first(state["exp_avg"], value)


def _spoil_queue(step: TrainStep, value: float) -> None:
    _with_first(step.model.queue.keys, value)  # type: ignore[union-attr,arg-type]


def _once(step: TrainStep, undo: Callable[[], None]) -> None:
    """Undo it when the step has done its forward pass."""
    plain = step.guard.step

    def guarded(*given: Any) -> Tensor:
        step.guard.step = plain  # type: ignore[method-assign]
        undo()
        return plain(*given)

    step.guard.step = guarded  # type: ignore[method-assign]


SPOILERS: dict[str, Callable[[TrainStep, float], None]] = {
    "loss": _spoil_loss,
    "gradient": _spoil_gradient,
    "view": _spoil_view,
    "statistics": _spoil_statistics,
    "optimizer": _spoil_optimizer,
    "queue": _spoil_queue,
}
