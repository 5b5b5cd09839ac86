"""Settings of the optimizer and its learning-rate schedule; imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum
from importlib.util import find_spec
from typing import ClassVar

from fastmoco.errors import UsageError
from fastmoco.ranges import COUNT_OR_ZERO, NOT_NEGATIVE, POSITIVE, Range, Ranges


class OptimizerName(StrEnum):
    """Optimizers: torch's own in their fused form, and LARS from timm."""

    sgd = "sgd"
    adam = "adam"
    adamw = "adamw"
    lars = "lars"


class Schedule(StrEnum):
    """Learning rate over the epochs, as a fraction of its peak."""

    cosine = "cosine"
    """Half a cosine to 0, changing at every step."""
    cosine_per_epoch = "cosine_per_epoch"
    """Half a cosine to 0, changing once an epoch."""
    cosine_from_1 = "cosine_from_1"
    """`cosine_per_epoch` with epochs counted from 1: the last epoch has a rate of 0."""
    multistep = "multistep"
    """Multiplied by a factor at some epochs."""
    constant = "constant"


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule."""

    RANGES: ClassVar[Ranges] = {
        "learning_rate": NOT_NEGATIVE,
        "sgd_momentum": Range(0, 1, below=True),
        "weight_decay": NOT_NEGATIVE,
        "clip_gradient_norm": POSITIVE,
        "warmup_epochs": NOT_NEGATIVE,
        "milestones": COUNT_OR_ZERO,
        "milestone_factor": NOT_NEGATIVE,
    }

    name: OptimizerName = OptimizerName.sgd
    """Optimizer; lars needs pip install timm."""
    learning_rate: float = 0.03
    """Peak learning rate."""
    scale_learning_rate: bool = False
    """Multiply the rate by global_batch_size / 256."""
    sgd_momentum: float = 0.9
    """Momentum of SGD and LARS."""
    weight_decay: float = 1e-4
    """Weight decay, also of batch norm, as in the official code."""
    exclude_bias_and_norm: bool | None = None
    """No weight decay on biases and batch norm; null = with lars only."""
    clip_gradient_norm: float | None = None
    """Scale all gradients down to this norm where theirs is larger; null = never."""
    schedule: Schedule = Schedule.cosine
    """How the learning rate falls; cosine: in each step, to 0."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0."""
    cosine_after_warmup: bool = True
    """Start the cosine where the warm-up ends; false: as in older runs."""
    milestones: list[int] = field(default_factory=lambda: [120, 160])
    """multistep: epochs at which the learning rate changes."""
    milestone_factor: float = 0.1
    """multistep: factor of each change."""

    def __post_init__(self) -> None:
        """Accept names as plain strings.

        Raises:
            UsageError: If a name is unknown.
        """
        self.name = OptimizerName(_known("name", self.name, OptimizerName))
        self.schedule = Schedule(_known("schedule", self.schedule, Schedule))

    def check_available(self) -> None:
        """Check that the optimizer's package is installed.

        Raises:
            UsageError: If it is missing, naming what to install.
        """
        if self.name is OptimizerName.lars and find_spec("timm") is None:
            raise UsageError("optimizer.name=lars needs timm; install it: pip install timm")


def _known(key: str, value: str, kind: type[StrEnum]) -> str:
    if value not in list(kind):
        raise UsageError(f"optimizer.{key} must be one of {', '.join(kind)}, got {value}")
    return value
