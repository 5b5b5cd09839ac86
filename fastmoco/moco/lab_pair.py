"""A pair of encoders that share an image: one sees its lightness, the other its colors.

The "double half" encoders of contrastive multiview coding (arXiv:1906.05849).
"""

import torch
from torch import Tensor, nn

from fastmoco.moco.backbone import Backbone

# What each channel of Lab spans over all of sRGB (D65, 2 degrees), which becomes -1..1. Fixed: no
# dataset's statistics.
LAB_LOW = (0.0, -86.183, -107.858)
LAB_HIGH = (100.0, 98.233, 94.478)

RGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)  # XYZ of D65


class LabPair(Backbone):
    """Two backbones, of lightness and of colors; the feature is theirs, one after the other.

    Attributes:
        lightness: Sees L, ``(N, 1, H, W)``.
        color: Sees a and b, ``(N, 2, H, W)``.
        feature_dim: D, the sum of theirs, which are equal.
    """

    takes_plain_rgb = True

    def __init__(self, lightness: Backbone, color: Backbone) -> None:
        """Take the two.

        Args:
            lightness: Of 1 channel.
            color: Of 2 channels.
        """
        super().__init__()
        self.lightness, self.color = lightness, color
        self.feature_dim = lightness.feature_dim + color.feature_dim

    def forward(self, images: Tensor) -> Tensor:
        """RGB in 0..1, ``(N, 3, H, W)``, to features ``(N, feature_dim)``."""
        lab = scaled_lab(images).to(images.dtype)
        lightness, color = (
            part.contiguous(memory_format=torch.channels_last) for part in lab.tensor_split([1], 1)
        )
        return torch.cat([self.lightness(lightness), self.color(color)], dim=1)


class LabPairHead(nn.Module):
    """Two projection heads, one for each half of a feature."""

    def __init__(self, lightness: nn.Module, color: nn.Module) -> None:
        """Take the two."""
        super().__init__()
        self.lightness, self.color = lightness, color

    def forward(self, features: Tensor) -> Tensor:
        """Features of `LabPair` to embeddings ``(N, 2C)``: of lightness, then of colors."""
        lightness, color = features.chunk(2, dim=1)
        return torch.cat([self.lightness(lightness), self.color(color)], dim=1)


def scaled_lab(images: Tensor) -> Tensor:
    """CIE L*a*b* of sRGB images, each channel scaled to -1..1 over all of sRGB.

    Computed as `kornia.color.rgb_to_lab` does, and not by it: Kornia copies its matrix and its
    white point from the host in each call, which must not happen while a CUDA graph is captured,
    and on a GPU multiplies by a convolution, which keeps three decimal digits where torch allows
    TF32 for convolutions, as it does by default.

    Args:
        images: ``(N, 3, H, W)``, RGB in 0..1.

    Returns:
        ``(N, 3, H, W)``, float32 at least, also under autocast, which changes no operation here.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    # The linear part of either curve is for small values, where a power's slope is steep.
    power = ((images + 0.055) / 1.055).clamp(min=0.01).pow(2.4)
    red, green, blue = torch.where(images > 0.04045, power, images / 12.92).unbind(1)
    x, y, z = (
        _lab_curve((r * red + g * green + b * blue) / white)
        for (r, g, b), white in zip(RGB_TO_XYZ, WHITE, strict=True)
    )
    lab = (116 * y - 16, 500 * (x - y), 200 * (y - z))
    scaled = [
        (value - (low + high) / 2) * (2 / (high - low))
        for value, low, high in zip(lab, LAB_LOW, LAB_HIGH, strict=True)
    ]
    return torch.stack(scaled, 1)


def _lab_curve(ratio: Tensor) -> Tensor:
    """CIE's f: a cube root, and a line below 0.008856."""
    root = ratio.clamp(min=0.008856).pow(1 / 3)
    return torch.where(ratio > 0.008856, root, 7.787 * ratio + 4 / 29)
