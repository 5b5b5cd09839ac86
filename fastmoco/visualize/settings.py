"""Settings of the commands that write pictures; imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from fastmoco.evaluate.settings import CropConfig, FeaturesConfig
from fastmoco.pipelines.policies import POLICIES, Policy


@dataclass(kw_only=True, slots=True)
class ViewsConfig:
    """Everything that `fastmoco views` reads."""

    PRESET: ClassVar[str] = "views"
    GROUPS: ClassVar[Mapping[str, Any]] = {"policy": POLICIES}

    policy: Policy = field(default_factory=lambda: POLICIES["moco_v2"])
    count: int = 8
    """How many images: the first that a run of this seed and batch order would see."""
    views: int = 2
    """How many views of each: those of a run, 2, or more, drawn alike."""
    view_size: int = 224
    """Side of the square views, pixels."""
    out: Path = Path("views.png")
    """PNG file to write."""
    seed: int = 0
    """Of all draws: the run's, to see its views."""
    epoch: int = 0
    """Which epoch's draws."""
    crops: bool = False
    """Instead, four pictures of each image: as it is, with the policy's crop, without it, and
    evaluation's center crop."""
    center_crop: float = 0.875
    """crops: side of that square, as a share of the short one."""


@dataclass(kw_only=True, slots=True)
class FeatureMapsConfig:
    """Everything that `fastmoco feature-maps` reads."""

    image: Path | None = None
    """Image file, or a dataset file, of which `sample` is taken."""
    sample: int = 0
    """Of a dataset file: which image."""
    layer: str = ""
    """Name of a layer of the backbone, such as layer1.0.conv2; empty = the first convolution."""
    channels: int = 64
    """How many maps a picture shows, the first ones."""
    out: Path = Path("maps.png")
    """.png, or .npy with all maps, (channels, height, width) float32."""
    pipeline: CropConfig = field(default_factory=CropConfig)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(kw_only=True, slots=True)
class NeighborsConfig(FeaturesConfig):
    """Everything that `fastmoco neighbors` reads."""

    queries: list[int] = field(default_factory=list)
    """Ids of the images to find neighbors of, such as 3,17; empty: count of them by a hash."""
    count: int = 8
    """How many queries, where none are named."""
    k: int = 8
    """Neighbors of each."""
    out: Path = Path("neighbors.png")
    """PNG file to write."""
