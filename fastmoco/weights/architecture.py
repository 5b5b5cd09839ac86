"""Recognition of the encoder that a backbone's tensors belong to, by their shapes.

Each candidate is built on the meta device, where nothing is computed; the one with the file's names
and shapes is taken. Strides and padding do not show in shapes: the options `stem` and `layout`
decide them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fastmoco.errors import UsageError
from fastmoco.moco.build import build_query_encoder
from fastmoco.moco.encoder import Encoder
from fastmoco.moco.resnet_designs import RESNETS
from fastmoco.moco.settings import Head, MocoConfig, ModelConfig, Stem
from fastmoco.weights.layouts import Parts
from fastmoco.weights.settings import WeightsLayout

Shapes = dict[str, tuple[int, ...]]
SHOWN = 3
"""Maximum number of differences in an error message."""


def find_architecture(parts: Parts, *, encoder: str = "", stem: Stem | None = None) -> ModelConfig:
    """The configuration whose backbone has exactly these tensors.

    Args:
        parts: Tensors of a weights file.
        encoder: Architecture to compare with; empty compares with all.
        stem: First layers; None derives them from the first convolution's kernel and the layout.

    Raises:
        UsageError: If no architecture fits; the message lists differences from the nearest one.
    """
    found = shapes_of(parts.backbone)
    first = found.get("conv1.weight", ())
    if len(first) != 4:
        near = sorted(found, key=lambda name: not name.startswith("conv1"))[:SHOWN]
        raise UsageError(
            f"the backbone has no convolution conv1.weight (but {', '.join(near)}); "
            "only plain ResNets can be imported"
        )
    stem = stem or _stem(first[2], parts.layout)
    misfits = {}
    for name in [encoder] if encoder else RESNETS:
        model = ModelConfig(encoder=name, stem=stem, width=first[0])
        differing = differences(shapes_of(_meta_encoder(model).backbone.state_dict()), found)
        if not differing:
            return model
        misfits[name] = differing
    nearest = min(misfits, key=lambda name: len(misfits[name]))
    lines = misfits[nearest]
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    raise UsageError(
        f"no encoder has these tensors; the nearest, {nearest} with {stem.value} stem and width "
        f"{first[0]}, differs in {'; '.join(lines[:SHOWN])}{more}"
    )


def find_head(parts: Parts, model: ModelConfig) -> MocoConfig | None:
    """Options that build the projection head; None if fastmoco has no such head."""
    found = shapes_of(parts.head)
    for head, output in ((Head.linear, "weight"), (Head.mlp, "2.weight")):
        if len(found.get(output, ())) == 2:
            dim, hidden_dim = found[output]
            moco = MocoConfig(head=head, dim=dim)
            if head is Head.mlp and hidden_dim != _meta_encoder(model).backbone.feature_dim:
                moco.head_hidden_dim = hidden_dim
            if shapes_of(_meta_encoder(model, moco).head.state_dict()) == found:
                return moco
    return None


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shape of each tensor, without batch norm's counters, which old files lack."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }


def describe_architecture(model: ModelConfig) -> str:
    """Description such as ``resnet18, small stem, width 16``."""
    return f"{model.encoder}, {model.stem.value} stem, width {model.width}"


def _stem(kernel: int, layout: WeightsLayout) -> Stem:
    if kernel == 7:
        return Stem.imagenet
    return Stem.small_pad2 if layout is WeightsLayout.solo_learn else Stem.small


def _meta_encoder(model: ModelConfig, moco: MocoConfig | None = None) -> Encoder:
    """Build the encoder on the meta device."""
    with torch.device("meta"):
        return build_query_encoder(model, moco or MocoConfig())


def differences(expected: Shapes, found: Shapes) -> list[str]:
    """Tensors whose shapes differ or that only one side has, one line each."""
    return [
        f"{name}: {expected.get(name, 'absent')} expected, {found.get(name, 'absent')} found"
        for name in [*expected, *(found.keys() - expected.keys())]
        if expected.get(name) != found.get(name)
    ]
