"""Settings of evaluation; a string under a field is its help text.

This module imports no torch, so that commands which need none start at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from fastmoco.data.settings import DataConfig
from fastmoco.errors import UsageError
from fastmoco.moco.settings import Precision
from fastmoco.optim.settings import OptimizerConfig, Schedule
from fastmoco.pipelines.policies import POLICIES, Policy
from fastmoco.ranges import (
    COUNT,
    COUNT_OR_ZERO,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    Range,
    Ranges,
    check_ranges,
)


class Features(StrEnum):
    """The vector of the encoder that represents an image."""

    backbone = "backbone"
    """After the global average pool."""
    embedding = "embedding"
    """After the projection head."""


@dataclass(kw_only=True, slots=True)
class CropConfig:
    """How evaluation reads images; default: as the run did."""

    RANGES: ClassVar[Ranges] = {
        "eval_size": COUNT_OR_ZERO,
        "center_crop": SHARE,
        "num_threads": COUNT_OR_ZERO,
    }

    name: str = "auto"
    """auto, beton, dali, ffcv, resident or torchvision (slow)."""
    eval_size: int = 0
    """Side of the crops, pixels; 0 = as in the run."""
    center_crop: float | None = None
    """Side of the central square, as a fraction of the image's short side; null = as in the run."""
    num_threads: int = 0
    """Threads that decode and crop; 0 = one per core."""


@dataclass(kw_only=True, slots=True)
class FeaturesConfig:
    """Options of every command that runs a frozen encoder over datasets."""

    RANGES: ClassVar[Ranges] = {"global_batch_size": COUNT}

    data: DataConfig = field(default_factory=DataConfig)
    pipeline: CropConfig = field(default_factory=CropConfig)
    features: Features = Features.backbone
    """Output of the backbone, or of the projection head."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    precision: Precision = Precision.float32
    """Number format of the encoder; auto: by the device."""
    global_batch_size: int = 256
    """Images per forward pass; in training, per step."""
    cache: bool = True
    """Keep features in RUN/features and reuse them."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers out of range."""
        check_ranges(self)


@dataclass(kw_only=True, slots=True)
class AccuracyConfig(FeaturesConfig):
    """Options of every command that learns from data.train and measures on data.test."""

    allow_overlap: bool = False
    """Accept a data.test with over 1% of images of data.train."""


class Vote(StrEnum):
    """How neighbors vote."""

    weighted = "weighted"
    """Each vote weighs exp(similarity / temperature)."""
    majority = "majority"
    """All votes are equal; the first class wins a tie."""


@dataclass(kw_only=True, slots=True)
class KnnConfig(AccuracyConfig):
    """Options of `fastmoco knn`."""

    RANGES: ClassVar[Ranges] = {"k": COUNT, "temperature": POSITIVE}

    k: int = 200
    """Neighbors that vote."""
    temperature: float = 0.1
    """A vote weighs exp(similarity / temperature)."""
    vote: Vote = Vote.weighted
    """weighted or majority."""
    leave_one_out: bool = False
    """Classify each image of data.train by all others; data.test is not needed."""
    baselines: bool = True
    """Measure raw pixels and the untrained encoder as well."""
    tables: bool = False
    """Print classes and confusion matrix of more than 20 classes too; JSON always has them."""


@dataclass(kw_only=True, slots=True)
class EpochsConfig:
    """Length of a classifier's training."""

    RANGES: ClassVar[Ranges] = {"epochs": COUNT}

    epochs: int = 100
    """Passes over the labeled images."""


@dataclass(kw_only=True, slots=True)
class ClassifierConfig(AccuracyConfig):
    """Options of both commands that train a classifier."""

    RANGES: ClassVar[Ranges] = {"seed": SEED, "label_share": SHARE}

    name: str = "official"
    """Name of the results, in RUN/evaluation/COMMAND-NAME unless `out` is set."""
    out: Path | None = None
    """Folder for the results."""
    seed: int = 0
    """Seed for data order, augmentation, choice of labels and initial weights."""
    train: EpochsConfig = field(default_factory=EpochsConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    policy: Policy = field(default_factory=lambda: POLICIES["supervised"])
    label_share: float = 1.0
    """Fraction of every class's labels to learn from, such as 0.01 or 0.1."""
    label_noise: str = ""
    """Fraction of wrong labels, 0 to 1; or FILE.csv:COLUMN of a table with a column path."""
    baselines: bool = True
    """Measure the baselines as well: linear: raw pixels and the untrained encoder; finetune: a run
    from scratch."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers out of range, and for what only pretraining does."""
        AccuracyConfig.__post_init__(self)
        if (limit := self.optimizer.clip_gradient_norm) is not None:
            raise UsageError(
                f"optimizer.clip_gradient_norm={limit:g} is an option of fastmoco train only: no "
                "classifier's gradients are clipped; leave it out"
            )


class LinearViews(StrEnum):
    """Views that a linear classifier is trained on."""

    augmented = "augmented"
    """New views of the policy in every epoch, through the encoder."""
    both = "both"
    """Each image twice: an augmented view and its central crop."""
    central = "central"
    """Central crops, through the encoder in every epoch: slow, to check `cached`."""
    cached = "cached"
    """Features of central crops, computed once."""


@dataclass(kw_only=True, slots=True)
class LinearConfig(ClassifierConfig):
    """Options of `fastmoco linear`."""

    PRESET: ClassVar[str] = "linear"
    GROUPS: ClassVar[Mapping[str, Any]] = {"protocol": None, "policy": POLICIES}
    RANGES: ClassVar[Ranges] = {
        "learning_rates": POSITIVE,
        "holdout": Range(0, 1, above=True, below=True),
    }

    views: LinearViews = LinearViews.augmented
    """augmented, both (augmented and central), central, or cached (central, computed once)."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=30.0, weight_decay=0.0, schedule=Schedule.multistep, milestones=[60, 80]
        )
    )
    learning_rates: list[float] = field(default_factory=list)
    """Rates to try at the same time; held-out images choose the best. [] = the optimizer's."""
    holdout: float = 0.1
    """Fraction of the training images that is held out to choose among rates."""


class Trainable(StrEnum):
    """First stage of the encoder to train; the stages before it stay frozen."""

    all = "all"
    layer2 = "layer2"
    layer3 = "layer3"
    layer4 = "layer4"
    head = "head"
    """Only the classifier."""


@dataclass(kw_only=True, slots=True)
class FinetuneConfig(ClassifierConfig):
    """Options of `fastmoco finetune`."""

    PRESET: ClassVar[str] = "finetune"
    GROUPS: ClassVar[Mapping[str, Any]] = {"policy": POLICIES}
    RANGES: ClassVar[Ranges] = {
        "head_learning_rate": NOT_NEGATIVE,
        "scratch_learning_rate": NOT_NEGATIVE,
    }

    name: str = ""
    """Name of the results, in RUN/evaluation/finetune-NAME; default: what it starts from."""
    weights: Path | None = None
    """Weights to start from: random, RUN, a file, torchvision:NAME, timm:NAME; null = RUN's."""
    trainable: Trainable = Trainable.all
    """Part that is trained: all, the stages from this one on, or the classifier."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=0.1))
    head_learning_rate: float = 0.1
    """Peak learning rate of the classifier."""
    scratch_learning_rate: float = 0.1
    """Peak learning rate of the encoder with weights=random."""
    train: EpochsConfig = field(default_factory=lambda: EpochsConfig(epochs=30))


class Method(StrEnum):
    """A way to evaluate an encoder."""

    knn = "knn"
    linear = "linear"
    finetune = "finetune"


@dataclass(kw_only=True, slots=True)
class TableConfig(AccuracyConfig):
    """Options of both commands that make a table of several methods."""

    RANGES: ClassVar[Ranges] = {
        "seed": SEED,
        "linear_epochs": COUNT_OR_ZERO,
        "finetune_epochs": COUNT,
        "label_share": SHARE,
    }

    seed: int = 0
    """Seed for data order, augmentation, choice of labels and initial weights."""
    linear_protocol: str = "fast"
    """Protocol of the linear classifier: official, fast, imagenette or competition."""
    linear_epochs: int = 0
    """Epochs of the linear classifier; 0 = as in its protocol."""
    finetune_epochs: int = 30
    """Epochs of fine-tuning and of the run from scratch."""
    label_share: float = 1.0
    """Fraction of every class's labels that linear and finetune learn from."""


@dataclass(kw_only=True, slots=True)
class EvaluateConfig(TableConfig):
    """Options of `fastmoco evaluate`."""

    RANGES: ClassVar[Ranges] = {"k": COUNT, "temperature": POSITIVE}

    methods: list[Method] = field(default_factory=lambda: list(Method))
    """Any of knn, linear and finetune; each with its baselines."""
    k: int = 200
    """Neighbors that vote."""
    temperature: float = 0.1
    """A vote weighs exp(similarity / temperature)."""


@dataclass(kw_only=True, slots=True)
class NoiseTableConfig(TableConfig):
    """Options of `fastmoco noise-table`."""

    methods: list[Method] = field(default_factory=lambda: [Method.linear, Method.finetune])
    """linear, finetune or both; each from the run's encoder and from the untrained one."""
    noises: list[str] = field(default_factory=lambda: ["0", "0.2", "0.4", "0.6"])
    """Values of label_noise: fractions, 0 to 1, or columns, FILE.csv:COLUMN."""


@dataclass(kw_only=True, slots=True)
class EmbedConfig(FeaturesConfig):
    """Options of `fastmoco embed`."""

    out: Path | None = None
    """File to write: .parquet, or .npy with ids, paths and labels in a .csv file beside it."""


@dataclass(kw_only=True, slots=True)
class MonitorConfig:
    """Measurements of the frozen encoder, and of the queue, while it trains."""

    RANGES: ClassVar[Ranges] = {"every_epochs": COUNT_OR_ZERO, "k": COUNT, "temperature": POSITIVE}

    every_epochs: int = 0
    """Epochs between measurements; 0 = off. kNN needs labels, but no data.test."""
    k: int = 200
    """Neighbors that vote."""
    temperature: float = 0.1
    """A vote weighs exp(similarity / temperature)."""
    features: Features = Features.backbone
    """Output of the backbone, or of the projection head."""
    allow_overlap: bool = False
    """Accept a data.test with over 1% of images of data.train."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers out of range."""
        check_ranges(self, prefix="monitor.")
