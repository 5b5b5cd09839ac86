"""A pretrained ResNet as the first part of a detector or a segmenter.

The extra batch norms and the numbers of channels are those of arXiv:1911.05722, appendix, for a
width of 64; narrower encoders get proportionally narrower layers after them.
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
    """What normalizes the new layers; None where the backbone's batch norm is frozen."""
    if kind is DetectionNorm.frozen:
        return None
    return partial(DetectionBatchNorm2d, ranks=ranks)


def set_batch_norm(module: nn.Module, kind: DetectionNorm, ranks: Ranks) -> None:
    """Replace every batch norm within `module`, in place; scales and statistics are taken over."""
    for parent in list(module.modules()):
        for name, old in list(parent.named_children()):
            if isinstance(old, nn.BatchNorm2d):
                setattr(parent, name, _replaced(old, kind, ranks))


def _replaced(old: nn.BatchNorm2d, kind: DetectionNorm, ranks: Ranks) -> nn.Module:
    new: nn.Module
    if kind is DetectionNorm.frozen:
        new = FrozenBatchNorm2d(old.num_features, eps=old.eps)
    else:
        new = DetectionBatchNorm2d(old.num_features, ranks=ranks)
    new.load_state_dict(old.state_dict())  # frozen: drops num_batches_tracked
    return new


def dilate(stage: nn.Module) -> None:
    """Let a residual stage keep its resolution, in place: stride 1 and dilation 2.

    All 3 x 3 convolutions get the dilation, as in arXiv:1911.05722.
    """
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (2, 2)


class Body(nn.Module):
    """The stem and the first stages of a ResNet, under its own parameter names.

    Attributes:
        out_channels: Of the last stage.
        stage_channels: Of each stage.
    """

    def __init__(self, resnet: ResNet, num_stages: int) -> None:
        """Take the parts of `resnet`; those after the stages are left to others.

        Args:
            resnet: The backbone.
            num_stages: 3 ends with conv4, 4 with conv5.
        """
        super().__init__()
        self.conv1, self.bn1 = resnet.conv1, resnet.bn1
        self.relu, self.maxpool = resnet.relu, resnet.maxpool
        self._stages = STAGES[:num_stages]
        for name in self._stages:
            setattr(self, name, getattr(resnet, name))
        self.stage_channels = stage_channels(resnet)[:num_stages]
        self.out_channels = self.stage_channels[-1]

    def stages(self, images: Tensor) -> list[Tensor]:
        """Feature maps after each stage, of images ``(N, 3, H, W)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for name in self._stages:
            x = getattr(self, name)(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """The last stage's map."""
        return self.stages(images)[-1]


def stage_channels(resnet: ResNet) -> list[int]:
    """Channels after each of the four stages."""
    return [resnet.feature_dim // 2**down for down in (3, 2, 1, 0)]


class DilatedBackbone(nn.Module):
    """R50-dilated-C5: conv5 at conv4's resolution, then a 3 x 3 convolution with batch norm.

    Attributes:
        out_channels: 512 for a width of 64.
    """

    def __init__(self, resnet: ResNet, norm: NormLayer | None) -> None:
        """Dilate conv5 in place and put the convolution after it."""
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
        """Put the pyramid on the four stages."""
        super().__init__()
        self.body = Body(resnet, 4)
        self.out_channels = 4 * resnet.conv1.out_channels
        self.fpn = FeaturePyramidNetwork(
            self.body.stage_channels, self.out_channels, LastLevelMaxPool(), norm
        )

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Maps ``0`` to ``3``, from fine to coarse, and ``pool``."""
        maps = OrderedDict((str(i), x) for i, x in enumerate(self.body.stages(images)))
        pyramid: OrderedDict[str, Tensor] = self.fpn(maps)
        return pyramid


class Conv5Head(nn.Module):
    """R50-C4's box head: conv5, an extra batch norm, and the average over the region.

    Attributes:
        out_channels: Of conv5.
    """

    def __init__(self, resnet: ResNet, norm: NormLayer | None) -> None:
        """Take conv5 of `resnet`."""
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
    """A 3 x 3 convolution, batch norm where there is one, and ReLU."""
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
    """The part of a detector before its proposals; takes `resnet` apart."""
    if arch is Arch.fpn:
        return PyramidBackbone(resnet, norm)
    return DilatedBackbone(resnet, norm) if arch is Arch.dc5 else Body(resnet, 3)


def check_resnet(backbone: nn.Module) -> ResNet:
    """The backbone as the ResNet that a detector is made of, trainable.

    Raises:
        UsageError: If it is another network.
    """
    if not isinstance(backbone, ResNet):
        raise UsageError(
            f"detect needs a ResNet, this run has a {type(backbone).__name__}; give a run of "
            "model.encoder=resnet50 or the like"
        )
    return backbone.train().requires_grad_(True)
