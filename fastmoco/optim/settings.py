"""Settings of the optimizer and its learning-rate schedule; imports no torch."""

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule."""

    name: str = "sgd"
    """sgd, adam, adamw, or lars (pip install 'fastmoco[timm]')."""
    learning_rate: float = 0.03
    """Peak learning rate."""
    scale_learning_rate: bool = False
    """Multiply the learning rate by global_batch_size / 256."""
    sgd_momentum: float = 0.9
    """Momentum of SGD and LARS."""
    weight_decay: float = 1e-4
    """On all parameters, batch norm's included, as in the official code."""
    exclude_bias_and_norm: bool | None = None
    """No weight decay, and with lars no adaptation, on biases and batch norm; null = lars only."""
    schedule: str = "cosine"
    """cosine (to 0, step by step), cosine_per_epoch, multistep or constant."""
    warmup_epochs: float = 0.0
    """Linear warm-up from 0, in epochs, before the schedule."""
    milestones: list[int] = field(default_factory=lambda: [120, 160])
    """Epochs at which multistep multiplies the learning rate."""
    milestone_factor: float = 0.1
    """What multistep multiplies by."""
