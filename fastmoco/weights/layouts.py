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

_WRAPPERS = ("module", "_orig_mod")
"""Parts of names that data parallelism and compilation add."""
_COMMON = "model."
"""Prefix of Lightning, removed if all names begin with it."""
CLASSIFIERS = ("fc", "linear", "classifier", "head")
_FIRST_LAYER = re.compile(r"(?:^|(?<=\.))conv1\.")
_STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


@dataclass(slots=True)
class Parts:
    """Tensors of a state dict by part, under our names."""

    layout: WeightsLayout
    backbone: dict[str, Tensor]
    head: dict[str, Tensor]
    prefix: str = ""
    """Beginning of the names that were read; "" if it is none or the layout's own."""
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


def take_apart(
    tensors: Mapping[str, Tensor], layout: WeightsLayout = WeightsLayout.auto, prefix: str = ""
) -> Parts:
    """Find backbone and head in a state dict, and give them our names.

    Args:
        tensors: Tensors of a file, under the names of its project.
        layout: The project, or ``auto`` to recognize it.
        prefix: Beginning of the names to read; "" to find it.

    Raises:
        UsageError: If the layout is unknown, or the file has no backbone in this layout, or it has
            several that differ.
    """
    everything = _without_wrappers(tensors)
    prefix = _joined(prefix.rstrip("."))
    prefix = f"{prefix}." if prefix else _common_prefix(everything)
    if layout is WeightsLayout.auto:
        layout, inner = recognize(_under(everything, prefix))
        prefix += inner
    parts = _parts(_under(everything, prefix), layout)
    for name in everything:
        if not name.startswith(prefix):
            _count(parts, name)
    parts.prefix = prefix
    return parts


def _parts(tensors: Mapping[str, Tensor], layout: WeightsLayout) -> Parts:
    backbones, head = _PREFIXES[layout]
    prefix = next((p for p in backbones if any(n.startswith(p) for n in tensors)), None)
    if prefix is None:
        raise UsageError(
            f"layout={layout.value} expects names under {backbones[0]}, but this file has "
            f"{_examples(tensors)}; set layout=auto or another layout"
        )
    parts = Parts(layout, {}, {})
    for name, tensor in tensors.items():
        short = name.removeprefix(prefix)
        others = _first(short) in CLASSIFIERS or (not prefix and _first(short) not in _STAGES)
        if name.startswith(head):
            parts.head[name.removeprefix(head)] = tensor
        elif name.startswith(prefix) and not others:
            parts.backbone[short] = tensor
        else:
            _count(parts, name)
    parts.backbone = _our_names(parts.backbone)
    return parts


def _count(parts: Parts, name: str) -> None:
    """Count a tensor that is left out."""
    parts.left_out[_first(name)] = parts.left_out.get(_first(name), 0) + 1


def recognize(tensors: Mapping[str, Tensor]) -> tuple[WeightsLayout, str]:
    """The layout that these tensor names belong to, and the prefix before its names.

    Raises:
        UsageError: If they belong to no known layout, or to several encoders that differ.
    """

    def some(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in tensors)

    if some(r"encoder_q\."):
        return WeightsLayout.moco, ""
    if some(r"base_encoder\."):
        return WeightsLayout.moco_v3, ""
    if some(r"backbone\.\d") or (some(r"backbone\.") and some(r"projection_head\.")):
        return WeightsLayout.lightly, ""
    if some(r"(backbone|encoder)\.conv1\."):
        return WeightsLayout.solo_learn, ""
    return WeightsLayout.torchvision, _resnet_prefix(tensors)


def _resnet_prefix(tensors: Mapping[str, Tensor]) -> str:
    """The beginning of the names of a ResNet's first convolution and first stage.

    Raises:
        UsageError: If there is none, or several with other values.
    """
    begun = {name[: match.start()] for name in tensors if (match := _FIRST_LAYER.search(name))}
    found = sorted(p for p in begun if any(name.startswith(f"{p}layer1.") for name in tensors))
    if not found:
        known = ", ".join(item for item in WeightsLayout if item is not WeightsLayout.auto)
        raise UsageError(
            f"the tensor names of this file ({_examples(tensors)}) are of no known layout; known "
            f"layouts of ResNets: {known}"
        )
    if "" in found:
        return ""
    first = _under(tensors, found[0])
    for other in found[1:]:
        if not _equal(first, _under(tensors, other)):
            raise UsageError(
                f"it holds encoders that differ; choose one: fastmoco import FILE out=FOLDER "
                f"prefix={found[0]} or prefix={other}"
            )
    return found[0]


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether the tensors of a ResNet up to its classifier are the same."""
    names = [name for name in one if _first(name) in _STAGES]
    return all(name in other and torch.equal(one[name], other[name]) for name in names)


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what data parallelism and compilation add, and a prefix that all names share."""
    plain = _without_wrappers(tensors)
    return _under(plain, _common_prefix(plain))


def _without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove ``module.`` and ``_orig_mod.`` anywhere in the names.

    Raises:
        UsageError: If two names are then the same, or there are none.
    """
    plain = {_joined(name): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors) or not plain:
        raise UsageError(
            f"its {len(tensors)} tensors have {len(plain)} different names without module. and "
            "_orig_mod.; give a file with the tensors of one encoder"
        )
    return plain


def _joined(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _common_prefix(names: Iterable[str]) -> str:
    """`_COMMON` as often as all names begin with it."""
    prefix = ""
    while all(name.startswith(prefix + _COMMON) for name in names):
        prefix += _COMMON
    return prefix


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with a prefix, without it.

    Raises:
        UsageError: If there is none.
    """
    cut = len(prefix)
    found = {name[cut:]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not found:
        raise UsageError(
            f"prefix={prefix} is the beginning of no tensor name; names are {_examples(tensors)}"
        )
    return found


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
