"""Settings of `fastmoco export` and `import`; imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from fastmoco.moco.settings import Stem
from fastmoco.pipelines.settings import IMAGENET_MEAN, IMAGENET_STD
from fastmoco.ranges import COUNT_OR_ZERO, FRACTION, SHARE, Ranges, check_ranges
from fastmoco.weights.settings import WeightsLayout


class Target(StrEnum):
    """Library or format that an encoder is exported for."""

    torchvision = "torchvision"
    """State dict of `torchvision.models`, without its classifier: .pth or .safetensors."""
    timm = "timm"
    """State dict of `timm.create_model(NAME, num_classes=0)`: .safetensors or .pth."""
    huggingface = "huggingface"
    """Folder for the Hugging Face Hub, with a model card; timm and transformers load it."""
    detectron2 = "detectron2"
    """Backbone weights under detectron2's names: .pth."""
    onnx = "onnx"
    """ONNX graph with a dynamic batch, checked against onnxruntime: .onnx."""
    safetensors = "safetensors"
    """fastmoco's own file: any encoder with its normalization; every command takes it as RUN."""


class Part(StrEnum):
    """Part of the encoder that is exported."""

    backbone = "backbone"
    """Up to the global average pool."""
    encoder = "encoder"
    """Backbone and projection head."""


class Normalize(StrEnum):
    """Where images are normalized by channel mean and standard deviation."""

    inside = "inside"
    """In the graph, which takes images in 0..1."""
    outside = "outside"
    """By the caller, before the graph."""


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """Settings of `fastmoco export`."""

    out: Path | None = None
    """File to write; a folder for to=huggingface."""
    overwrite: bool = False
    """Replace a file that is there; one of to=safetensors is replaced anyway."""
    to: Target = Target.safetensors
    """torchvision, timm, huggingface (folder), detectron2, onnx or safetensors (fastmoco's own)."""
    part: Part = Part.backbone
    """backbone, or encoder (with the projection head; onnx and safetensors only)."""
    normalize: Normalize = Normalize.inside
    """onnx: inside (the graph takes images in 0..1) or outside (it takes normalized ones)."""
    license: str = ""
    """huggingface: license stated in the model card; empty leaves a line to fill in."""


@dataclass(kw_only=True, slots=True)
class ImportConfig:
    """Settings of `fastmoco import`."""

    RANGES: ClassVar[Ranges] = {
        "mean": FRACTION,
        "std": SHARE,
        "view_size": COUNT_OR_ZERO,
        "center_crop": FRACTION,
    }

    out: Path | None = None
    """Folder to write; every command then takes it as RUN."""
    layout: WeightsLayout = WeightsLayout.auto
    """auto, moco, moco_v3, solo_learn, lightly or torchvision (timm's names are the same)."""
    prefix: str = ""
    """Beginning of the tensor names to read, such as ``model.``; empty = found in the file."""
    encoder: str = ""
    """Architecture; empty = the one that fits the shapes."""
    stem: Stem | None = None
    """First layers; none = by the kernel of the first convolution: 7 is imagenet, 3 is small."""
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    """Channel mean in 0..1 that the weights were trained with (default: ImageNet's)."""
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    """Channel standard deviation in 0..1 (default: ImageNet's)."""
    view_size: int = 0
    """Side of evaluation crops, pixels; 0 = 224 for the imagenet stem, else 32."""
    center_crop: float = 0.0
    """Fraction of the short side that evaluation crops; 0 = 0.875 for the imagenet stem, else 1."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers out of range."""
        check_ranges(self)
