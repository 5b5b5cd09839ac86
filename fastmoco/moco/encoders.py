"""Encoders by name: ResNets, AlexNet, pairs for lightness and colors, timm's models.

All but the ResNets are imported on first use.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from fastmoco.errors import UsageError, nearest_name
from fastmoco.moco.backbone import Backbone, NormLayer
from fastmoco.moco.batchnorm import SplitBatchNorm2d
from fastmoco.moco.resnet import ResNet
from fastmoco.moco.resnet_designs import RESNETS
from fastmoco.moco.settings import ModelConfig, Stem

ALEXNETS = ("alexnet", "alexnet_bn")


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
    kind, _, name = model.encoder.rpartition(":")
    known = [*RESNETS, *ALEXNETS]
    if kind not in BUILDERS or (kind != "timm" and name not in known):
        raise UsageError(
            f"model.encoder={model.encoder} is unknown{nearest_name(name, known)} "
            "(also halves:NAME for two of half the width, and timm:NAME for any of timm's models)"
        )
    encoder = BUILDERS[kind](name, model, norm_layer, view_size)
    if isinstance(norm_layer(1), SplitBatchNorm2d) and not any(
        isinstance(module, SplitBatchNorm2d) for module in encoder.modules()
    ):
        raise UsageError(
            f"model.encoder={model.encoder} has no batch norm that could be split; set "
            "moco.batch_norm=plain"
        )
    return encoder


def _build_one(name: str, model: ModelConfig, norm_layer: NormLayer, view_size: int) -> Backbone:
    return _own_builder(name, model, norm_layer, view_size)(3, model.width)


def _build_pair(name: str, model: ModelConfig, norm_layer: NormLayer, view_size: int) -> Backbone:
    if model.width % 2:
        raise UsageError(f"model.width must be even for {model.encoder}, got {model.width}")
    from fastmoco.moco.lab_pair import LabPair

    make = _own_builder(name, model, norm_layer, view_size)
    return LabPair(make(1, model.width // 2), make(2, model.width // 2))


def _own_builder(
    name: str, model: ModelConfig, norm_layer: NormLayer, view_size: int
) -> Callable[[int, int], Backbone]:
    """Return a function that makes a ResNet or AlexNet from its input channels and its width."""
    if model.freeze_patch_projection:
        raise UsageError(
            f"model.encoder={model.encoder} has no patch projection, only vision transformers have "
            "one (timm:vit_small_patch16_224); set model.freeze_patch_projection=false"
        )
    if name in ALEXNETS:
        return partial(_build_alexnet, name, model, norm_layer, view_size)
    return partial(_build_resnet, name, model, norm_layer)


def _build_resnet(
    name: str, model: ModelConfig, norm_layer: NormLayer, in_channels: int, width: int
) -> Backbone:
    design = RESNETS[name]
    if width * design.group_width < 64:
        raise UsageError(
            f"model.width={model.width} leaves no channels for a group of model.encoder="
            f"{model.encoder}; set model.width={model.width * 64 // (width * design.group_width)} "
            "or more"
        )
    encoder = ResNet(
        design,
        stem=model.stem,
        width=width,
        norm_layer=norm_layer,
        in_channels=in_channels,
        zero_init_residual=model.zero_init_residual,
    )
    encoder.activation_checkpointing = model.activation_checkpointing
    return encoder


def _build_alexnet(
    name: str,
    model: ModelConfig,
    norm_layer: NormLayer,
    view_size: int,
    in_channels: int,
    width: int,
) -> Backbone:
    from fastmoco.moco.alexnet import SMALLEST_VIEW, AlexNet

    if view_size < SMALLEST_VIEW[model.stem]:
        raise UsageError(
            f"pipeline.view_size={view_size} is too small for model.encoder={model.encoder} with "
            f"model.stem={model.stem}, which needs {SMALLEST_VIEW[model.stem]} pixels; set "
            "model.stem=small"
        )
    if model.zero_init_residual or model.activation_checkpointing:
        raise UsageError(
            f"model.encoder={model.encoder} has no residual blocks; set "
            "model.zero_init_residual=false model.activation_checkpointing=false"
        )
    layer = norm_layer if name == "alexnet_bn" else None
    return AlexNet(stem=model.stem, width=width, norm_layer=layer, in_channels=in_channels)


def _build_timm(name: str, model: ModelConfig, norm_layer: NormLayer, view_size: int) -> Backbone:
    from fastmoco.moco.timm_backbone import TimmBackbone

    if model.stem is not Stem.imagenet or model.width != 64 or model.zero_init_residual:
        raise UsageError(
            f"model.encoder={model.encoder} has its own stem, width and initial weights; set "
            "model.stem=imagenet model.width=64 model.zero_init_residual=false"
        )
    if model.activation_checkpointing:
        raise UsageError(
            f"model.activation_checkpointing works for fastmoco's own ResNets only, got "
            f"model.encoder={model.encoder}; set model.activation_checkpointing=false"
        )
    encoder = TimmBackbone(name, view_size=view_size, norm_layer=norm_layer)
    if model.freeze_patch_projection:
        encoder.freeze_patch_projection()
    return encoder


BUILDERS = {"": _build_one, "halves": _build_pair, "timm": _build_timm}
"""Keyed by the prefix of an encoder's name, before the colon."""
