"""Encoders: torchvision's ResNet blocks under stems and widths that fit the image size, and others.

Parameter names are those of `torchvision.models.resnet`, so that weights go back and forth without
a key map. AlexNet, pairs of halves and timm's models stand in files of their own, imported where
used.
"""

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fastmoco.errors import nearest_name
from fastmoco.moco.activation_checkpointing import recomputed
from fastmoco.moco.batchnorm import SplitBatchNorm2d
from fastmoco.schema import ModelConfig, Stem, UsageError

Block = type[BasicBlock] | type[Bottleneck]
NormLayer = Callable[[int], nn.Module]


class Layout(NamedTuple):
    """What tells one ResNet from another."""

    block: Block
    depths: tuple[int, int, int, int]
    """Number of blocks in each stage."""
    groups: int = 1
    """Of the 3 x 3 convolution of a bottleneck (ResNeXt, arXiv:1611.05431)."""
    group_width: int = 64
    """Channels of each group, in a first stage of width 64."""


RESNETS: dict[str, Layout] = {
    "resnet18": Layout(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Layout(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Layout(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Layout(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Layout(Bottleneck, (3, 8, 36, 3)),
    "resnext50_32x4d": Layout(Bottleneck, (3, 4, 6, 3), 32, 4),
    "resnext50_32x8d": Layout(Bottleneck, (3, 4, 6, 3), 32, 8),  # the MoCo paper's ResNeXt-50
    "resnext101_32x8d": Layout(Bottleneck, (3, 4, 23, 3), 32, 8),
    "wide_resnet50_2": Layout(Bottleneck, (3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": Layout(Bottleneck, (3, 4, 23, 3), 1, 128),
}
ALEXNETS = ("alexnet", "alexnet_bn")


class Backbone(nn.Module):
    """Images ``(N, 3, H, W)`` to feature vectors ``(N, feature_dim)``: an encoder without its head.

    Attributes:
        feature_dim: D, the length of the feature vector.
        takes_plain_rgb: Its images are RGB in 0..1, not normalized by channel: it does that itself.
    """

    feature_dim: int
    takes_plain_rgb: bool = False


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
        activation_checkpointing: Keep of each block its input alone (`recomputed`).
    """

    def __init__(
        self,
        layout: Layout,
        *,
        stem: Stem,
        width: int,
        norm_layer: NormLayer,
        in_channels: int = 3,
        zero_init_residual: bool = False,
    ) -> None:
        """Build with He initialization (fan out), as torchvision does.

        Args:
            layout: Blocks, depths and groups.
            stem: What comes before the first stage.
            width: Channels of the first stage, 64 in the paper.
            norm_layer: Makes a normalization from its number of channels.
            in_channels: Of the images.
            zero_init_residual: Start each block as the identity: the scale of its last
                normalization is 0 (arXiv:1706.02677, section 5.1).
        """
        super().__init__()
        self.conv1, self.maxpool = _stem_layers(stem, in_channels, width)
        self.bn1 = norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        channels, stages = width, []
        for stage, depth in enumerate(layout.depths):
            planes, stride = width * 2**stage, 1 if stage == 0 else 2
            stages.append(_residual_stage(layout, channels, planes, depth, stride, norm_layer))
            channels = planes * layout.block.expansion
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


def _residual_stage(
    layout: Layout, channels: int, planes: int, depth: int, stride: int, norm_layer: NormLayer
) -> nn.Sequential:
    out_channels = planes * layout.block.expansion
    downsample = None
    if stride != 1 or channels != out_channels:
        projection = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)
        downsample = nn.Sequential(projection, norm_layer(out_channels))
    # A bottleneck's inner channels are planes x group_width / 64 x groups: they follow the width.
    make: Callable[..., nn.Module] = layout.block
    block = partial(
        make, groups=layout.groups, base_width=layout.group_width, norm_layer=norm_layer
    )
    first = block(channels, planes, stride, downsample)
    rest = (block(out_channels, planes) for _ in range(depth - 1))
    return nn.Sequential(first, *rest)


def build_encoder(
    model: ModelConfig, *, norm_layer: NormLayer = nn.BatchNorm2d, view_size: int = 224
) -> Backbone:
    """Build an encoder by its name, randomly initialized.

    Args:
        model: ``encoder`` is one of `RESNETS` or `ALEXNETS`, ``halves:`` and one of these, or
            ``timm:`` and any of timm's models.
        norm_layer: Makes a normalization from its number of channels.
        view_size: Side of the images, pixels: some of timm's models are made for one size.

    Raises:
        UsageError: If the name is unknown, or a setting does not fit the encoder.
    """
    kind, _, inner = model.encoder.rpartition(":")
    if kind == "timm":
        encoder = _build_timm(inner, model, norm_layer, view_size)
    elif kind in ("", "halves") and inner in (*RESNETS, *ALEXNETS):
        encoder = _build_own(kind, inner, model, norm_layer)
        if inner in ALEXNETS:
            _check_view_of_alexnet(model, view_size)
    else:
        raise UsageError(
            f"model.encoder={model.encoder} is unknown"
            f"{nearest_name(inner, [*RESNETS, *ALEXNETS])} "
            "(also halves:NAME for two of half the width, and timm:NAME for any of timm's models)"
        )
    _check_split(model, encoder, norm_layer)
    return encoder


def _build_own(kind: str, name: str, model: ModelConfig, norm_layer: NormLayer) -> Backbone:
    if model.freeze_patch_projection:
        raise UsageError(
            f"model.encoder={model.encoder} has no patch projection, only vision transformers have "
            "(timm:vit_small_patch16_224); set model.freeze_patch_projection=false"
        )
    make = partial(_build_alexnet if name in ALEXNETS else _build_resnet, name, model, norm_layer)
    if kind == "":
        return make(3, model.width)
    if model.width % 2:
        raise UsageError(f"model.width={model.width} cannot be halved; set model.width to 64")
    from fastmoco.moco.lab_pair import Halves

    return Halves(make(1, model.width // 2), make(2, model.width // 2))


def _build_resnet(
    name: str, model: ModelConfig, norm_layer: NormLayer, in_channels: int, width: int
) -> Backbone:
    layout = RESNETS[name]
    if width * layout.group_width < 64:
        raise UsageError(
            f"model.width={model.width} leaves no channel to a group of model.encoder="
            f"{model.encoder}; set model.width={model.width * 64 // (width * layout.group_width)} "
            "or more"
        )
    encoder = ResNet(
        layout,
        stem=model.stem,
        width=width,
        norm_layer=norm_layer,
        in_channels=in_channels,
        zero_init_residual=model.zero_init_residual,
    )
    encoder.activation_checkpointing = model.activation_checkpointing
    return encoder


def _build_alexnet(
    name: str, model: ModelConfig, norm_layer: NormLayer, in_channels: int, width: int
) -> Backbone:
    from fastmoco.moco.alexnet import AlexNet

    if model.zero_init_residual or model.activation_checkpointing:
        raise UsageError(
            f"model.encoder={model.encoder} has no residual blocks; set "
            "model.zero_init_residual=false model.activation_checkpointing=false"
        )
    layer = norm_layer if name == "alexnet_bn" else None
    return AlexNet(stem=model.stem, width=width, norm_layer=layer, in_channels=in_channels)


def _check_view_of_alexnet(model: ModelConfig, view_size: int) -> None:
    from fastmoco.moco.alexnet import SMALLEST_VIEW

    if view_size < SMALLEST_VIEW[model.stem]:
        raise UsageError(
            f"pipeline.view_size={view_size} is too small for model.encoder={model.encoder} with "
            f"model.stem={model.stem}, which needs {SMALLEST_VIEW[model.stem]} pixels; set "
            "model.stem=small"
        )


def _build_timm(name: str, model: ModelConfig, norm_layer: NormLayer, view_size: int) -> Backbone:
    from fastmoco.moco.timm_backbone import TimmBackbone

    if model.stem is not Stem.imagenet or model.width != 64 or model.zero_init_residual:
        raise UsageError(
            f"model.encoder={model.encoder} has a stem, a width and first weights of its own; set "
            "model.stem=imagenet model.width=64 model.zero_init_residual=false"
        )
    if model.activation_checkpointing:
        raise UsageError(
            f"model.encoder={model.encoder} keeps its activations, only fastmoco's own ResNets can "
            "do without; set model.activation_checkpointing=false"
        )
    encoder = TimmBackbone(name, view_size=view_size, norm_layer=norm_layer)
    if model.freeze_patch_projection:
        encoder.freeze_patch_projection()
    return encoder


def _check_split(model: ModelConfig, encoder: Backbone, norm_layer: NormLayer) -> None:
    """Refuse groups of batch norm where there is no batch norm."""
    if isinstance(norm_layer(1), SplitBatchNorm2d) and not any(
        isinstance(module, SplitBatchNorm2d) for module in encoder.modules()
    ):
        raise UsageError(
            f"model.encoder={model.encoder} has no batch norm that could be split; set "
            "moco.batch_norm=plain"
        )
