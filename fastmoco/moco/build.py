"""The model that a configuration describes."""

from functools import partial

from torch import nn

from fastmoco.moco.batchnorm import SplitBatchNorm2d
from fastmoco.moco.encoders import NormLayer, build_encoder
from fastmoco.moco.model import MoCo, build_head
from fastmoco.schema import MocoConfig, ModelConfig


def build_model(model: ModelConfig, moco: MocoConfig) -> MoCo:
    """Build encoders, heads and queue, initialized from torch's global generator, on the CPU.

    Raises:
        ValueError: If the encoder's name is unknown.
    """
    split = moco.batch_norm_splits > 1
    norm_layer: NormLayer = nn.BatchNorm2d
    if split:
        norm_layer = partial(SplitBatchNorm2d, num_splits=moco.batch_norm_splits)
    backbone = build_encoder(
        model.encoder, stem=model.stem, width=model.width, norm_layer=norm_layer
    )
    return MoCo(
        backbone,
        build_head(moco.head, backbone.feature_dim, moco.dim),
        dim=moco.dim,
        queue_size=moco.queue_size,
        momentum=moco.momentum,
        temperature=moco.temperature,
        shuffle_keys=split,
        symmetric=moco.symmetric,
    )
