"""Settings of `fastmoco train`; imports no torch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from fastmoco.data.settings import DataConfig, check_data
from fastmoco.errors import UsageError
from fastmoco.evaluate.settings import MonitorConfig
from fastmoco.moco.settings import EncoderConfig
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.pipelines.policies import POLICIES, Policy
from fastmoco.pipelines.settings import Augmentation
from fastmoco.ranges import COUNT, COUNT_OR_ZERO, POSITIVE, Ranges, check_ranges
from fastmoco.waiting import waiting

# Keys that do not change what is learned: a run may resume with other values.
FREE_KEYS = frozenset(
    {
        "run_dir",
        "advice",
        "data.train",  # the dataset's fingerprint decides, not the path of the file
        "data.test",
        "pipeline.num_threads",
        "pipeline.prefetch_batches",
        "monitor.allow_overlap",
        "train.max_steps",
        "train.on_nonfinite",  # either way such a step changes nothing
        "train.reproducible",
        "train.cuda_graph",  # the same kernels either way
        "train.dry_run",
        "train.profile",
        "train.report",
        "train.tracker",
        "checkpoint.every_minutes",
        "checkpoint.every_steps",
        "checkpoint.keep",
        "checkpoint.refuse_damaged",
    }
)

PENDING = ["pending"]
"""Value of ``advice`` in ``configs/experiment/own.yaml``."""


class Compile(StrEnum):
    """Whether `torch.compile` is used."""

    auto = "auto"
    """If it works: on the CPU it needs a C++ compiler."""
    always = "always"
    never = "never"


class CudaGraph(StrEnum):
    """Whether a step is captured once as a CUDA graph and then replayed."""

    auto = "auto"
    """On one GPU, if optimizer and policy allow it."""
    always = "always"
    never = "never"


class Gradients(StrEnum):
    """How several devices average their gradients."""

    flat = "flat"
    """In one message after the backward pass."""
    ddp = "ddp"
    """In several messages during it, by DistributedDataParallel: for slow networks; eager."""
    ddp_bf16 = "ddp_bf16"
    """Like ddp, rounded to bfloat16: half the bytes."""


class OnNonfinite(StrEnum):
    """What follows a step with a loss, gradient or running statistic that is not finite."""

    stop = "stop"
    """The run stops, with the checkpoint before it."""
    skip = "skip"
    """The run says so and continues, unless 20 such steps follow each other."""


class Tracker(StrEnum):
    """Who draws the metrics of a run while it trains, besides its own files."""

    tensorboard = "tensorboard"
    """Event files in the run folder."""
    wandb = "wandb"
    """Weights & Biases, by its own package and account."""
    none = "none"


@dataclass(kw_only=True, slots=True)
class LoopConfig:
    """The training loop."""

    RANGES: ClassVar[Ranges] = {
        "epochs": COUNT,
        "max_steps": COUNT_OR_ZERO,
        "log_every_steps": COUNT,
        "accumulate": COUNT,
    }

    epochs: int = 200
    """Passes over the dataset."""
    from_run: Path | None = None
    """Continue from the state of another run, RUN or RUN@STEP, with other settings."""
    max_steps: int = 0
    """Stop after this many steps; 0 = no limit."""
    on_nonfinite: OnNonfinite = OnNonfinite.stop
    """What to do after a step whose loss or gradient is not finite."""
    log_every_steps: int = 20
    """Steps between lines of metrics.jsonl."""
    dry_run: bool = False
    """Run 20 steps, print speed and memory, keep nothing."""
    profile: bool = False
    """Like dry_run, also with the time of each part of a step and a trace."""
    report: bool = True
    """Write report.html at the end of the run."""
    tracker: Tracker = Tracker.tensorboard
    """Log the metrics for tensorboard, to wandb (its package and a login), or nowhere else."""
    compile: Compile = Compile.auto
    """Use torch.compile; auto: where it works."""
    cuda_graph: CudaGraph = CudaGraph.auto
    """Run the step as one CUDA graph; auto: on one GPU."""
    gradients: Gradients = Gradients.flat
    """How several devices average their gradients; ddp is for slow networks."""
    reproducible: bool = False
    """The same bits each time on a GPU; slower."""
    accumulate: int = 1
    """Compute the batch in this many parts to save memory; each is a group of batch norm."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers out of range."""
        check_ranges(self, prefix="train.")


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """Checkpoints."""

    RANGES: ClassVar[Ranges] = {
        "every_minutes": POSITIVE,
        "every_steps": COUNT_OR_ZERO,
        "keep": COUNT,
    }

    every_minutes: float = 5.0
    """Minutes between checkpoints."""
    every_steps: int = 0
    """Steps between checkpoints, instead of minutes; 0 = every_minutes."""
    keep: int = 2
    """Newest checkpoints to keep; the best by kNN stays too."""
    refuse_damaged: bool = False
    """Refuse to resume if the newest checkpoint is damaged; false: use the one before."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers out of range."""
        check_ranges(self, prefix="checkpoint.")


@dataclass(kw_only=True, slots=True)
class TrainConfig(EncoderConfig):
    """All settings of `fastmoco train`."""

    PRESET: ClassVar[str] = "train"
    GROUPS: ClassVar[Mapping[str, Any]] = {"experiment": None, "policy": POLICIES}
    RANGES: ClassVar[Ranges] = {"global_batch_size": COUNT}
    BEFORE: ClassVar[Mapping[str, Any]] = {
        "pipeline.augmentation": Augmentation.planes.value,
        "optimizer.cosine_after_warmup": False,
    }
    """Values of options that runs of older versions do not have in their files."""

    name: str = "moco"
    """Name of the run; its folder is runs/NAME, unless run_dir is set."""
    run_dir: Path | None = None
    """Folder of the run."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    global_batch_size: int = 256
    """Images per step, over all devices."""
    data: DataConfig = field(default_factory=DataConfig)
    weights: Path | None = None
    """Weights to start from: RUN, RUN@STEP, a file, torchvision:NAME, timm:NAME; null = none."""
    policy: Policy = field(default_factory=lambda: POLICIES["moco_v2"])
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    advice: list[str] = field(default_factory=list)
    """Written by experiment=own: what it chose and why."""

    def derive(self, keys: Collection[str]) -> list[str]:
        """Choose the values of ``experiment=own``, which marks its settings as pending.

        Args:
            keys: Options that the user gave.

        Raises:
            UsageError: If data.train is not set, or a dataset does not exist.
            OSError: If it cannot be read.
        """
        if self.advice != PENDING:
            return []
        check_given(self)
        if not (run_path(self) / "checkpoints").is_dir():  # else its settings are kept
            check_data(self)
        with waiting("loading PyTorch"):
            from fastmoco.train.own import own_advice

        advised = advised_overrides(own_advice(self, keys, run_path(self)))
        return [override for override in advised if override.partition("=")[0] not in keys]


@dataclass(kw_only=True, slots=True)
class ReplayConfig:
    """All settings of `fastmoco replay`."""

    RANGES: ClassVar[Ranges] = {"step": COUNT_OR_ZERO}

    step: int = 0
    """Step to compute again, counted from 1; 0 = that of the run's bad-step-N.json."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers out of range."""
        check_ranges(self)


def advised_overrides(advice: Sequence[str]) -> list[str]:
    """``key=value`` of each value that a configuration's ``advice`` holds, and ``advice``."""
    words = [word for line in advice for word in line.partition(": ")[0].split()]
    return [*(word for word in words if "=" in word), f"advice=[{','.join(map(repr, advice))}]"]


def check_given(cfg: TrainConfig) -> None:
    """Check that data and a run folder are given, before torch is loaded.

    Raises:
        UsageError: One line that names the option to set.
    """
    if cfg.data.train is None:
        raise UsageError(
            "data.train is not set; make a dataset file with `fastmoco convert FOLDER train.beton` "
            "and give data.train=train.beton"
        )
    if not cfg.name and cfg.run_dir is None:
        raise UsageError("name must not be empty; set name=NAME or run_dir=FOLDER")


def run_path(cfg: TrainConfig) -> Path:
    """The folder of a run: ``run_dir``, or ``runs/NAME``."""
    return cfg.run_dir or Path("runs") / cfg.name
