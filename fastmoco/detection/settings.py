"""Settings of `fastmoco detect`; a string under a field is its help text.

Defaults are the published VOC protocol (arXiv:1911.05722, section 4.2 and appendix), on R50-C4.
Importing this imports no torch, so that commands which need none start at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar


class AnnotationFormat(StrEnum):
    """How annotations lie on the disk."""

    voc = "voc"
    """VOCdevkit as it unpacks: a folder with VOC2007, VOC2012, ... in it."""
    coco = "coco"
    """A COCO annotation file and a folder of images."""


class Arch(StrEnum):
    """Which stages of the ResNet make the feature map, and what the box head is."""

    c4 = "c4"
    """Ends with conv4; conv5 with an extra batch norm is the box head."""
    dc5 = "dc5"
    """Ends with conv5, dilated; two linear layers are the box head."""
    fpn = "fpn"
    """Feature pyramid (arXiv:1612.03144); two linear layers are the box head."""


class DetectionTask(StrEnum):
    """What is learned and measured."""

    boxes = "boxes"
    """Faster R-CNN, box AP."""
    masks = "masks"
    """Mask R-CNN, box and mask AP."""
    keypoints = "keypoints"
    """Keypoint R-CNN, box and keypoint AP."""
    segment = "segment"
    """Fully convolutional network, mean IoU."""


class DetectionInit(StrEnum):
    """Where the backbone's weights come from."""

    pretrained = "pretrained"
    """The run."""
    random = "random"
    """Nowhere: a random encoder of the run's architecture."""
    file = "file"
    """`weights`."""


class DetectionNorm(StrEnum):
    """Batch norm of the backbone and of the layers after it."""

    synchronized = "synchronized"
    """Trained, with the statistics of all devices' images."""
    frozen = "frozen"
    """The backbone's statistics and scales stay as they are; none after it."""


@dataclass(kw_only=True, slots=True)
class DetectionDataConfig:
    """Images and annotations."""

    train: Path | None = None
    """voc: the folder VOCdevkit; coco: the annotation file (instances_train2017.json)."""
    test: Path | None = None
    """Likewise; none = data.train, of other images (voc only)."""
    train_images: Path | None = None
    """coco: folder of the images; none = the folder train2017 beside annotations."""
    test_images: Path | None = None
    """coco: likewise."""
    train_years: str = "07+12"
    """voc: years to learn from, such as 07 or 07+12."""
    test_years: str = "07"
    """voc: years to test on."""
    train_split: str = "trainval"
    """voc: list in ImageSets/Main (segment: in ImageSets/Segmentation)."""
    test_split: str = "test"
    """voc: likewise."""
    classes: list[str] = field(default_factory=list)
    """voc: names of the classes; empty = VOC's 20."""
    train_difficult: bool = False
    """voc: learn from objects marked difficult too; evaluation ignores them always."""


@dataclass(kw_only=True, slots=True)
class DetectorConfig:
    """The detector; numbers of channels after the backbone follow its width."""

    anchor_sizes: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    """Sides of the anchors, pixels; fpn: one a level."""
    roi_size: int = 0
    """Side of the features cut out per region; 0 = 14 for c4 (conv5 halves it), 7 for others."""
    rpn_samples: int = 256
    """Anchors per image that the proposal network learns from."""
    roi_samples: int = 512
    """Regions per image that the heads learn from."""
    proposals: int = 2000
    """Regions per image that the proposal network keeps in training."""
    test_proposals: int = 1000
    """Likewise in testing."""
    keypoint_sigma: float = 0.05
    """keypoints: tolerance of each in OKS, where they are not COCO's 17 (whose own are used)."""
    dilation: int = 6
    """segment: of the head's two 3 x 3 convolutions."""


@dataclass(kw_only=True, slots=True)
class DetectConfig:
    """Everything that `fastmoco detect` reads."""

    PRESET: ClassVar[str] = "detect"
    GROUPS: ClassVar[Mapping[str, Any]] = {"recipe": None}

    data: DetectionDataConfig = field(default_factory=DetectionDataConfig)
    layout: AnnotationFormat = AnnotationFormat.voc
    """voc or coco."""
    task: DetectionTask = DetectionTask.boxes
    """boxes, masks, keypoints (both layout=coco) or segment (layout=voc)."""
    arch: Arch = Arch.c4
    """c4, dc5 or fpn; segment has its own."""
    init: DetectionInit = DetectionInit.pretrained
    """pretrained (the run), random, or file (weights=FILE)."""
    weights: Path | None = None
    """init=file: a torchvision ResNet's state dict, .pth or .safetensors."""
    batch_norm: DetectionNorm = DetectionNorm.synchronized
    """synchronized (trained) or frozen."""
    model: DetectorConfig = field(default_factory=DetectorConfig)
    steps: int = 24000
    """Iterations of training."""
    global_batch_size: int = 16
    """Images per step, over all devices."""
    learning_rate: float = 0.02
    """Peak learning rate of SGD."""
    sgd_momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """On all weights but batch norm's."""
    warmup_steps: int = 100
    """Linear warm-up from a thousandth."""
    milestones: list[int] = field(default_factory=lambda: [18000, 22000])
    """Steps at which the learning rate is multiplied by 0.1."""
    train_sizes: list[int] = field(default_factory=lambda: list(range(480, 801, 32)))
    """Short sides of training images, one drawn per image."""
    test_size: int = 800
    """Short side of test images; segment tests on images as they are."""
    max_size: int = 1333
    """Bound of the long side."""
    scale_range: list[float] = field(default_factory=lambda: [0.5, 2.0])
    """segment: bounds of the scale of training images, drawn uniformly."""
    crop_size: int = 513
    """segment: side of the training crops."""
    precise_norm_steps: int = 200
    """Steps that batch norm's statistics are averaged over before testing; 0 = running ones."""
    trials: int = 1
    """Runs with the seeds seed, seed + 1, ...; the result is their mean."""
    seed: int = 0
    """Of all draws and of new weights."""
    run_dir: Path | None = None
    """Folder of the trials; none = RUN/detect/TASK-ARCH-INIT."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    num_threads: int = 0
    """Threads that read images; 0 = one per core."""
    log_every_steps: int = 20
    """Steps per line of metrics.jsonl."""
    checkpoint_every_steps: int = 1000
    """Steps between checkpoints; the last step is always saved."""
