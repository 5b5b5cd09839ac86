"""The backbone as a state dict of torchvision and of timm.

Our ResNets have torchvision's tensor names, which are also timm's. A model of timm (``timm:NAME``)
keeps its own names. The classifier is left out.
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
from fastmoco.interop.loaded_encoder import LoadedEncoder
from fastmoco.interop.settings import ExportConfig, Part, Target
from fastmoco.weights.start import TIMM_MODULE, TIMM_PREFIX

# Names in torchvision; timm has the same names for models and tensors (a test compares them all).
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


def write_state_dict(out: Path, loaded: LoadedEncoder, cfg: ExportConfig) -> str:
    """Write a state dict for `torchvision.models` or for `timm.create_model(NAME, num_classes=0)`.

    timm's model loads it strictly, torchvision's strictly except for ``fc``.

    Returns:
        Python code that loads it.

    Raises:
        UsageError: If the library has no such model, or the file's ending is another.
    """
    name, state = library_model(loaded, cfg), backbone_state(loaded)
    if out.suffix == ".safetensors":
        content, loading = save(state, {"format": "pt"}), "safetensors.torch.load_file"
    elif out.suffix in (".pth", ".pt"):
        content, loading = torch_bytes(state), "torch.load"
    else:
        raise UsageError(f"out={out} must end in .pth or .safetensors")
    write_bytes(out, content)
    if cfg.to is Target.torchvision:
        return (
            f"model = torchvision.models.{name}(); "
            f"model.load_state_dict({loading}({str(out)!r}), strict=False)  # only fc is missing"
        )
    options = "".join(f", {key}={value}" for key, value in timm_options(loaded).items())
    return (
        f"model = timm.create_model({name!r}, num_classes=0, checkpoint_path={str(out)!r}{options})"
    )


def library_model(loaded: LoadedEncoder, cfg: ExportConfig) -> str:
    """The name of the same architecture in the library `cfg.to`.

    Raises:
        UsageError: If the projection head is to be exported too, or if the library has no such
            model because of a narrow width, a small stem or another encoder.
    """
    if cfg.part is Part.encoder:
        raise UsageError(
            f"to={cfg.to} holds only a backbone; set part=backbone, or to=onnx or to=safetensors"
        )
    name = loaded.config.model.encoder
    if cfg.to in (Target.timm, Target.huggingface) and name.startswith(TIMM_PREFIX):
        return name.removeprefix(TIMM_PREFIX)
    advice = "use to=safetensors or to=onnx"
    if name not in RESNETS:
        raise UsageError(f"to={cfg.to} takes only ResNets, got model.encoder={name}; {advice}")
    with torch.device("meta"):
        expected = getattr(torchvision.models, name)().state_dict()
    theirs = {key: tuple(t.shape) for key, t in expected.items() if not key.startswith("fc.")}
    ours = {key: tuple(t.shape) for key, t in loaded.encoder.backbone.state_dict().items()}
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            raise UsageError(
                f"to={cfg.to} cannot hold this encoder ({loaded.architecture}): {key} is "
                f"{ours.get(key, 'absent')}, but {theirs.get(key, 'absent')} in {name}; {advice}"
            )
    return name


def timm_options(loaded: LoadedEncoder) -> dict[str, int]:
    """Options of `timm.create_model`: the image size, if the model has learned positions."""
    learned = f"{TIMM_MODULE}pos_embed" in loaded.encoder.backbone.state_dict()
    return {"img_size": loaded.config.pipeline.view_size} if learned else {}


def backbone_state(loaded: LoadedEncoder) -> dict[str, Tensor]:
    """The backbone's tensors under the library's names, contiguous on the CPU."""
    state = loaded.encoder.backbone.state_dict()
    return {
        name.removeprefix(TIMM_MODULE): tensor.cpu().contiguous().clone()
        for name, tensor in state.items()
    }


def torch_bytes(record: Any) -> bytes:
    """Output of `torch.save`; made in memory, as a full disk must raise OSError."""
    buffer = io.BytesIO()
    torch.save(record, buffer)
    return buffer.getvalue()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        OSError: If it cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
