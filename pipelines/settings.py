"""Settings of the data path, from a file on disk to crops on the device; imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from fastmoco.ranges import COUNT, COUNT_OR_ZERO, FRACTION, POSITIVE, SHARE, Ranges

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Channel mean and standard deviation of ImageNet in 0..1: for datasets without measured ones.
Nearly all published encoders were trained with them."""


class Augmentation(StrEnum):
    """Whose operations make the views of training, with the same draws."""

    auto = "auto"
    """By the device, see `augment.choose_augmentation`."""
    kornia = "kornia"
    """Kornia's functions."""
    planes = "planes"
    """Our own, on the three color planes; on a CPU, loops over the images."""


@dataclass(kw_only=True, slots=True)
class PipelineConfig:
    """Settings of loading, from a file on disk to crops on the device."""

    RANGES: ClassVar[Ranges] = {
        "view_size": COUNT,
        "center_crop": SHARE,
        "eval_size": COUNT_OR_ZERO,
        "channel_mean": FRACTION,
        "channel_std": POSITIVE,
        "num_threads": COUNT_OR_ZERO,
        "prefetch_batches": COUNT,
        "hw_decoder_load": FRACTION,
    }

    name: str = "auto"
    """auto, beton, dali, ffcv, resident or torchvision (slow)."""
    augmentation: Augmentation = Augmentation.auto
    """Whose operations make the views; auto: kornia on CUDA, else planes (ours)."""
    view_size: int = 224
    """Side of the square views, pixels."""
    center_crop: float = 0.875
    """Evaluation: side of the central square, as a fraction of the short side."""
    eval_size: int = 0
    """Evaluation: side of the crops, pixels; 0 = view_size."""
    channel_mean: list[float] = field(default_factory=list)
    """Mean of each color; [] = the dataset's."""
    channel_std: list[float] = field(default_factory=list)
    """Deviation of each color; [] = the dataset's."""
    num_threads: int = 0
    """Threads that decode and crop; 0 = one per core."""
    prefetch_batches: int = 2
    """Batches prepared ahead of the step."""
    hw_decoder_load: float | None = None
    """DALI on a GPU: fraction of images for its JPEG unit; null = 0.65."""
