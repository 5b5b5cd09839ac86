"""A pair of encoders that share an image: one sees its lightness, the other its colors.

The "double half" encoders of contrastive multiview coding (arXiv:1906.05849).
"""

import torch
from torch import Tensor, nn

from fastmoco.moco.backbone import Backbone

# Range of each channel of Lab over all of sRGB (D65, 2 degrees), which is scaled to -1..1. It is
# fixed, independent of the dataset.
LAB_LOW = (0.0, -86.183, -107.858)
LAB_HIGH = (100.0, 98.233, 94.478)

RGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)  # XYZ of D65


class LabPair(Backbone):
    """Two backbones, for lightness and for colors; their features are concatenated.

    Attributes:
        lightness: Backbone of L, ``(N, 1, H, W)``.
        color: Backbone of a and b, ``(N, 2, H, W)``.
        feature_dim: D, the sum of both backbones' dimensions, which are equal.
    """

    takes_plain_rgb = True

    def __init__(self, lightness: Backbone, color: Backbone) -> None:
        """Combine a backbone with 1 input channel and one with 2."""
        super().__init__()
        self.lightness, self.color = lightness, color
        self.feature_dim = lightness.feature_dim + color.feature_dim

    def forward(self, images: Tensor) -> Tensor:
        """RGB in 0..1, ``(N, 3, H, W)``, to features ``(N, feature_dim)``."""
        lab = scaled_lab(images).to(images.dtype)  # (N, 3, H, W)
        lightness, color = (
            part.contiguous(memory_format=torch.channels_last) for part in lab.tensor_split([1], 1)
        )  # (N, 1, H, W), (N, 2, H, W)
        return torch.cat([self.lightness(lightness), self.color(color)], dim=1)

    def _get_name(self) -> str:
        return "Halves"  # in an encoder's fingerprint, by which older features are found


class LabPairHead(nn.Module):
    """Two projection heads, one for each half of a feature."""

    def __init__(self, lightness: nn.Module, color: nn.Module) -> None:
        """Combine the heads of lightness and of colors."""
        super().__init__()
        self.lightness, self.color = lightness, color

    def forward(self, features: Tensor) -> Tensor:
        """Features of `LabPair` to embeddings ``(N, 2C)``: of lightness, then of colors."""
        lightness, color = features.chunk(2, dim=1)  # (N, D / 2) each
        return torch.cat([self.lightness(lightness), self.color(color)], dim=1)

    def _get_name(self) -> str:
        return "HalvesHead"  # in an encoder's fingerprint, by which older features are found


def scaled_lab(images: Tensor) -> Tensor:
    """Convert sRGB images to CIE L*a*b*, each channel scaled to -1..1 over all of sRGB.

    The formulas are those of `kornia.color.rgb_to_lab`, which is not called: Kornia copies its
    matrix and its white point from the host in each call, which must not happen while a CUDA graph
    is captured, and on a GPU it multiplies by a convolution, which keeps three decimal digits where
    torch allows TF32 for convolutions, as it does by default.

    Args:
        images: ``(N, 3, H, W)``, RGB in 0..1.

    Returns:
        ``(N, 3, H, W)``, float32 or wider, also under autocast, which changes no operation here.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    # Both curves are linear for small values, where the slope of a power is steep.
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
