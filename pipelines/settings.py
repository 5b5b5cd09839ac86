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
    """Loader: auto, beton, dali, ffcv, resident, or torchvision (the slow reference)."""
    augmentation: Augmentation = Augmentation.auto
    """Operations of the views: auto (kornia on CUDA, else planes), kornia, or planes (ours); equal
    within 1e-5."""
    view_size: int = 224
    """Side of the square views, pixels."""
    center_crop: float = 0.875
    """Evaluation: side of the central square, as a fraction of the short side (0.875 = 224/256)."""
    eval_size: int = 0
    """Evaluation: side of the crops, pixels; 0 = view_size."""
    channel_mean: list[float] = field(default_factory=list)
    """Mean of red, green and blue in 0..1, for normalization; none = the dataset's."""
    channel_std: list[float] = field(default_factory=list)
    """Standard deviation of red, green and blue, for normalization; none = the dataset's."""
    num_threads: int = 0
    """Threads that decode and crop; 0 = one per core."""
    prefetch_batches: int = 2
    """Batches made ahead of the one in use."""
    hw_decoder_load: float | None = None
    """DALI on a GPU: fraction of images, 0 to 1, for its JPEG unit; null = 0.65."""
