"""Sizes of the ResNets, and what a view costs in them; imports no torch."""

from collections.abc import Iterator
from typing import NamedTuple

from fastmoco.moco.settings import ModelConfig, Stem


class ResNetDesign(NamedTuple):
    """Blocks, depths and groups of a ResNet."""

    bottleneck: bool
    """Blocks of three convolutions, 1 x 1, 3 x 3 and 1 x 1, instead of two of 3 x 3."""
    depths: tuple[int, int, int, int]
    """Number of blocks in each stage."""
    groups: int = 1
    """Groups of the 3 x 3 convolution of a bottleneck (ResNeXt, arXiv:1611.05431)."""
    group_width: int = 64
    """Channels of each group, in a first stage of width 64."""

    @property
    def expansion(self) -> int:
        """Output channels of a block, as a multiple of its stage's width."""
        return 4 if self.bottleneck else 1


RESNETS: dict[str, ResNetDesign] = {
    "resnet18": ResNetDesign(False, (2, 2, 2, 2)),
    "resnet34": ResNetDesign(False, (3, 4, 6, 3)),
    "resnet50": ResNetDesign(True, (3, 4, 6, 3)),
    "resnet101": ResNetDesign(True, (3, 4, 23, 3)),
    "resnet152": ResNetDesign(True, (3, 8, 36, 3)),
    "resnext50_32x4d": ResNetDesign(True, (3, 4, 6, 3), 32, 4),
    "resnext50_32x8d": ResNetDesign(True, (3, 4, 6, 3), 32, 8),  # the MoCo paper's ResNeXt-50
    "resnext101_32x8d": ResNetDesign(True, (3, 4, 23, 3), 32, 8),
    "wide_resnet50_2": ResNetDesign(True, (3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": ResNetDesign(True, (3, 4, 23, 3), 1, 128),
}


class Layer(NamedTuple):
    """A convolution with its normalization, or a pool."""

    pixels: float
    """Output pixels, as a fraction of the view's."""
    weights: int
    """Weights, which are its multiplications for each output pixel."""
    kept: int
    """Numbers for each output pixel that the backward pass needs."""


class ViewCost(NamedTuple):
    """Cost of one view in an encoder, forward."""

    kept_bytes: float
    """Bytes of float32 activations that the backward pass needs."""
    flops: float
    """Multiplications and additions of the convolutions."""
    weights: int
    """Weights of the convolutions."""


def view_cost(model: ModelConfig, view_size: int) -> ViewCost | None:
    """Count the layers of a ResNet; None for other encoders.

    It is within 2% of what autograd keeps and torch counts, without the projection head.

    Args:
        model: Encoder, stem and width.
        view_size: Side of the views, pixels.
    """
    if model.encoder not in RESNETS:
        return None
    layers = list(_layers(RESNETS[model.encoder], model.stem, model.width))
    pixels = view_size**2
    return ViewCost(
        kept_bytes=4 * pixels * (3 + sum(layer.pixels * layer.kept for layer in layers)),
        flops=2 * pixels * sum(layer.pixels * layer.weights for layer in layers),
        weights=sum(layer.weights for layer in layers),
    )


def _layers(design: ResNetDesign, stem: Stem, width: int) -> Iterator[Layer]:
    """Layers of the stem and of all stages.

    A convolution's output and its normalization's are kept; where a shortcut is added, the sum
    alone.
    """
    if stem is Stem.imagenet:
        yield Layer(1 / 4, 3 * width * 49, 2 * width)
        yield Layer(1 / 16, 0, 3 * width)  # the pool: values, and their places as int64
        pixels = 1 / 16
    else:
        pixels = 1 / 4 if stem is Stem.small_stride2 else 1.0
        yield Layer(pixels, 3 * width * 9, 2 * width)
    channels = width
    for stage, depth in enumerate(design.depths):
        for block in range(depth):
            before, pixels = pixels, pixels / (4 if stage and not block else 1)
            planes = width * 2**stage
            out = planes * design.expansion
            yield from _block(design, channels, planes, before, pixels)
            if not block and (stage or channels != out):
                yield Layer(pixels, channels * out, out)  # the projection of the shortcut
            channels = out


def _block(
    design: ResNetDesign, channels: int, planes: int, before: float, pixels: float
) -> Iterator[Layer]:
    if not design.bottleneck:
        yield Layer(pixels, channels * planes * 9, 2 * planes)
        yield Layer(pixels, planes * planes * 9, 2 * planes)
        return
    inner = planes * design.group_width // 64 * design.groups
    yield Layer(before, channels * inner, 2 * inner)
    yield Layer(pixels, inner * inner // design.groups * 9, 2 * inner)
    yield Layer(pixels, inner * planes * 4, 2 * planes * 4)
