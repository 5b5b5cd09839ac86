"""The state of one fine-tuning: encoder, classifier, optimizers and progress."""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fastmoco.configuration import config_from_dict, config_to_dict
from fastmoco.errors import UsageError
from fastmoco.evaluate.frozen_encoder import FrozenEncoder
from fastmoco.evaluate.labeled_task import LabeledTask
from fastmoco.evaluate.settings import FinetuneConfig, Trainable
from fastmoco.files import atomic_path
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.precision import autocast, dtype_of
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.contract import Batch
from fastmoco.runs.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    newest_checkpoint,
    restore_module,
    restore_optimizer,
    save_checkpoint,
    under_prefix,
    with_prefix,
)
from fastmoco.weights.settings import RANDOM

STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
FREE_KEYS = (
    "data", "out", "device", "cache", "baselines", "name", "scratch_learning_rate", "allow_overlap",
)  # fmt: skip
"""Settings that do not change the training, or that are compared in another form."""


class Tuning:
    """A classifier that is trained together with an encoder or its last stages.

    Attributes:
        encoder: The encoder, whose backbone is trained in place.
        head: The classifier: weights N(0, 0.01), bias 0.
        encoder_rate: Peak learning rate of the encoder.
        optimizers: Those of the trained stages (if any) and the head, with peak learning rates.
        curve: One row for each completed epoch.
        seconds: Time spent on steps so far.
    """

    def __init__(
        self, encoder: FrozenEncoder, task: LabeledTask, cfg: FinetuneConfig, folder: Path
    ):
        """Build head and optimizers; only the trained stages get gradients.

        Args:
            encoder: The encoder on its device, all of it frozen.
            task: Images and labels.
            cfg: Protocol.
            folder: Folder of the saved state.
        """
        self.encoder, self.task, self.cfg, self.folder = encoder, task, cfg, folder
        device, self._start = encoder.mean.device, encoder.fingerprint()
        self.head = nn.Linear(encoder.backbone.feature_dim, task.classes.count)
        generator = torch.Generator().manual_seed(cfg.seed)
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.head.to(device)
        self.trained = trained_stages(encoder.backbone, cfg.trainable)
        parameters = [p for stage in self.trained for p in stage.parameters()]
        self.encoder_rate = cfg.optimizer.learning_rate
        if cfg.weights == RANDOM:
            self.encoder_rate = cfg.scratch_learning_rate
        for parameter in parameters:
            parameter.requires_grad_()
        head = list(self.head.parameters())
        parts = [(parameters, self.encoder_rate), (head, cfg.head_learning_rate)]
        self.optimizers = {
            build_optimizer(part, cfg.optimizer): rate for part, rate in parts if part
        }
        self.labels = torch.tensor(task.labels, device=device)
        self.dtype = dtype_of(cfg.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.curve: list[dict[str, Any]] = []
        self.seconds = 0.0

    def train_mode(self) -> None:
        """Set the trained stages to training mode: batch norm over the batch."""
        self.encoder.eval()
        for stage in self.trained:
            stage.train()

    def step(self, batch: Batch, factor: float) -> Tensor:
        """Take one step on one view of each image, at `factor` times the peak learning rates.

        Returns the mean cross-entropy before the step, nats, a scalar on the device.
        """
        for optimizer, rate in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
        mean, std, policy = self.encoder.mean, self.encoder.std, self.cfg.policy
        with torch.no_grad():
            (views,) = augment_views(batch.crops, batch.draw_key, policy, mean, std, torch.float32)
        with autocast(views.device, self.dtype):
            logits = self.head(self.encoder.backbone(views))
        loss = F.cross_entropy(logits.float(), self.labels[batch.sample_id])
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        return loss.detach()

    def save(self) -> None:
        """Save the state after an epoch, and at the end the weights in torchvision's names."""
        tensors = {
            **with_prefix("encoder", self.encoder.state_dict()),
            **with_prefix("head", self.head.state_dict()),
        }
        for number, optimizer in enumerate(self.optimizers):
            tensors |= with_prefix(f"optimizer{number}", flatten_optimizer(optimizer))
        facts = {
            "identity": self._identity(),
            "curve": self.curve,
            "seconds": self.seconds,
            "scaler": dict(self.scaler.state_dict()),
        }
        try:
            save_checkpoint(
                self.folder / "checkpoints",
                Checkpoint(step=len(self.curve), tensors=tensors, facts=facts),
                keep=1,
            )
            if len(self.curve) == self.cfg.train.epochs:
                self._save_weights()
        except OSError as error:
            warnings.warn(f"{self.folder} cannot be written: {error}", stacklevel=2)

    def _save_weights(self) -> None:
        state = {**self.encoder.backbone.state_dict(), **with_prefix("fc", self.head.state_dict())}
        with atomic_path(self.folder / "weights.safetensors") as temporary:
            save_file({k: v.cpu().contiguous() for k, v in state.items()}, temporary)

    def restore(self) -> None:
        """Resume from the saved state, if the folder has one of the same fine-tuning.

        Raises:
            CheckpointError: If it is damaged.
        """
        saved = newest_checkpoint(self.folder / "checkpoints")
        if saved is None or _completed(saved.facts["identity"]) != self._identity():
            return
        for prefix, module in (("encoder", self.encoder), ("head", self.head)):
            restore_module(module, under_prefix(prefix, saved.tensors), saved)
        for number, optimizer in enumerate(self.optimizers):
            restore_optimizer(optimizer, under_prefix(f"optimizer{number}", saved.tensors))
        self.scaler.load_state_dict(saved.facts["scaler"])
        self.curve, self.seconds = saved.facts["curve"], saved.facts["seconds"]

    def _identity(self) -> dict[str, Any]:
        """Facts that must be equal for a saved state to be resumed."""
        config = config_to_dict(self.cfg)
        config["optimizer"]["learning_rate"] = self.encoder_rate
        return {
            "config": _bound(config),
            "train": self.task.train.fingerprint,
            "test": self.task.test.fingerprint,
            "start": self._start,
        }


def _bound(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in FREE_KEYS}


def _completed(identity: dict[str, Any]) -> dict[str, Any]:
    """A saved identity with the options that were added since, which had their defaults."""
    try:
        config = config_to_dict(config_from_dict(FinetuneConfig, identity["config"]))
    except UsageError:  # of a version with other options
        return identity
    return {**identity, "config": _bound(config)}


def trained_stages(backbone: nn.Module, trainable: Trainable) -> list[nn.Module]:
    """The stages of a ResNet from the named one to the last; none for ``head``."""
    if trainable is Trainable.head:
        return []
    first = 0 if trainable is Trainable.all else STAGES.index(trainable.value)
    return [backbone.get_submodule(name) for name in STAGES[first:]]
