"""Encoders: torchvision's ResNet blocks under stems and widths that fit the image size.

Parameter names are those of `torchvision.models.resnet`, so that weights go back and forth without
a key map.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fastmoco.schema import Stem

Block = type[BasicBlock] | type[Bottleneck]
NormLayer = Callable[[int], nn.Module]

RESNETS: dict[str, tuple[Block, tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


def _stem_layers(stem: Stem, width: int) -> tuple[nn.Conv2d, nn.Module]:
    if stem is Stem.imagenet:
        pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        return nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), pool
    stride = 2 if stem is Stem.small_stride2 else 1
    padding = 2 if stem is Stem.small_pad2 else 1
    return nn.Conv2d(3, width, 3, stride=stride, padding=padding, bias=False), nn.Identity()


class ResNet(nn.Module):
    """A ResNet up to its global average pool (arXiv:1512.03385).

    Attributes:
        feature_dim: D, the length of the feature vector: 8 x width, times 4 for bottleneck blocks.
    """

    def __init__(
        self,
        block: Block,
        depths: tuple[int, ...],
        *,
        stem: Stem,
        width: int,
        norm_layer: NormLayer,
    ) -> None:
        """Build with He initialization (fan out), as torchvision does.

        Args:
            block: Residual block.
            depths: Number of blocks in each stage.
            stem: What comes before the first stage.
            width: Channels of the first stage, 64 in the paper.
            norm_layer: Makes a normalization from its number of channels.
        """
        super().__init__()
        self.conv1, self.maxpool = _stem_layers(stem, width)
        self.bn1 = norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        channels, stages = width, []
        for stage, depth in enumerate(depths):
            planes, stride = width * 2**stage, 1 if stage == 0 else 2
            stages.append(_residual_stage(block, channels, planes, depth, stride, norm_layer))
            channels = planes * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.feature_dim = channels
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to features ``(N, feature_dim)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features: Tensor = self.avgpool(x).flatten(1)
        return features


def _residual_stage(
    block: Block, channels: int, planes: int, depth: int, stride: int, norm_layer: NormLayer
) -> nn.Sequential:
    out_channels = planes * block.expansion
    downsample = None
    if stride != 1 or channels != out_channels:
        projection = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)
        downsample = nn.Sequential(projection, norm_layer(out_channels))
    # torchvision's BasicBlock fixes base_width=64, which for it changes nothing: `planes` alone
    # sets its channels.
    first = block(channels, planes, stride, downsample, norm_layer=norm_layer)
    rest = (block(out_channels, planes, norm_layer=norm_layer) for _ in range(depth - 1))
    return nn.Sequential(first, *rest)


def build_encoder(
    name: str, *, stem: Stem, width: int = 64, norm_layer: NormLayer = nn.BatchNorm2d
) -> ResNet:
    """Build an encoder by name, randomly initialized.

    Args:
        name: One of `RESNETS`.
        stem: What comes before the first stage.
        width: Channels of the first stage; 64 is the paper's.
        norm_layer: Makes a normalization from its number of channels.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in RESNETS:
        raise ValueError(
            f"model.encoder={name} is unknown; set model.encoder to one of {', '.join(RESNETS)}"
        )
    block, depths = RESNETS[name]
    return ResNet(block, depths, stem=stem, width=width, norm_layer=norm_layer)
