"""AlexNet as in torchvision (arXiv:1404.5997), with stems for small images."""

from torch import Tensor, nn

from fastmoco.moco.backbone import Backbone, NormLayer
from fastmoco.moco.settings import Stem

# Side of the map that the linear layers see. At 224 pixels torchvision's is 6; at 32 pixels `small`
# leaves 7, `small_stride2` 3.
POOLED_SIDE = {Stem.imagenet: 6, Stem.small: 6, Stem.small_stride2: 3}

# A pool would leave nothing of smaller images.
SMALLEST_VIEW = {Stem.imagenet: 63, Stem.small: 7, Stem.small_stride2: 13}


class AlexNet(Backbone):
    """AlexNet up to its second linear layer; parameter names are torchvision's.

    Without dropout, which would draw from a generator with a state: a resumed run would differ from
    an uninterrupted one. Papers on self-supervised learning insert batch norm after each
    convolution (arXiv:1807.05520, section 4); the layers' numbers then change.

    Attributes:
        feature_dim: D = 64 x width, which is 4,096 at the paper's 64.
    """

    def __init__(
        self, *, stem: Stem, width: int, norm_layer: NormLayer | None, in_channels: int = 3
    ) -> None:
        """Build with torch's default initialization, as torchvision does.

        Args:
            stem: The first convolution and the pool after it: of 11 x 11 with stride 4, or of 3 x 3
                without a pool.
            width: Channels of the first convolution, 64 in torchvision.
            norm_layer: Makes a normalization from its number of channels; None for no norm.
            in_channels: Channels of the images.
        """
        super().__init__()
        self.features = nn.Sequential(
            *_stem_layers(stem, in_channels, width, norm_layer),
            *_convolution(width, 3 * width, 5, norm_layer),
            nn.MaxPool2d(kernel_size=3, stride=2),
            *_convolution(3 * width, 6 * width, 3, norm_layer),
            *_convolution(6 * width, 4 * width, 3, norm_layer),
            *_convolution(4 * width, 4 * width, 3, norm_layer),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        side = POOLED_SIDE[stem]
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.feature_dim = 64 * width
        self.classifier = nn.Sequential(
            nn.Identity(),  # torchvision's dropout, here and below
            nn.Linear(4 * width * side**2, self.feature_dim),
            nn.ReLU(inplace=True),
            nn.Identity(),
            nn.Linear(self.feature_dim, self.feature_dim),
            nn.ReLU(inplace=True),
        )

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to features ``(N, feature_dim)``."""
        maps = self.avgpool(self.features(images))
        features: Tensor = self.classifier(maps.flatten(1))
        return features


def _stem_layers(
    stem: Stem, in_channels: int, width: int, norm_layer: NormLayer | None
) -> list[nn.Module]:
    if stem is Stem.imagenet:
        first = nn.Conv2d(in_channels, width, 11, stride=4, padding=2)
        pool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2)
    else:
        stride = 2 if stem is Stem.small_stride2 else 1
        first = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1)
        pool = nn.Identity()
    return [first, *_norm(width, norm_layer), nn.ReLU(inplace=True), pool]


def _convolution(
    in_channels: int, channels: int, kernel_size: int, norm_layer: NormLayer | None
) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2)
    return [convolution, *_norm(channels, norm_layer), nn.ReLU(inplace=True)]


def _norm(channels: int, norm_layer: NormLayer | None) -> list[nn.Module]:
    return [] if norm_layer is None else [norm_layer(channels)]
