"""The model that a configuration describes."""

import torch

from fastmoco.moco.backbone import Backbone
from fastmoco.moco.batchnorm import encoder_norm_layer
from fastmoco.moco.cross_channel import CrossChannel
from fastmoco.moco.encoder import Encoder
from fastmoco.moco.encoders import build_encoder
from fastmoco.moco.end_to_end import EndToEnd
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
    """Build encoders, heads and what the mechanism remembers, on the CPU, by torch's generator.

    Args:
        model: The encoder.
        moco: The mechanism.
        ranks: Which part of a global batch this process sees.
        accumulate: Micro-batches of a step: one forward pass sees one.
        num_samples: Images of the dataset, for a memory bank.
        view_size: Side of the views, pixels: some of timm's models are made for one size.

    Raises:
        UsageError: If the encoder's name is unknown, or a setting does not fit it.
    """
    backbone = _backbone(model, moco, ranks, view_size, accumulate)
    return _mechanism(moco).build(Parts(backbone, model, moco, ranks, num_samples, accumulate))


def build_query_encoder(model: ModelConfig, moco: MocoConfig, *, view_size: int = 224) -> Encoder:
    """The query encoder alone, as `build_model` would initialize it for one device.

    Raises:
        UsageError: If the encoder's name is unknown, or a setting does not fit it.
    """
    parts = Parts(_backbone(model, moco, ALONE, view_size, 1), model, moco, ALONE)
    return Encoder(parts.backbone, _mechanism(moco).make_head(parts))


def check_encoder(
    model: ModelConfig, moco: MocoConfig, ranks: Ranks, view_size: int, accumulate: int = 1
) -> None:
    """Build the encoder and drop it, to find out whether it can be built.

    On the meta device, where no memory is taken; timm's models on the CPU: not all can be built on
    the meta device.

    Raises:
        UsageError: As `build_model`.
    """
    with torch.device("cpu" if model.encoder.startswith("timm:") else "meta"):
        parts = Parts(_backbone(model, moco, ranks, view_size, accumulate), model, moco, ranks)
        _mechanism(moco).make_head(parts)


def _mechanism(moco: MocoConfig) -> type[ContrastiveModel]:
    return CrossChannel if moco.pretext is Pretext.cross_channel else MECHANISMS[moco.mechanism]


def _backbone(
    model: ModelConfig, moco: MocoConfig, ranks: Ranks, view_size: int, accumulate: int
) -> Backbone:
    norm_layer = encoder_norm_layer(moco, ranks, accumulate)
    return build_encoder(model, norm_layer=norm_layer, view_size=view_size)
