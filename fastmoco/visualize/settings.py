"""Settings of the commands that write pictures; this module imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from fastmoco.evaluate.settings import CropConfig, FeaturesConfig
from fastmoco.pipelines.policies import POLICIES, Policy
from fastmoco.ranges import COUNT, COUNT_OR_ZERO, SEED, SHARE, Ranges, check_ranges


@dataclass(kw_only=True, slots=True)
class ViewsConfig:
    """Options of `fastmoco views`."""

    PRESET: ClassVar[str] = "views"
    GROUPS: ClassVar[Mapping[str, Any]] = {"policy": POLICIES}
    RANGES: ClassVar[Ranges] = {
        "count": COUNT,
        "views": COUNT,
        "view_size": COUNT,
        "seed": SEED,
        "epoch": COUNT_OR_ZERO,
        "center_crop": SHARE,
    }

    policy: Policy = field(default_factory=lambda: POLICIES["moco_v2"])
    count: int = 8
    """Number of images, at most all: the first that a run with this seed sees."""
    views: int = 2
    """Views of each image: the first 2 are those of a run, others are drawn in the same way."""
    view_size: int = 224
    """Side of the square views, pixels."""
    out: Path = Path("views.png")
    """PNG file to write."""
    seed: int = 0
    """Seed of all draws; set it to a run's seed to see the views of that run."""
    epoch: int = 0
    """Epoch whose draws are shown, counted from 0."""
    crops: bool = False
    """Show four pictures of each image instead: the original, a view with the policy's crop, the
    same view without it, and the center crop of evaluation."""
    center_crop: float = 0.875
    """For crops=true: side of the center crop, as a fraction of the image's short side."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers out of range."""
        check_ranges(self)


@dataclass(kw_only=True, slots=True)
class FeatureMapsConfig:
    """Options of `fastmoco feature-maps`."""

    RANGES: ClassVar[Ranges] = {"sample": COUNT_OR_ZERO, "channels": COUNT}

    image: Path | None = None
    """Image file, or a dataset file from which `sample` is read."""
    sample: int = 0
    """Id of the image in a dataset file."""
    layer: str = ""
    """Name of a layer of the backbone, such as layer1.0.conv2; empty = the first convolution."""
    channels: int = 64
    """Most maps that a picture shows; these are the first ones."""
    out: Path = Path("maps.png")
    """File to write: .png, or .npy with all maps, (channels, height, width) float32."""
    pipeline: CropConfig = field(default_factory=CropConfig)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers out of range."""
        check_ranges(self)


@dataclass(kw_only=True, slots=True)
class NeighborsConfig(FeaturesConfig):
    """Options of `fastmoco neighbors`."""

    RANGES: ClassVar[Ranges] = {"queries": COUNT_OR_ZERO, "count": COUNT, "k": COUNT}

    queries: list[int] = field(default_factory=list)
    """Ids of the query images, such as 3,17; empty = `count` images chosen by a hash."""
    count: int = 8
    """Number of queries, at most, if `queries` is empty."""
    k: int = 8
    """Neighbors of each query, at most."""
    out: Path = Path("neighbors.png")
    """PNG file to write."""
