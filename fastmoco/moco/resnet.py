"""ResNets: torchvision's blocks under stems and widths that fit the image size.

Parameter names are those of `torchvision.models.resnet`, so that weights can be exchanged without
renaming.
"""

from collections.abc import Callable
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from fastmoco.moco.activation_checkpointing import recomputed
from fastmoco.moco.backbone import Backbone, NormLayer
from fastmoco.moco.resnet_designs import ResNetDesign
from fastmoco.moco.settings import Stem


def _stem_layers(stem: Stem, in_channels: int, width: int) -> tuple[nn.Conv2d, nn.Module]:
    if stem is Stem.imagenet:
        pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        return nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False), pool
    stride = 2 if stem is Stem.small_stride2 else 1
    padding = 2 if stem is Stem.small_pad2 else 1
    convolution = nn.Conv2d(in_channels, width, 3, stride=stride, padding=padding, bias=False)
    return convolution, nn.Identity()


class ResNet(Backbone):
    """A ResNet up to its global average pool (arXiv:1512.03385).

    Attributes:
        feature_dim: D, the length of the feature vector: 8 x width, times 4 for bottleneck blocks.
        activation_checkpointing: Whether only the input of each block is kept (`recomputed`).
    """

    def __init__(
        self,
        design: ResNetDesign,
        *,
        stem: Stem,
        width: int,
        norm_layer: NormLayer,
        in_channels: int = 3,
        zero_init_residual: bool = False,
    ) -> None:
        """Build with He initialization (fan out), as torchvision does.

        Args:
            design: Blocks, depths and groups.
            stem: Layers before the first stage.
            width: Channels of the first stage, 64 in the paper.
            norm_layer: Makes a normalization from its number of channels.
            in_channels: Channels of the images.
            zero_init_residual: Start each block as the identity: the scale of its last
                normalization is 0 (arXiv:1706.02677, section 5.1).
        """
        super().__init__()
        self.conv1, self.maxpool = _stem_layers(stem, in_channels, width)
        self.bn1 = norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        channels, stages = width, []
        for stage, depth in enumerate(design.depths):
            planes, stride = width * 2**stage, 1 if stage == 0 else 2
            stages.append(_residual_stage(design, channels, planes, depth, stride, norm_layer))
            channels = planes * design.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.feature_dim = channels
        self.activation_checkpointing = False
        self._initialize(zero_init_residual)

    def _initialize(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                nn.init.zeros_(last.weight)

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to features ``(N, feature_dim)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        if self.activation_checkpointing and torch.is_grad_enabled():
            for block in chain(self.layer1, self.layer2, self.layer3, self.layer4):
                x = recomputed(block, x)
        else:
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features: Tensor = self.avgpool(x).flatten(1)
        return features


SAFE_CHANNELS = 8


class SlicedProjection(nn.Conv2d):
    """A strided 1 x 1 convolution, computed as a slice and a convolution without stride.

    With fewer than 8 input channels, oneDNN's backward pass of the strided one writes beyond its
    memory on CPUs without AVX-512, and the process aborts some steps later (torch 2.15; elsewhere
    ``ONEDNN_MAX_CPU_ISA=AVX2`` shows it).
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', H / stride, W / stride)``, rounded up."""
        rows, columns = self.stride
        return F.conv2d(input[:, :, ::rows, ::columns], self.weight)

    def _get_name(self) -> str:
        return "Conv2d"  # in an encoder's fingerprint, by which older features are found


def _residual_stage(
    design: ResNetDesign, channels: int, planes: int, depth: int, stride: int, norm_layer: NormLayer
) -> nn.Sequential:
    out_channels = planes * design.expansion
    downsample = None
    if stride != 1 or channels != out_channels:
        make_projection = nn.Conv2d if channels >= SAFE_CHANNELS else SlicedProjection
        projection = make_projection(channels, out_channels, 1, stride=stride, bias=False)
        downsample = nn.Sequential(projection, norm_layer(out_channels))
    # A bottleneck's inner channels are planes x group_width / 64 x groups: they follow the width.
    make: Callable[..., nn.Module] = Bottleneck if design.bottleneck else BasicBlock
    block = partial(
        make, groups=design.groups, base_width=design.group_width, norm_layer=norm_layer
    )
    first = block(channels, planes, stride, downsample)
    rest = (block(out_channels, planes) for _ in range(depth - 1))
    return nn.Sequential(first, *rest)
