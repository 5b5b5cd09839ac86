"""The backbone as a state dict of torchvision and of timm.

Our ResNets have torchvision's names, and timm's are the same; a model of timm (``timm:NAME``) keeps
its own. The classifier is left out.
"""

import io
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save
from torch import Tensor

from fastmoco.errors import UsageError
from fastmoco.files import atomic_path
from fastmoco.interop.loaded_encoder import Subject, refuse_head
from fastmoco.interop.settings import ExportConfig

TIMM_PREFIX, TIMM_MODULE = "timm:", "network."
"""Of `model.encoder`, and of the tensors of the backbone that holds one of timm's models."""
# Of torchvision's; timm names them and their tensors alike (a test compares all of them).
RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)


def write_torchvision(out: Path, subject: Subject, cfg: ExportConfig) -> str:
    """Write a state dict that torchvision's model loads strictly but for ``fc``.

    Returns:
        The line of Python that loads it.

    Raises:
        UsageError: If torchvision has no such model, or the file's ending is another.
    """
    refuse_head(cfg.part, "torchvision")
    name = library_model(subject, "torchvision")
    _write_state(out, backbone_state(subject))
    return (
        f"model = torchvision.models.{name}(); "
        f"model.load_state_dict({_loading(out)}, strict=False)  # only fc is missing"
    )


def write_timm(out: Path, subject: Subject, cfg: ExportConfig) -> str:
    """Write a state dict that ``timm.create_model(NAME, num_classes=0)`` loads strictly.

    Returns:
        The line of Python that loads it.

    Raises:
        UsageError: If timm has no such model, or the file's ending is another.
    """
    refuse_head(cfg.part, "timm")
    name = timm_model(subject, "timm")
    _write_state(out, timm_state(subject))
    options = "".join(f", {key}={value}" for key, value in timm_options(subject).items())
    return (
        f"model = timm.create_model({name!r}, num_classes=0, checkpoint_path={str(out)!r}{options})"
    )


def library_model(subject: Subject, target: str) -> str:
    """The name of the same architecture in torchvision, timm and detectron2.

    Raises:
        UsageError: If they have none: a narrow width, a small stem, another encoder.
    """
    name = subject.config.model.encoder
    advice = "use to=safetensors or to=onnx"
    if name not in RESNETS:
        raise UsageError(f"to={target} takes ResNets, not model.encoder={name}; {advice}")
    with torch.device("meta"):
        expected = getattr(torchvision.models, name)().state_dict()
    theirs = {key: tuple(t.shape) for key, t in expected.items() if not key.startswith("fc.")}
    ours = {key: tuple(t.shape) for key, t in subject.encoder.backbone.state_dict().items()}
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            raise UsageError(
                f"to={target} cannot hold this encoder ({subject.architecture}): {key} is "
                f"{ours.get(key, 'absent')}, in its {name} {theirs.get(key, 'absent')}; {advice}"
            )
    return name


def timm_model(subject: Subject, target: str) -> str:
    """The model's name in timm.

    Raises:
        UsageError: If timm has none.
    """
    name = subject.config.model.encoder
    if name.startswith(TIMM_PREFIX):
        return name.removeprefix(TIMM_PREFIX)
    return library_model(subject, target)


def timm_state(subject: Subject) -> dict[str, Tensor]:
    """The backbone under timm's names."""
    state = backbone_state(subject)
    return {name.removeprefix(TIMM_MODULE): tensor for name, tensor in state.items()}


def timm_options(subject: Subject) -> dict[str, int]:
    """What `timm.create_model` needs besides the name: the size that positions are learned for."""
    learned = f"{TIMM_MODULE}pos_embed" in subject.encoder.backbone.state_dict()
    return {"img_size": subject.config.pipeline.view_size} if learned else {}


def backbone_state(subject: Subject) -> dict[str, Tensor]:
    """The backbone's tensors, contiguous on the CPU."""
    state = subject.encoder.backbone.state_dict()
    return {name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}


def _write_state(out: Path, state: dict[str, Tensor]) -> None:
    if out.suffix == ".safetensors":
        write_bytes(out, save(state, {"format": "pt"}))
    elif out.suffix in (".pth", ".pt"):
        write_bytes(out, torch_bytes(state))
    else:
        raise UsageError(f"out={out} must end in .pth or .safetensors")


def _loading(out: Path) -> str:
    if out.suffix == ".safetensors":
        return f"safetensors.torch.load_file({str(out)!r})"
    return f"torch.load({str(out)!r})"


def torch_bytes(record: Any) -> bytes:
    """What `torch.save` writes; in memory first, so that a full disk is an OSError."""
    buffer = io.BytesIO()
    torch.save(record, buffer)
    return buffer.getvalue()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
