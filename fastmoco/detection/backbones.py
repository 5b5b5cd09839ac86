"""A pretrained ResNet as the first part of a detector or a segmenter.

The extra batch norms and the channel counts follow arXiv:1911.05722, appendix, for a width of 64;
the layers after a narrower encoder are narrower in proportion.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from fastmoco.detection.norm import DetectionBatchNorm2d
from fastmoco.detection.settings import Arch, DetectionNorm
from fastmoco.errors import UsageError
from fastmoco.moco.resnet import ResNet
from fastmoco.ranks import Ranks

NormLayer = Callable[[int], nn.Module]
STAGES = ("layer1", "layer2", "layer3", "layer4")


def norm_layer(kind: DetectionNorm, ranks: Ranks) -> NormLayer | None:
    """Batch norm of the new layers; None where the backbone's batch norm is frozen."""
    if kind is DetectionNorm.frozen:
        return None
    return partial(DetectionBatchNorm2d, ranks=ranks)


def set_batch_norm(module: nn.Module, kind: DetectionNorm, ranks: Ranks) -> None:
    """Replace every batch norm in `module`, in place; scales and statistics are kept."""
    for parent in list(module.modules()):
        for name, old in list(parent.named_children()):
            if isinstance(old, nn.BatchNorm2d):
                new: nn.Module = DetectionBatchNorm2d(old.num_features, ranks=ranks)
                if kind is DetectionNorm.frozen:
                    new = FrozenBatchNorm2d(old.num_features, eps=old.eps)
                new.load_state_dict(old.state_dict())  # frozen: drops num_batches_tracked
                setattr(parent, name, new)


def dilate(stage: nn.Module) -> None:
    """Keep the resolution of a residual stage, in place: stride 1, and dilation 2.

    All 3 x 3 convolutions are dilated, as in arXiv:1911.05722.
    """
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (2, 2)


class Body(nn.Module):
    """The stem and the first stages of a ResNet, under its own parameter names.

    Attributes:
        out_channels: Channels of the last stage.
        stage_channels: Channels of each stage.
    """

    def __init__(self, resnet: ResNet, num_stages: int) -> None:
        """Take the parts of `resnet` up to conv4 (`num_stages` = 3) or conv5 (4)."""
        super().__init__()
        self.conv1, self.bn1 = resnet.conv1, resnet.bn1
        self.relu, self.maxpool = resnet.relu, resnet.maxpool
        self._stages = STAGES[:num_stages]
        for name in self._stages:
            setattr(self, name, getattr(resnet, name))
        self.stage_channels = stage_channels(resnet)[:num_stages]
        self.out_channels = self.stage_channels[-1]

    def stages(self, images: Tensor) -> list[Tensor]:
        """Feature maps after each stage, for images ``(N, 3, H, W)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for name in self._stages:
            x = getattr(self, name)(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """The feature map after the last stage."""
        return self.stages(images)[-1]


def stage_channels(resnet: ResNet) -> list[int]:
    """Channels after each of the four stages."""
    return [resnet.feature_dim // 2**down for down in (3, 2, 1, 0)]


class DilatedBackbone(nn.Module):
    """R50-dilated-C5: conv5 dilated in place, then a 3 x 3 convolution with batch norm.

    Attributes:
        out_channels: 512 for a width of 64.
    """

    def __init__(self, resnet: ResNet, norm: NormLayer | None) -> None:
        super().__init__()
        dilate(resnet.layer4)
        self.body = Body(resnet, 4)
        self.out_channels = 8 * resnet.conv1.out_channels
        self.reduce = conv3x3(self.body.out_channels, self.out_channels, norm)

    def forward(self, images: Tensor) -> Tensor:
        """One feature map."""
        reduced: Tensor = self.reduce(self.body(images))
        return reduced


class PyramidBackbone(nn.Module):
    """R50-FPN: torchvision's pyramid over conv2 to conv5, with batch norm, and one pooled level.

    Attributes:
        out_channels: 256 for a width of 64.
    """

    def __init__(self, resnet: ResNet, norm: NormLayer | None) -> None:
        super().__init__()
        self.body = Body(resnet, 4)
        self.out_channels = 4 * resnet.conv1.out_channels
        self.fpn = FeaturePyramidNetwork(
            self.body.stage_channels, self.out_channels, LastLevelMaxPool(), norm
        )

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Feature maps ``0`` to ``3``, from fine to coarse, and ``pool``."""
        maps = OrderedDict((str(i), x) for i, x in enumerate(self.body.stages(images)))
        pyramid: OrderedDict[str, Tensor] = self.fpn(maps)
        return pyramid


class Conv5Head(nn.Module):
    """Box head of R50-C4: conv5, an extra batch norm, and the average over the region.

    Attributes:
        out_channels: Channels of conv5.
    """

    def __init__(self, resnet: ResNet, norm: NormLayer | None) -> None:
        super().__init__()
        self.out_channels = resnet.feature_dim
        self.layer4 = resnet.layer4
        self.norm = norm(self.out_channels) if norm else nn.Identity()

    def forward(self, regions: Tensor) -> Tensor:
        """Features ``(R, out_channels)`` of regions ``(R, C, S, S)``."""
        features: Tensor = self.norm(self.layer4(regions)).mean(dim=(2, 3))
        return features


def conv3x3(
    channels: int, out_channels: int, norm: NormLayer | None, dilation: int = 1
) -> nn.Sequential:
    """A 3 x 3 convolution, batch norm unless `norm` is None, and ReLU."""
    convolution = nn.Conv2d(
        channels, out_channels, 3, padding=dilation, dilation=dilation, bias=norm is None
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    layers = [convolution, *([norm(out_channels)] if norm else []), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def build_backbone(
    resnet: ResNet, arch: Arch, norm: NormLayer | None
) -> Body | DilatedBackbone | PyramidBackbone:
    """The part of a detector before its proposals; reuses the layers of `resnet`."""
    if arch is Arch.fpn:
        return PyramidBackbone(resnet, norm)
    return DilatedBackbone(resnet, norm) if arch is Arch.dc5 else Body(resnet, 3)


def check_resnet(backbone: nn.Module) -> ResNet:
    """The backbone as a ResNet, in training mode and with gradients, both set in place.

    Raises:
        UsageError: If it is not a ResNet.
    """
    if not isinstance(backbone, ResNet):
        raise UsageError(
            f"detect needs a ResNet, this run has a {type(backbone).__name__}; give a run that was "
            "trained with a ResNet, such as model.encoder=resnet50"
        )
    return backbone.train().requires_grad_(True)
