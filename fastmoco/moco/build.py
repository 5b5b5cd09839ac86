"""Building of the model that a configuration describes."""

import torch

from fastmoco.errors import UsageError, first_line
from fastmoco.moco.backbone import Backbone
from fastmoco.moco.batchnorm import encoder_norm_layer
from fastmoco.moco.cross_channel import CrossChannel
from fastmoco.moco.encoder import Encoder
from fastmoco.moco.encoders import build_encoder
from fastmoco.moco.end_to_end import EndToEnd
from fastmoco.moco.fast_moco import FastMoCo
from fastmoco.moco.mechanism import ContrastiveModel, Parts
from fastmoco.moco.memory_bank import MemoryBank
from fastmoco.moco.moco_v3 import MoCoV3
from fastmoco.moco.model import MoCo
from fastmoco.moco.settings import Mechanism, MocoConfig, ModelConfig, Pretext
from fastmoco.ranks import ALONE, Ranks

MECHANISMS: dict[Mechanism, type[ContrastiveModel]] = {
    Mechanism.moco: MoCo,
    Mechanism.end_to_end: EndToEnd,
    Mechanism.memory_bank: MemoryBank,
    Mechanism.moco_v3: MoCoV3,
    Mechanism.fast_moco: FastMoCo,
}


def build_model(
    model: ModelConfig,
    moco: MocoConfig,
    ranks: Ranks = ALONE,
    accumulate: int = 1,
    *,
    num_samples: int = 0,
    view_size: int = 224,
) -> ContrastiveModel:
    """Build encoders, heads and the mechanism's memory, on the CPU, by torch's generator.

    Args:
        model: Settings of the encoder.
        moco: Settings of the mechanism.
        ranks: Part of a global batch that this process sees.
        accumulate: Micro-batches of a step; each is a forward pass of its own.
        num_samples: Images of the dataset, for a memory bank.
        view_size: Side of the views, pixels: some of timm's models are made for one size.

    Raises:
        UsageError: If the encoder's name is unknown, or a setting does not fit it.
    """
    norm_layer = encoder_norm_layer(moco, ranks, accumulate)
    backbone = build_encoder(model, norm_layer=norm_layer, view_size=view_size)
    return _mechanism(moco)(Parts(backbone, model, moco, ranks, accumulate, num_samples))


def build_query_encoder(
    model: ModelConfig,
    moco: MocoConfig,
    ranks: Ranks = ALONE,
    accumulate: int = 1,
    *,
    view_size: int = 224,
) -> Encoder:
    """Build the query encoder alone, with the same random weights as in `build_model`.

    Raises:
        UsageError: If the encoder's name is unknown, or a setting does not fit it.
    """
    norm_layer = encoder_norm_layer(moco, ranks, accumulate)
    backbone = build_encoder(model, norm_layer=norm_layer, view_size=view_size)
    parts = Parts(backbone, model, moco, ranks)
    return Encoder(parts.backbone, _mechanism(moco).make_head(parts))


def check_encoder(
    model: ModelConfig, moco: MocoConfig, ranks: Ranks, view_size: int, accumulate: int = 1
) -> None:
    """Check that the encoder can be built, by building it on the meta device without memory.

    timm's models are built on the CPU: not all can be built on the meta device.

    Raises:
        UsageError: If the encoder's name is unknown, or a setting does not fit it.
    """
    with torch.device("cpu" if model.encoder.startswith("timm:") else "meta"):
        encoder = build_query_encoder(model, moco, ranks, accumulate, view_size=view_size)
        if moco.mechanism is Mechanism.fast_moco:
            _check_patches(encoder.backbone, model.encoder, view_size)


@torch.no_grad()
def _check_patches(backbone: Backbone, name: str, view_size: int) -> None:
    """Try a backbone on a patch, half as wide and high as a view."""
    side = view_size // 2
    try:
        backbone.eval()(torch.zeros(1, 3, side, side))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"model.encoder={name} does not take patches of {side} pixels, half of "
            f"pipeline.view_size={view_size}, which moco.mechanism=fast_moco cuts views into "
            f"({first_line(error)}); set pipeline.view_size to twice a size that it takes"
        ) from error


def _mechanism(moco: MocoConfig) -> type[ContrastiveModel]:
    return CrossChannel if moco.pretext is Pretext.cross_channel else MECHANISMS[moco.mechanism]
