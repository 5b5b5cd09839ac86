"""Layouts of state dicts of other projects, and our names for their tensors.

Our backbone has torchvision's names (``conv1``, ``bn1``, ``layer1.0.conv1``, ...). A linear head
has ``weight`` and ``bias``, an MLP head ``0.*`` and ``2.*``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastmoco.errors import UsageError
from fastmoco.weights.settings import WeightsLayout

# Prefixes that wrappers add to all names of a file.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
CLASSIFIERS = ("fc", "linear", "classifier", "head")
_STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


@dataclass(slots=True)
class Parts:
    """Tensors of a state dict by part, under our names."""

    layout: WeightsLayout
    backbone: dict[str, Tensor]
    head: dict[str, Tensor]
    left_out: dict[str, int] = field(default_factory=dict)
    """Number of skipped tensors by the first part of their names."""


# Prefixes of the backbone, of which the first that occurs is used, and of the projection head.
_PREFIXES = {
    WeightsLayout.moco: (("encoder_q.",), "encoder_q.fc."),
    WeightsLayout.moco_v3: (("base_encoder.",), "base_encoder.fc."),
    WeightsLayout.solo_learn: (("backbone.", "encoder."), "projector."),
    WeightsLayout.lightly: (("backbone.",), "projection_head.layers."),
    WeightsLayout.torchvision: (("",), "-"),  # its fc is a classifier
}


def take_apart(tensors: Mapping[str, Tensor], layout: WeightsLayout = WeightsLayout.auto) -> Parts:
    """Find backbone and head in a state dict, and give them our names.

    Args:
        tensors: Tensors of a file, under the names of its project.
        layout: The project, or ``auto`` to recognize it.

    Raises:
        UsageError: If the layout is unknown, or the file has no backbone in this layout.
    """
    tensors = unwrapped(tensors)
    if layout is WeightsLayout.auto:
        layout = recognize(tensors)
    backbones, head = _PREFIXES[layout]
    prefix = next((p for p in backbones if any(n.startswith(p) for n in tensors)), None)
    if prefix is None:
        raise UsageError(
            f"layout={layout.value} expects names under {backbones[0]}, but this file has "
            f"{_examples(tensors)}; set layout=auto or another layout"
        )
    parts = Parts(layout, {}, {})
    for name, tensor in tensors.items():
        if name.startswith(head):
            parts.head[name.removeprefix(head)] = tensor
        elif name.startswith(prefix) and _first(name.removeprefix(prefix)) not in CLASSIFIERS:
            parts.backbone[name.removeprefix(prefix)] = tensor
        else:
            first = _first(name)
            parts.left_out[first] = parts.left_out.get(first, 0) + 1
    parts.backbone = _our_names(parts.backbone)
    return parts


def recognize(tensors: Iterable[str]) -> WeightsLayout:
    """The layout that these tensor names belong to.

    Raises:
        UsageError: If they belong to no known layout.
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
        f"the tensor names of this file ({_examples(names)}) are of no known layout; known layouts "
        f"of ResNets: {known}"
    )


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove prefixes that all names share: of data parallelism, compilation or a wrapper."""
    plain = dict(tensors)
    while prefix := next((p for p in _WRAPPERS if all(n.startswith(p) for n in plain)), None):
        plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    return plain


def _first(name: str) -> str:
    return name.split(".")[0]


def _our_names(backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace names that only lightly uses: numbered children, ``shortcut``, split statistics.

    A `Sequential` of a ResNet's children may or may not number ReLU and pool, so only the order of
    the children that hold tensors counts.
    """
    numbers = sorted({int(_first(name)) for name in backbone if _first(name).isdigit()})
    stages = {str(number): stage for number, stage in zip(numbers, _STAGES, strict=False)}
    renamed = {}
    for name, tensor in backbone.items():
        first, _, rest = name.partition(".")
        renamed[f"{stages.get(first, first)}.{rest}".replace(".shortcut.", ".downsample.")] = tensor
    return {name: _whole_statistics(name, tensor, renamed) for name, tensor in renamed.items()}


def _whole_statistics(name: str, tensor: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Average the running statistics of a split batch norm over its groups, as in evaluation."""
    path, _, leaf = name.rpartition(".")
    weight = state.get(f"{path}.weight")
    if leaf not in ("running_mean", "running_var") or weight is None:
        return tensor
    if tensor.ndim != 1 or weight.ndim != 1 or not len(weight) or len(tensor) % len(weight):
        return tensor
    return tensor if len(tensor) == len(weight) else torch.mean(tensor.view(-1, len(weight)), dim=0)


def _examples(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:3]) or "no tensor"
