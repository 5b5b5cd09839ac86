"""Augmentation policies: the published recipes, as plain values.

Sources: moco_v1 and moco_v2 are the transforms of the official code of arXiv:1911.05722 and
arXiv:2003.04297 (facebookresearch/moco, ``main_moco.py``). simclr is appendix A of arXiv:2002.05709
at strength 1, with MoCo's blur in pixels instead of a kernel of a tenth of the view, and
torchvision's jitter instead of TensorFlow's. cifar is what CIFAR-10 ports of MoCo and SimCLR use:
v2 without blur. imagenette_pool is the report "Momentum Contrast on Imagenette" (2022): see `pool`.
moco_v3 is the official code of arXiv:2104.02057 (facebookresearch/moco-v3, ``main_moco.py``), whose
views are those of BYOL with a weaker jitter.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from fastmoco.ranges import (
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Range,
    Ranges,
    check_ranges,
)


class PoolOp(StrEnum):
    """Operations of a pool. The order is part of the random stream: append, never move."""

    none = "none"
    blur = "blur"
    gaussian_blur = "gaussian_blur"
    channel_shuffle = "channel_shuffle"
    coarse_dropout = "coarse_dropout"
    cutout = "cutout"
    rain = "rain"
    gaussian_noise = "gaussian_noise"
    hue_saturation = "hue_saturation"
    fog = "fog"
    flip = "flip"
    color_jitter = "color_jitter"
    vertical_flip = "vertical_flip"
    sharpen = "sharpen"
    brightness_contrast = "brightness_contrast"


VIEW_RANGES: Ranges = {
    "flip_probability": FRACTION,
    "jitter_probability": FRACTION,
    "brightness": NOT_NEGATIVE,
    "contrast": NOT_NEGATIVE,
    "saturation": NOT_NEGATIVE,
    "hue": Range(0, 0.5),
    "grayscale_probability": FRACTION,
    "blur_probability": FRACTION,
    "blur_sigma": POSITIVE,
    "solarize_probability": FRACTION,
    "solarize_threshold": FRACTION,
}
"""What a view may have of its own: all but the crops, the order of operations and the pool."""


@dataclass(kw_only=True, slots=True)
class SecondView:
    """What differs in the second view; null: as in the first."""

    RANGES: ClassVar[Ranges] = VIEW_RANGES

    flip_probability: float | None = None
    """Second view; null = as in the first."""
    jitter_probability: float | None = None
    """Second view."""
    brightness: float | None = None
    """Second view."""
    contrast: float | None = None
    """Second view."""
    saturation: float | None = None
    """Second view."""
    hue: float | None = None
    """Second view."""
    grayscale_probability: float | None = None
    """Second view."""
    blur_probability: float | None = None
    """Second view."""
    blur_sigma: tuple[float, float] | None = None
    """Second view."""
    solarize_probability: float | None = None
    """Second view."""
    solarize_threshold: float | None = None
    """Second view."""


@dataclass(kw_only=True, slots=True)
class Policy:
    """Parameters of the views. Probabilities are per image and view; each view draws its own."""

    RANGES: ClassVar[Ranges] = {
        **VIEW_RANGES,
        "crop_scale": SHARE,
        "crop_ratio": POSITIVE,
        "pool_draws": COUNT,
        "pool_probability": FRACTION,
    }

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and greatest area of the crop, as fractions of the image."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width / height of the crop."""
    flip_probability: float = 0.5
    """Probability of a horizontal flip."""
    jitter_probability: float = 0.0
    """Probability of color jitter: the four changes below, in a random order."""
    brightness: float = 0.0
    """Brightness factor in [1 - x, 1 + x]."""
    contrast: float = 0.0
    """Contrast factor in [1 - x, 1 + x]."""
    saturation: float = 0.0
    """Saturation factor in [1 - x, 1 + x]."""
    hue: float = 0.0
    """Hue shift in [-x, x] turns."""
    grayscale_probability: float = 0.0
    """Probability of gray in all three channels."""
    grayscale_first: bool = False
    """Grayscale before the jitter instead of after it."""
    blur_probability: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Least and greatest sigma of the blur, pixels of the view."""
    solarize_probability: float = 0.0
    """Probability of solarization: values from the threshold on are inverted."""
    solarize_threshold: float = 0.5
    """Threshold of solarization."""
    second_view: SecondView = field(default_factory=SecondView)
    pool: list[PoolOp] = field(default_factory=list)
    """More operations, of which each view draws some; slower."""
    pool_draws: int = 2
    """Operations that a view draws from the pool."""
    pool_probability: float = 0.6
    """Probability that a drawn operation is applied."""

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            ValueError: If a value is out of range; names the option to change.
        """
        check_ranges(self, prefix="policy.")
        for name, bounds in {
            "crop_scale": self.crop_scale,
            "crop_ratio": self.crop_ratio,
            "blur_sigma": self.blur_sigma,
            "second_view.blur_sigma": self.second_view.blur_sigma or self.blur_sigma,
        }.items():
            fits = len(bounds) == 2 and bounds[0] <= bounds[1]
            _check(name, bounds, fits, "[low,high] with low <= high")
        draws, most = self.pool_draws, len(self.pool)
        _check("pool_draws", draws, not most or draws <= most, f"at most {most}, the pool's size")
        names = [str(op) for op in self.pool]
        _check("pool", names, most == len(set(names)), "a list of different operations")

    def of_view(self, name: str, view: int) -> Any:
        """The value of a field for a view.

        Args:
            name: One of `VIEW_RANGES`.
            view: 0 for the query's view, 1 for the key's; further ones take turns.
        """
        own = getattr(self.second_view, name) if view % 2 else None
        return getattr(self, name) if own is None else own


def _check(name: str, value: object, fits: bool, allowed: str) -> None:
    if not fits:
        raise ValueError(f"policy.{name} must be {allowed}, got {value}")


IMAGENETTE_POOL = [
    PoolOp.none,
    PoolOp.blur,
    PoolOp.gaussian_blur,
    PoolOp.channel_shuffle,
    PoolOp.coarse_dropout,
    PoolOp.cutout,
    PoolOp.rain,
    PoolOp.gaussian_noise,
    PoolOp.hue_saturation,
    PoolOp.fog,
    PoolOp.flip,
    PoolOp.color_jitter,
    PoolOp.vertical_flip,
    PoolOp.sharpen,
    PoolOp.brightness_contrast,
]
"""The report's 15 operations, by name: a new operation must not change a published recipe."""

ABOUT_POLICIES = {
    "moco_v1": "MoCo v1 (arXiv:1911.05722): grayscale, then color jitter; no blur.",
    "moco_v2": "MoCo v2 (arXiv:2003.04297): weaker jitter, then grayscale and blur.",
    "moco_v3": "MoCo v3 (arXiv:2104.02057): views unlike in blur and solarization.",
    "simclr": "SimCLR (arXiv:2002.05709): smaller crops, stronger jitter, blur.",
    "cifar": "moco_v2 without blur, for images of 32 pixels.",
    "supervised": "Random crops and flips only, for classifiers.",
    "imagenette_pool": "2 of 15 operations for each view, without random crops.",
}
"""A line of help for each of `POLICIES`."""

POLICIES = {
    "moco_v1": Policy(
        jitter_probability=1.0,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.4,
        grayscale_probability=0.2,
        grayscale_first=True,
    ),
    "moco_v2": Policy(
        jitter_probability=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        grayscale_probability=0.2,
        blur_probability=0.5,
    ),
    # Crops are the code's default; its commands for ResNet-50 have --crop-min=.2.
    "moco_v3": Policy(
        crop_scale=(0.08, 1.0),
        jitter_probability=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        grayscale_probability=0.2,
        blur_probability=1.0,
        second_view=SecondView(blur_probability=0.1, solarize_probability=0.2),
    ),
    "simclr": Policy(
        crop_scale=(0.08, 1.0),
        jitter_probability=0.8,
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        grayscale_probability=0.2,
        blur_probability=0.5,
    ),
    "cifar": Policy(
        jitter_probability=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        grayscale_probability=0.2,
    ),
    # Only crop and flip, as the official code trains classifiers (``main_lincls.py``).
    "supervised": Policy(crop_scale=(0.08, 1.0)),
    # The report names no crop. Scale 1 takes the full image, stretched to a square; of an image
    # longer than 4:3 it takes the largest central part of that shape.
    "imagenette_pool": Policy(
        crop_scale=(1.0, 1.0),
        flip_probability=0.0,
        pool=IMAGENETTE_POOL,
    ),
}
