"""What `fastmoco export`, `import`, `embed` and `neighbors` read; imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from fastmoco.moco.settings import Stem
from fastmoco.pipelines.settings import IMAGENET_MEAN, IMAGENET_STD


class Target(StrEnum):
    """For whom an encoder is exported."""

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
    """fastmoco's own file: any encoder, with its normalization; every command takes it as RUN."""


class Part(StrEnum):
    """How much of the encoder is exported."""

    backbone = "backbone"
    """Up to the global average pool."""
    encoder = "encoder"
    """Backbone and projection head."""


class Normalize(StrEnum):
    """Where channel mean and deviation are applied."""

    inside = "inside"
    """In the graph: it takes images in 0..1."""
    outside = "outside"
    """By the caller."""


class WeightsLayout(StrEnum):
    """Whose names a weights file uses."""

    auto = "auto"
    """Recognized by its names."""
    moco = "moco"
    """Official MoCo v1 and v2: encoder_q.*, the head as fc."""
    moco_v3 = "moco_v3"
    """Official MoCo v3's ResNets: base_encoder.*."""
    solo_learn = "solo_learn"
    """solo-learn: backbone.* (formerly encoder.*), projector.*."""
    lightly = "lightly"
    """lightly's benchmarks: backbone.0.* and so on, projection_head.layers.*."""
    torchvision = "torchvision"
    """torchvision and timm: conv1.*, layer1.*, and so on."""


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """Everything that `fastmoco export` reads."""

    out: Path | None = None
    """File to write, or the folder for huggingface."""
    to: Target = Target.safetensors
    """torchvision, timm, huggingface (folder), detectron2, onnx or safetensors (fastmoco's own)."""
    part: Part = Part.backbone
    """backbone, or encoder: with the projection head (onnx and safetensors)."""
    normalize: Normalize = Normalize.inside
    """onnx: inside (the graph takes images in 0..1) or outside (it takes normalized ones)."""
    license: str = ""
    """huggingface: the license that the model card states; empty leaves a line to fill in."""


@dataclass(kw_only=True, slots=True)
class ImportConfig:
    """Everything that `fastmoco import` reads."""

    out: Path | None = None
    """Folder to make; every command then takes it as RUN."""
    layout: WeightsLayout = WeightsLayout.auto
    """auto, moco, moco_v3, solo_learn, lightly or torchvision (timm's names are the same)."""
    encoder: str = ""
    """Architecture; empty = the one whose shapes fit."""
    stem: Stem | None = None
    """First layers; none = by the first convolution's kernel: 7 is imagenet, 3 is small."""
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    """Channel mean in 0..1 that the weights were trained with; ImageNet's unless given."""
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    """Channel standard deviation in 0..1."""
    view_size: int = 0
    """Side of the crops for evaluation, pixels; 0 = 224 for the imagenet stem, else 32."""
    center_crop: float = 0.0
    """Central share that evaluation looks at; 0 = 0.875 for the imagenet stem, else 1."""
