"""Saving a checkpoint of a run, beside `torch.save` of the same state.

Ours is a file of tensors with a checksum, moved into place when it is on the disk; the official
code pickles into the file that it replaces and leaves it to the page cache: here it is brought to
the disk too, the same finish line. What bounds both is the disk. Files go to $TMPDIR.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Plan, Work, again, host_timer, measure_blocks, summarize
from benchmarks.limits import disk_write
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings
from benchmarks.step_subject import built_model
from fastmoco.device import resolve_device
from fastmoco.moco.settings import MocoConfig, ModelConfig
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.runs.checkpoint import Checkpoint, flatten_optimizer, save_checkpoint, with_prefix

OURS, PICKLED, DISK = "fastmoco", "torch.save", "disk write, fsync"


def bench_checkpoint(settings: Settings, report: Report, scratch: Path) -> None:
    """Seconds a checkpoint."""
    device = resolve_device("auto")
    encoder = "resnet50" if settings.scale == "full" else "resnet18"
    tensors = _state(encoder, device)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    report.subject = f"{encoder}, K = 65,536, SGD: {num_bytes / 1e6:,.0f} MB"
    report.peers = ("safetensors",)
    works: dict[str, Work] = {
        OURS: lambda: save_checkpoint(
            scratch / "ours", Checkpoint(step=1, tensors=tensors, facts={}), keep=1
        ),
        PICKLED: lambda: _pickle(tensors, scratch / "pickled.pt"),
        DISK: lambda: disk_write(scratch / "disk", num_bytes),
    }
    seconds = measure_blocks(works, OURS, Plan(1, settings.pick(3, 5)), host_timer())
    disk = summarize(seconds[DISK]).median
    for name, peer in ((OURS, PICKLED), (PICKLED, ""), (DISK, ""), (again(OURS), OURS)):
        value = summarize(seconds[name])
        report.rows.append(
            Row(
                what=name,
                unit="s",
                value=value,
                ratio=beside(seconds, name, peer, OURS),
                limit=DISK,
                share_of_limit=disk / value.median,
                note="A/A: the noise floor" if peer == OURS else "",
            )
        )


def _state(encoder: str, device: torch.device) -> dict[str, Tensor]:
    """All tensors of a run after its first step."""
    model = built_model(ModelConfig(encoder=encoder), MocoConfig(), device)
    optimizer = build_optimizer(model.query_encoder.parameters(), OptimizerConfig())
    for parameter in model.query_encoder.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return {
        **with_prefix("model", model.state_dict()),
        **with_prefix("optimizer", flatten_optimizer(optimizer)),
    }


def _pickle(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
