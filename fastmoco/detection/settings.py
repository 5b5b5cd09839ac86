"""Settings of `fastmoco detect`; a string under a field is its help text.

Defaults are the published VOC protocol (arXiv:1911.05722, section 4.2 and appendix), on R50-C4.
This module does not import torch, so commands that do not need torch start at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from fastmoco.moco.settings import Precision
from fastmoco.ranges import (
    COUNT,
    COUNT_OR_ZERO,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    Range,
    Ranges,
    check_ranges,
)


class AnnotationFormat(StrEnum):
    """Format of annotations on disk."""

    voc = "voc"
    """VOCdevkit as unpacked: a folder that contains VOC2007, VOC2012, ..."""
    coco = "coco"
    """A COCO annotation file and a folder of images."""


class Arch(StrEnum):
    """Stages of the ResNet that compute the feature map, and kind of the box head."""

    c4 = "c4"
    """The map is conv4's; conv5 with an extra batch norm is the box head."""
    dc5 = "dc5"
    """The map is that of dilated conv5; two linear layers are the box head."""
    fpn = "fpn"
    """Feature pyramid (arXiv:1612.03144); two linear layers are the box head."""


class DetectionTask(StrEnum):
    """Task to learn and to measure."""

    boxes = "boxes"
    """Faster R-CNN, box AP."""
    masks = "masks"
    """Mask R-CNN, box and mask AP."""
    keypoints = "keypoints"
    """Keypoint R-CNN, box and keypoint AP."""
    segment = "segment"
    """Fully convolutional network, mean IoU."""


class DetectionNorm(StrEnum):
    """Batch norm of the backbone and of the layers after it."""

    synchronized = "synchronized"
    """Trained, with the statistics of all devices' images."""
    frozen = "frozen"
    """The backbone's statistics and scales are kept; the new layers have no batch norm."""


@dataclass(kw_only=True, slots=True)
class DetectionDataConfig:
    """Images and annotations."""

    train: Path | None = None
    """voc: the folder VOCdevkit; coco: the annotation file (instances_train2017.json)."""
    test: Path | None = None
    """Test set, in the same form as data.train; default for voc: data.train."""
    train_images: Path | None = None
    """coco: folder of training images; null = by the file's name (train2017)."""
    test_images: Path | None = None
    """coco: folder of test images; null = by the file's name (val2017)."""
    train_years: str = "07+12"
    """voc: years of the training images, such as 07 or 07+12."""
    test_years: str = "07"
    """voc: years of the test images."""
    train_split: str = "trainval"
    """voc: list of training images in ImageSets/Main (segment: ImageSets/Segmentation)."""
    test_split: str = "test"
    """voc: list of test images, in the same folder."""
    classes: list[str] = field(default_factory=list)
    """voc: class names; default: VOC's 20."""
    train_difficult: bool = False
    """voc: learn also from objects marked difficult; evaluation always ignores them."""


@dataclass(kw_only=True, slots=True)
class DetectorConfig:
    """The detector; the channels after the backbone are in proportion to its width."""

    RANGES: ClassVar[Ranges] = {
        "anchor_sizes": COUNT,
        "roi_size": COUNT_OR_ZERO,
        "rpn_samples": COUNT,
        "roi_samples": COUNT,
        "proposals": COUNT,
        "test_proposals": COUNT,
        "keypoint_sigma": POSITIVE,
        "dilation": COUNT,
    }

    anchor_sizes: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    """Sides of the anchors in pixels; fpn: one per level."""
    roi_size: int = 0
    """Side of the features of a region; 0: 14 for c4 (conv5 halves it), 7 for dc5 and fpn."""
    rpn_samples: int = 256
    """Anchors per image that the proposal network learns from."""
    roi_samples: int = 512
    """Regions per image that the heads learn from."""
    proposals: int = 2000
    """Regions per image that the proposal network keeps in training."""
    test_proposals: int = 1000
    """Regions per image that the proposal network keeps in testing."""
    keypoint_sigma: float = 0.05
    """keypoints: tolerance of each keypoint in OKS; COCO's 17 keypoints have their own values."""
    dilation: int = 6
    """segment: dilation of the head's two 3 x 3 convolutions."""


OPTIMIZER_NAMES = ("learning_rate", "sgd_momentum", "weight_decay", "warmup_steps", "milestones")


@dataclass(kw_only=True, slots=True)
class DetectionOptimizerConfig:
    """SGD and its learning rate."""

    RANGES: ClassVar[Ranges] = {
        "learning_rate": NOT_NEGATIVE,
        "sgd_momentum": Range(0, 1, below=True),
        "weight_decay": NOT_NEGATIVE,
        "warmup_steps": COUNT_OR_ZERO,
        "milestones": COUNT_OR_ZERO,
    }

    learning_rate: float = 0.02
    """Peak learning rate of SGD."""
    sgd_momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay, on all parameters except those of batch norm."""
    warmup_steps: int = 100
    """Steps of linear warm-up, from a thousandth of the peak."""
    milestones: list[int] = field(default_factory=lambda: [18000, 22000])
    """Steps at which the learning rate is multiplied by 0.1."""


@dataclass(kw_only=True, slots=True)
class DetectionTrainConfig:
    """Length and log of the training."""

    RANGES: ClassVar[Ranges] = {"steps": COUNT, "log_every_steps": COUNT}

    steps: int = 24000
    """Training steps."""
    log_every_steps: int = 20
    """Steps per row of metrics.jsonl."""


@dataclass(kw_only=True, slots=True)
class DetectionPipelineConfig:
    """Reading of images."""

    RANGES: ClassVar[Ranges] = {"num_threads": COUNT_OR_ZERO}

    num_threads: int = 0
    """Threads that read images; 0: one per core."""


@dataclass(kw_only=True, slots=True)
class DetectionCheckpointConfig:
    """Checkpoints."""

    RANGES: ClassVar[Ranges] = {"every_steps": COUNT}

    every_steps: int = 1000
    """Steps between checkpoints; the last step is always saved."""


@dataclass(kw_only=True, slots=True)
class DetectConfig:
    """All settings of `fastmoco detect`."""

    PRESET: ClassVar[str] = "detect"
    GROUPS: ClassVar[Mapping[str, Any]] = {"recipe": None}
    RANGES: ClassVar[Ranges] = {
        "global_batch_size": COUNT,
        "train_sizes": COUNT,
        "test_size": COUNT,
        "max_size": COUNT,
        "scale_range": POSITIVE,
        "crop_size": COUNT,
        "precise_norm_steps": COUNT_OR_ZERO,
        "trials": COUNT,
        "seed": SEED,
    }

    BEFORE: ClassVar[Mapping[str, Any]] = {"precision": "float32"}
    """Values of options that trials of older versions do not have in their files."""
    FORMER: ClassVar[Mapping[str, str]] = {
        "steps": "train.steps",
        "log_every_steps": "train.log_every_steps",
        "checkpoint_every_steps": "checkpoint.every_steps",
        "num_threads": "pipeline.num_threads",
        **{name: f"optimizer.{name}" for name in OPTIMIZER_NAMES},
    }
    """Names that options had in version 0.1, and so in the files of its trials."""

    data: DetectionDataConfig = field(default_factory=DetectionDataConfig)
    layout: AnnotationFormat = AnnotationFormat.voc
    """Format of the annotations."""
    task: DetectionTask = DetectionTask.boxes
    """What to detect; masks and keypoints need layout=coco, segment layout=voc."""
    arch: Arch = Arch.c4
    """Where the features come from; segment ignores it."""
    weights: Path | None = None
    """Weights to start from: random, RUN, a file, torchvision:NAME, timm:NAME; null = RUN's."""
    batch_norm: DetectionNorm = DetectionNorm.synchronized
    """Batch norm of the backbone."""
    model: DetectorConfig = field(default_factory=DetectorConfig)
    train: DetectionTrainConfig = field(default_factory=DetectionTrainConfig)
    global_batch_size: int = 16
    """Images per step, over all devices."""
    optimizer: DetectionOptimizerConfig = field(default_factory=DetectionOptimizerConfig)
    precision: Precision = Precision.auto
    """Number format of training; auto: by the device. Tests are in float32."""
    train_sizes: list[int] = field(default_factory=lambda: list(range(480, 801, 32)))
    """Short sides of training images in pixels; one is drawn per image."""
    test_size: int = 800
    """Short side of test images in pixels; segment: original size."""
    max_size: int = 1333
    """Upper bound of the long side in pixels."""
    scale_range: list[float] = field(default_factory=lambda: [0.5, 2.0])
    """segment: bounds of the scale of training images, which is drawn uniformly."""
    crop_size: int = 513
    """segment: side of the training crops in pixels."""
    precise_norm_steps: int = 200
    """Steps that average batch norm's statistics before testing; 0 = none."""
    allow_overlap: bool = False
    """Accept a test set with over 1% of training images."""
    trials: int = 1
    """Number of trials with other seeds; the result is their mean."""
    seed: int = 0
    """Seed of all random choices."""
    run_dir: Path | None = None
    """Folder of the trials; default: RUN/detect/TASK-ARCH-START."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    pipeline: DetectionPipelineConfig = field(default_factory=DetectionPipelineConfig)
    checkpoint: DetectionCheckpointConfig = field(default_factory=DetectionCheckpointConfig)

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers out of range."""
        check_ranges(self)
