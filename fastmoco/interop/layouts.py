"""Whose names a state dict uses, and ours for the same tensors.

Ours are torchvision's for the backbone (``conv1``, ``bn1``, ``layer1.0.conv1``, ...); a linear head
is ``weight`` and ``bias``, an MLP head ``0.*`` and ``2.*``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastmoco.errors import UsageError
from fastmoco.interop.settings import WeightsLayout

# Wrappers' prefixes that all names of a file may share.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


@dataclass(slots=True)
class Parts:
    """A state dict taken apart, under our names."""

    layout: WeightsLayout
    backbone: dict[str, Tensor]
    head: dict[str, Tensor]
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of tensors by the first part of their names."""


@dataclass(frozen=True, slots=True)
class _Names:
    """Prefixes of one layout."""

    backbones: tuple[str, ...]
    """The first that is there counts."""
    head: str
    """Of the projection head, from the start of the name."""


_NAMES = {
    WeightsLayout.moco: _Names(("encoder_q.",), "encoder_q.fc."),
    WeightsLayout.moco_v3: _Names(("base_encoder.",), "base_encoder.fc."),
    WeightsLayout.solo_learn: _Names(("backbone.", "encoder."), "projector."),
    WeightsLayout.lightly: _Names(("backbone.",), "projection_head.layers."),
    WeightsLayout.torchvision: _Names(("",), "-"),  # its fc is a classifier
}


def take_apart(tensors: Mapping[str, Tensor], layout: WeightsLayout = WeightsLayout.auto) -> Parts:
    """Find backbone and head in a state dict, and give them our names.

    Args:
        tensors: As a file holds them.
        layout: Whose names they are, or ``auto``.

    Raises:
        UsageError: If the layout is unknown, or the file has nothing of it.
    """
    tensors = _unwrapped(tensors)
    if layout is WeightsLayout.auto:
        layout = recognize(tensors)
    names = _NAMES[layout]
    prefix = next((p for p in names.backbones if any(n.startswith(p) for n in tensors)), None)
    if prefix is None:
        raise UsageError(
            f"layout={layout.value} expects names under {names.backbones[0]}, this file has "
            f"{_examples(tensors)}; set layout=auto or another one"
        )
    parts = Parts(layout, {}, {})
    for name, tensor in tensors.items():
        if name.startswith(names.head):
            parts.head[name.removeprefix(names.head)] = tensor
        elif name.startswith(prefix) and not _is_classifier(name.removeprefix(prefix)):
            parts.backbone[name.removeprefix(prefix)] = tensor
        else:
            first = name.split(".")[0]
            parts.left_out[first] = parts.left_out.get(first, 0) + 1
    parts.backbone = _our_names(parts.backbone)
    return parts


def recognize(tensors: Iterable[str]) -> WeightsLayout:
    """Whose names these are.

    Raises:
        UsageError: If they are nobody's that we know.
    """
    names = list(tensors)

    def some(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    if some(r"encoder_q\."):
        return WeightsLayout.moco
    if some(r"base_encoder\."):
        return WeightsLayout.moco_v3
    if some(r"backbone\.\d") or (some(r"backbone\.") and some(r"projection_head\.")):
        return WeightsLayout.lightly
    if some(r"(backbone|encoder)\.conv1\."):
        return WeightsLayout.solo_learn
    if some(r"conv1\.") and some(r"layer1\."):
        return WeightsLayout.torchvision
    known = ", ".join(item for item in WeightsLayout if item is not WeightsLayout.auto)
    raise UsageError(
        f"the tensor names of this file ({_examples(names)}) are of no known layout; known, each "
        f"of a ResNet: {known}"
    )


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without prefixes that all names share: of data parallelism, compilation, a wrapper."""
    plain = dict(tensors)
    while prefix := next((p for p in _WRAPPERS if all(n.startswith(p) for n in plain)), None):
        plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    return plain


def _is_classifier(name: str) -> bool:
    return name.split(".")[0] in ("fc", "linear", "classifier", "head")


def _our_names(backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace what is lightly's own: numbered children, ``shortcut``, split statistics.

    A `Sequential` of a ResNet's children numbers its ReLU and pool too, or not: only the order of
    those that hold tensors tells.
    """
    numbers = sorted({int(n.split(".")[0]) for n in backbone if n.split(".")[0].isdigit()})
    stages = {str(number): stage for number, stage in zip(numbers, _STAGES, strict=False)}
    renamed = {}
    for name, tensor in backbone.items():
        first, _, rest = name.partition(".")
        renamed[f"{stages.get(first, first)}.{rest}".replace(".shortcut.", ".downsample.")] = tensor
    return {name: _whole_statistics(name, tensor, renamed) for name, tensor in renamed.items()}


def _whole_statistics(name: str, tensor: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Running statistics of a split batch norm: the mean over its groups, as in evaluation."""
    path, _, leaf = name.rpartition(".")
    weight = state.get(f"{path}.weight")
    if leaf not in ("running_mean", "running_var") or weight is None:
        return tensor
    if tensor.ndim != 1 or weight.ndim != 1 or not len(weight) or len(tensor) % len(weight):
        return tensor
    return tensor if len(tensor) == len(weight) else torch.mean(tensor.view(-1, len(weight)), dim=0)


def _examples(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:3]) or "no tensor"
