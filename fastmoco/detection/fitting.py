"""Fine-tuning a detector: the step, its schedule, and the checkpoints to resume from."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastmoco.configuration import config_to_dict
from fastmoco.detection.samples import Sample
from fastmoco.detection.settings import DetectConfig
from fastmoco.draws.host import draw_keys
from fastmoco.errors import DivergedError
from fastmoco.moco.collectives import average_over_ranks
from fastmoco.moco.settings import Precision
from fastmoco.optim.loss_scaler import LossScaler
from fastmoco.optim.optimizers import with_zero_momentum
from fastmoco.optim.precision import autocast, dtype_of
from fastmoco.optim.step_guard import StepGuard
from fastmoco.ranks import ALONE, Ranks
from fastmoco.runs.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    restore_module,
    restore_optimizer,
    under_prefix,
    with_prefix,
)
from fastmoco.runs.checkpoint_files import CheckpointError

WARMUP_START = 1e-3  # fraction of the peak, as in detectron2


def learning_rate(cfg: DetectConfig, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then x 0.1 at each milestone."""
    warmed = min(1.0, step / cfg.optimizer.warmup_steps) if cfg.optimizer.warmup_steps else 1.0
    factor = WARMUP_START * (1 - warmed) + warmed
    return (
        cfg.optimizer.learning_rate
        * factor
        * 0.1 ** sum(step >= m for m in cfg.optimizer.milestones)
    )


def build_sgd(model: nn.Module, cfg: DetectConfig) -> torch.optim.Optimizer:
    """SGD with weight decay on all parameters except those of batch norm, as in detectron2."""
    of_norm = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in module.parameters()
    }
    decayed = [p for p in model.parameters() if id(p) not in of_norm]
    free = [p for p in model.parameters() if id(p) in of_norm]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": cfg.optimizer.weight_decay}]
    if free:
        groups.append({"params": free, "weight_decay": 0.0})
    sgd = torch.optim.SGD(
        groups, lr=cfg.optimizer.learning_rate, momentum=cfg.optimizer.sgd_momentum, fused=True
    )
    return with_zero_momentum(sgd)


def seed_region_sampling(seed: int, step: int, ranks: Ranks = ALONE) -> None:
    """Seed torch's global generators for a step.

    torchvision draws the anchors and regions that a step learns from with `torch.randperm`. Seeded
    anew in each step, they are a function of seed, step and rank like every other draw, and a run
    resumes exactly. The negative number keeps this hash apart from those of images.
    """
    key = int(draw_keys(seed, step, np.array([-1 - ranks.rank]))[0])
    torch.manual_seed(key & (2**63 - 1))


@dataclass(slots=True)
class Fitting:
    """A detector in training, with the steps done."""

    cfg: DetectConfig
    model: nn.Module
    """Maps ``(images, targets)`` to losses by name."""
    optimizer: torch.optim.Optimizer
    device: torch.device
    data_fingerprint: str
    encoder_fingerprint: str
    ranks: Ranks = ALONE
    steps_done: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    """Losses summed since the last log line, on this rank."""
    guard: StepGuard = field(init=False)

    def __post_init__(self) -> None:
        """Guard the step: one whose numbers are not finite changes nothing."""
        scaler = LossScaler(self.device, enabled=self.cfg.precision is Precision.fp16)
        norms = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d)]
        self.guard = StepGuard(scaler, [buffer for norm in norms for buffer in norm.buffers()])

    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.steps_done >= self.cfg.train.steps

    def take(self, batch: Sequence[Sample]) -> float:
        """Do one training step, and return the learning rate that it used.

        Raises:
            DivergedError: If the loss or a gradient is not finite.
        """
        rate = learning_rate(self.cfg, self.steps_done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.guard.remember()
        losses = self._losses(batch, self.steps_done)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.scaler.scaled(total).backward()  # type: ignore[no-untyped-call]
        everywhere = total.detach().clone()  # averaged: not finite on a rank, not finite on all
        self._average(everywhere)
        self.guard.step(self.optimizer, everywhere)
        self._count({"loss": total, **losses})
        self.steps_done += 1
        return rate

    def _losses(self, batch: Sequence[Sample], step: int) -> dict[str, Tensor]:
        seed_region_sampling(self.cfg.seed, step, self.ranks)
        images = [sample.image.to(self.device).float() / 255 for sample in batch]
        targets = [{k: v.to(self.device) for k, v in s.target.items()} for s in batch]
        with autocast(self.device, dtype_of(self.cfg.precision, self.device)):
            losses: dict[str, Tensor] = self.model(images, targets)
        return losses

    def _average(self, loss: Tensor) -> None:
        """Average gradients and loss over ranks, in place.

        The gradient of a parameter that this rank did not use is zero.
        """
        if not self.ranks.several:
            return
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        average_over_ranks([*gradients, loss], self.ranks)

    def _count(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            self.totals[name] = self.totals.get(name, 0.0) + value.item()
        self.totals["steps"] = self.totals.get("steps", 0) + 1
        if not math.isfinite(self.totals["loss"]) or self.guard.read().faults:
            raise DivergedError(
                f"the loss or its gradient is not finite at step {self.steps_done}; lower "
                f"optimizer.learning_rate (now {self.cfg.optimizer.learning_rate:g}) or raise "
                "optimizer.warmup_steps; earlier checkpoints are kept"
            )

    def flush(self) -> dict[str, float]:
        """Return the mean losses since the last call, and reset them."""
        steps = self.totals.pop("steps")
        means = {name: total / steps for name, total in self.totals.items()}
        self.totals = {}
        return means

    @torch.no_grad()
    def average_statistics(self, batches: Iterable[Sequence[Sample]]) -> None:
        """Replace batch norm's running statistics by their means over batches, in place.

        "Precise" batch norm: at the end of a schedule the running statistics, over some ten
        batches, are noisy. The batches are numbered as steps after the last one.
        """
        layers = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d)]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative mean
        self.model.train()
        for step, batch in enumerate(batches, start=self.cfg.train.steps):
            self._losses(batch, step)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum

    def checkpoint(self) -> Checkpoint:
        """The complete current state."""
        tensors = {
            **with_prefix("model", self.model.state_dict()),
            **with_prefix("optimizer", flatten_optimizer(self.optimizer)),
        }
        facts = {
            "config": config_to_dict(self.cfg),
            "data_fingerprint": self.data_fingerprint,
            "encoder_fingerprint": self.encoder_fingerprint,
            "world_size": self.ranks.world_size,
            "totals": self.totals,
            "scaler": self.guard.scaler.state(),
            "torch_version": torch.__version__,
        }
        return Checkpoint(step=self.steps_done, tensors=tensors, facts=facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint.

        Raises:
            CheckpointError: If data, encoder or number of devices were others than now.
        """
        facts, devices = checkpoint.facts, self.ranks.world_size
        if facts.get("data_fingerprint") != self.data_fingerprint:
            problem = "was trained on other data than data.train; give that data"
        elif facts.get("encoder_fingerprint") != self.encoder_fingerprint:
            problem = "started from other weights; give that RUN and those weights"
        elif facts["world_size"] != devices:
            problem = (
                f"was trained on {facts['world_size']} devices, here are {devices}; use as many"
            )
        else:
            problem = ""
        if problem:
            raise CheckpointError(f"{checkpoint.path} {problem}, or set another run_dir")
        restore_module(self.model, under_prefix("model", checkpoint.tensors), checkpoint)
        restore_optimizer(self.optimizer, under_prefix("optimizer", checkpoint.tensors))
        self.guard.scaler.restore(facts.get("scaler", {}))
        self.totals = dict(facts["totals"])
        self.steps_done = checkpoint.step


def fingerprint_of(module: nn.Module) -> str:
    """Hex SHA-256 of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
