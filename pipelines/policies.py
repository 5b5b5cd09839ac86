"""Which augmentations a view gets: the published recipes, as plain values.

Sources: moco_v1 and moco_v2 are the transforms of the official code of arXiv:1911.05722 and
arXiv:2003.04297 (facebookresearch/moco, ``main_moco.py``).
"""

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class Policy:
    """Parameters of one view. Probabilities are per image and view; every view draws anew."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Bounds of the crop's share of the image area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Bounds of the crop's width / height."""
    flip_probability: float = 0.5
    """Horizontal flip."""
    jitter_probability: float = 0.0
    """Color jitter as a whole; its four operations come in an order drawn per image."""
    brightness: float = 0.0
    """Brightness factor in [1 - x, 1 + x], as in torchvision's ColorJitter."""
    contrast: float = 0.0
    """Contrast factor, likewise."""
    saturation: float = 0.0
    """Saturation factor, likewise."""
    hue: float = 0.0
    """Hue shift in [-x, x], in turns; x at most 0.5."""
    grayscale_probability: float = 0.0
    """Gray in all three channels."""
    grayscale_first: bool = False
    """Grayscale before the jitter, whose hue and saturation then change nothing, not after it."""
    blur_probability: float = 0.0
    """Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Bounds of the blur's sigma, in pixels of the view."""


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
}
