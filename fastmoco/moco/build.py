"""The model that a configuration describes."""

from functools import partial

import torch
from torch import nn

from fastmoco.errors import UsageError
from fastmoco.moco.backbone import Backbone, NormLayer
from fastmoco.moco.batchnorm import (
    SplitBatchNorm2d,
    SynchronizedBatchNorm1d,
    SynchronizedBatchNorm2d,
    resolve_batch_norm,
)
from fastmoco.moco.cross_channel import CrossChannel
from fastmoco.moco.encoder import Encoder, build_head
from fastmoco.moco.encoders import build_encoder
from fastmoco.moco.end_to_end import EndToEnd
from fastmoco.moco.lab_pair import Halves, HalvesHead
from fastmoco.moco.mechanism import ContrastiveModel
from fastmoco.moco.memory_bank import MemoryBank
from fastmoco.moco.moco_v3 import HeadNorm, MoCoV3, projection_head
from fastmoco.moco.model import MoCo
from fastmoco.moco.settings import BatchNorm, Mechanism, MocoConfig, ModelConfig, Pretext
from fastmoco.ranks import ALONE, Ranks


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
    backbone, head = _parts(model, moco, ranks, view_size, accumulate)
    if moco.mechanism is Mechanism.moco:
        return _build_moco(backbone, head, moco, ranks, accumulate)
    if moco.mechanism is Mechanism.memory_bank:
        return MemoryBank(
            backbone,
            head,
            dim=moco.dim,
            num_samples=num_samples,
            num_negatives=moco.queue_size,
            bank_momentum=moco.bank_momentum,
            temperature=moco.temperature,
            ranks=ranks,
        )
    if moco.mechanism is Mechanism.end_to_end:
        return EndToEnd(
            backbone, head, temperature=moco.temperature, negatives=moco.negatives, ranks=ranks
        )
    return MoCoV3(
        backbone,
        head,
        dim=moco.dim,
        hidden_dim=moco.hidden_dim,
        momentum=moco.momentum,
        final_momentum=1.0 if moco.final_momentum is None else moco.final_momentum,
        temperature=moco.temperature,
        norm_layer=_head_norm(moco, ranks),
        ranks=ranks,
    )


def build_query_encoder(model: ModelConfig, moco: MocoConfig, *, view_size: int = 224) -> Encoder:
    """The query encoder alone, as `build_model` would initialize it for one device.

    Raises:
        UsageError: If the encoder's name is unknown, or a setting does not fit it.
    """
    return Encoder(*_parts(model, moco, ALONE, view_size))


def check_encoder(
    model: ModelConfig, moco: MocoConfig, ranks: Ranks, view_size: int, accumulate: int = 1
) -> None:
    """Build the encoder for nothing, to find out whether it can be.

    On the meta device, where no memory is taken, but for timm's models: not all can be built there.

    Raises:
        UsageError: As of `build_model`.
    """
    with torch.device("cpu" if model.encoder.startswith("timm:") else "meta"):
        _parts(model, moco, ranks, view_size, accumulate)


def _parts(
    model: ModelConfig, moco: MocoConfig, ranks: Ranks, view_size: int, accumulate: int = 1
) -> tuple[Backbone, nn.Module]:
    """Backbone and projection head of the query encoder."""
    kind, groups = resolve_batch_norm(moco, ranks, accumulate)
    backbone = build_encoder(
        model, norm_layer=_norm_layer(kind, groups // accumulate, ranks), view_size=view_size
    )
    if moco.pretext is Pretext.cross_channel:
        return backbone, _head_of_halves(backbone, model, moco)
    if moco.mechanism is not Mechanism.moco_v3:
        return backbone, build_head(moco.head, backbone.feature_dim, moco.dim, moco.head_hidden_dim)
    norm_layer = _head_norm(moco, ranks)
    return backbone, projection_head(backbone.feature_dim, moco.hidden_dim, moco.dim, norm_layer)


def _head_of_halves(backbone: Backbone, model: ModelConfig, moco: MocoConfig) -> HalvesHead:
    if not isinstance(backbone, Halves):
        name = model.encoder if ":" not in model.encoder else "resnet50"
        raise UsageError(
            f"moco.pretext=cross_channel needs a pair of encoders; set model.encoder=halves:{name}"
        )
    heads = (
        build_head(moco.head, half.feature_dim, moco.dim, moco.head_hidden_dim)
        for half in (backbone.lightness, backbone.color)
    )
    return HalvesHead(*heads)


def _build_moco(
    backbone: Backbone, head: nn.Module, moco: MocoConfig, ranks: Ranks, accumulate: int
) -> MoCo:
    kind, groups = resolve_batch_norm(moco, ranks, accumulate)
    return (CrossChannel if moco.pretext is Pretext.cross_channel else MoCo)(
        backbone,
        head,
        dim=moco.dim,
        queue_size=moco.queue_size,
        momentum=moco.momentum,
        final_momentum=moco.final_momentum,
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


def _head_norm(moco: MocoConfig, ranks: Ranks) -> HeadNorm:
    kind, _ = resolve_batch_norm(moco, ranks)
    if kind is BatchNorm.synchronized and ranks.several:
        return partial(SynchronizedBatchNorm1d, ranks=ranks)
    return nn.BatchNorm1d
