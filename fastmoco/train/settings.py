"""Settings of `fastmoco train`; imports no torch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from fastmoco.data.settings import DataConfig
from fastmoco.errors import UsageError
from fastmoco.evaluate.settings import MonitorConfig
from fastmoco.moco.settings import EncoderConfig
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.pipelines.policies import POLICIES, Policy
from fastmoco.pipelines.settings import Augmentation
from fastmoco.ranges import COUNT, COUNT_OR_ZERO, POSITIVE, Ranges, check_ranges

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
    """Passes over the dataset; the schedules span all of them."""
    from_run: Path | None = None
    """Go on from the state of another run, RUN or RUN@STEP, in a new folder with other settings:
    more epochs, another learning rate; steps are counted on."""
    max_steps: int = 0
    """Stop after this many steps, even before the end of the schedule; 0 = no limit."""
    on_nonfinite: OnNonfinite = OnNonfinite.stop
    """After a step whose loss or gradient is not finite, which changes nothing: stop the run, or
    skip the step and continue."""
    log_every_steps: int = 20
    """Steps per line of metrics.jsonl; each line is the mean since the last."""
    dry_run: bool = False
    """Build everything, run 20 steps, print speed and memory of the run, keep nothing."""
    profile: bool = False
    """Like dry_run, with a table of a step's stages and a trace beside the run folder."""
    report: bool = True
    """Write report.html at the end of the run; fastmoco report writes it at any time."""
    tracker: Tracker = Tracker.tensorboard
    """Log the metrics for tensorboard, to wandb (Weights & Biases; needs its package and a login,
    or WANDB_MODE=offline), or none. metrics.jsonl and the report have them all the same."""
    compile: Compile = Compile.auto
    """torch.compile: auto, always or never."""
    cuda_graph: CudaGraph = CudaGraph.auto
    """Run the step as one CUDA graph: auto (on one GPU), always or never."""
    reproducible: bool = False
    """Deterministic algorithms alone, for the same bits each time on a GPU; slower."""
    accumulate: int = 1
    """Micro-batches of a device's batch, one after the other, to save memory. Each is a group of
    batch norm; all see the same queue; keys are enqueued after the step."""

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
    """Minutes between checkpoints. One also follows each measurement of the monitor, the last step
    and a signal."""
    every_steps: int = 0
    """Steps between checkpoints, in place of minutes and measurements; 0 = every_minutes."""
    keep: int = 2
    """Number of the newest checkpoints to keep; the best by kNN stays too."""
    refuse_damaged: bool = False
    """Refuse to resume if the newest checkpoint is damaged; false resumes from the one before."""

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
    """Name of the run; its folder is runs/NAME unless run_dir is set."""
    run_dir: Path | None = None
    """Folder of the run."""
    device: str = "auto"
    """auto (CUDA if available), cpu, cuda or cuda:N."""
    global_batch_size: int = 256
    """Images per step, over all devices."""
    data: DataConfig = field(default_factory=DataConfig)
    weights: Path | None = None
    """What the encoders start from: null or random (from nothing), RUN or RUN@STEP, a file of
    weights, torchvision:NAME or timm:NAME."""
    policy: Policy = field(default_factory=lambda: POLICIES["moco_v2"])
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    advice: list[str] = field(default_factory=list)
    """Values that experiment=own chose and why; it writes them itself."""

    def derive(self, keys: Collection[str]) -> list[str]:
        """Choose the values of ``experiment=own``, which marks its settings as pending.

        Args:
            keys: Options that the user gave.

        Raises:
            UsageError: If data.train is not set.
            OSError: If it cannot be read.
        """
        if self.advice != PENDING:
            return []
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
    """auto (CUDA if available), cpu, cuda or cuda:N."""
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
