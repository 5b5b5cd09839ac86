"""The model that a configuration describes."""

from functools import partial

from torch import nn

from fastmoco.moco.batchnorm import (
    SplitBatchNorm2d,
    SynchronizedBatchNorm2d,
    resolve_batch_norm,
)
from fastmoco.moco.encoders import NormLayer, build_encoder
from fastmoco.moco.model import MoCo, build_head
from fastmoco.ranks import ALONE, Ranks
from fastmoco.schema import BatchNorm, MocoConfig, ModelConfig


def build_model(model: ModelConfig, moco: MocoConfig, ranks: Ranks = ALONE) -> MoCo:
    """Build encoders, heads and queue, initialized from torch's global generator, on the CPU.

    Raises:
        ValueError: If the encoder's name is unknown.
    """
    kind, groups = resolve_batch_norm(moco, ranks)
    backbone = build_encoder(
        model.encoder,
        stem=model.stem,
        width=model.width,
        norm_layer=_norm_layer(kind, groups, ranks),
    )
    return MoCo(
        backbone,
        build_head(moco.head, backbone.feature_dim, moco.dim),
        dim=moco.dim,
        queue_size=moco.queue_size,
        momentum=moco.momentum,
        temperature=moco.temperature,
        shuffle_keys=kind is BatchNorm.shuffled and groups > 1,
        running_keys=kind is BatchNorm.eman,
        ranks=ranks,
        symmetric=moco.symmetric,
    )


def _norm_layer(kind: BatchNorm, groups: int, ranks: Ranks) -> NormLayer:
    if kind is BatchNorm.synchronized and ranks.several:
        return partial(SynchronizedBatchNorm2d, ranks=ranks)
    if groups > ranks.world_size:
        return partial(SplitBatchNorm2d, num_splits=groups // ranks.world_size)
    return nn.BatchNorm2d
