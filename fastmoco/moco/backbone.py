"""The interface of every backbone: images to feature vectors."""

from collections.abc import Callable

from torch import nn

NormLayer = Callable[[int], nn.Module]
"""Makes a normalization from its number of channels."""


class Backbone(nn.Module):
    """Images ``(N, 3, H, W)`` to feature vectors ``(N, feature_dim)``: an encoder without its head.

    Attributes:
        feature_dim: D, the length of the feature vector.
        takes_plain_rgb: Whether its images are RGB in 0..1, which it normalizes itself.
    """

    feature_dim: int
    takes_plain_rgb: bool = False
