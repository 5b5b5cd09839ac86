"""The backbone under detectron2's names, in a file that it takes as ``MODEL.WEIGHTS``.

detectron2 reads a .pth file by `torch.load`: a dict of plain tensors suffices, so nothing is
pickled but them. (Its .pkl files of NumPy arrays, which the official MoCo conversion writes, need a
pickle of whatever NumPy version wrote them.)
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastmoco.errors import UsageError
from fastmoco.interop.loaded_encoder import Subject, refuse_head
from fastmoco.interop.settings import ExportConfig
from fastmoco.interop.state_dicts import backbone_state, library_model, torch_bytes, write_bytes

# DEPTH and what else detectron2's configuration needs to build each backbone.
_ARCHITECTURES = {
    "resnet18": (18, ["MODEL.RESNETS.RES2_OUT_CHANNELS 64"]),
    "resnet34": (34, ["MODEL.RESNETS.RES2_OUT_CHANNELS 64"]),
    "resnet50": (50, []),
    "resnet101": (101, []),
    "resnet152": (152, []),
    "resnext50_32x4d": (50, ["MODEL.RESNETS.NUM_GROUPS 32", "MODEL.RESNETS.WIDTH_PER_GROUP 4"]),
    "resnext101_32x8d": (101, ["MODEL.RESNETS.NUM_GROUPS 32", "MODEL.RESNETS.WIDTH_PER_GROUP 8"]),
    "wide_resnet50_2": (50, ["MODEL.RESNETS.WIDTH_PER_GROUP 128"]),
    "wide_resnet101_2": (101, ["MODEL.RESNETS.WIDTH_PER_GROUP 128"]),
}


def write_detectron2(out: Path, subject: Subject, cfg: ExportConfig) -> str:
    """Write what detectron2's ``DetectionCheckpointer`` loads.

    Returns:
        The settings that go with the weights, a ``KEY VALUE`` a line.

    Raises:
        UsageError: If detectron2 has no such backbone, or the file's ending is another.
    """
    refuse_head(cfg.part, "detectron2")
    name = library_model(subject, "detectron2")
    if out.suffix != ".pth":
        raise UsageError(f"out={out} must end in .pth: detectron2 reads other endings otherwise")
    record = {
        "model": detectron2_state(backbone_state(subject)),
        "__author__": "fastmoco",
        "matching_heuristics": True,  # it finds `backbone.bottom_up.` and the like by itself
    }
    write_bytes(out, torch_bytes(record))
    return _settings(out, subject, name)


def detectron2_name(name: str) -> str:
    """detectron2's name of a tensor of torchvision's ResNet.

    Stages count from ``res2``, the first layers are the ``stem``, a batch norm is the ``norm`` of
    its convolution, and the shortcut is one module.
    """
    *path, leaf = name.split(".")
    place = ["stem"]
    if path[0].startswith("layer"):
        place, path = [f"res{int(path[0].removeprefix('layer')) + 1}", path[1]], path[2:]
    if path[0] == "downsample":
        path = ["shortcut"] if path[1] == "0" else ["shortcut", "norm"]
    elif path[0].startswith("bn"):
        path = [f"conv{path[0].removeprefix('bn')}", "norm"]
    return ".".join([*place, *path, leaf])


def detectron2_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet's tensors under detectron2's names; its frozen batch norm has no counter."""
    return {
        detectron2_name(name): tensor
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def _settings(out: Path, subject: Subject, name: str) -> str:
    """RGB in 0..255, and the stride in the 3 x 3 convolution, unlike detectron2's defaults."""
    depth, extras = _ARCHITECTURES[name]
    mean, std = (
        [round(255 * value, 3) for value in buffer.tolist()]
        for buffer in (subject.encoder.mean, subject.encoder.std)
    )
    lines = [
        f"MODEL.WEIGHTS {out}",
        f"MODEL.RESNETS.DEPTH {depth}",
        *extras,
        "MODEL.RESNETS.STRIDE_IN_1X1 False",
        "INPUT.FORMAT RGB",
        f"MODEL.PIXEL_MEAN {mean}",
        f"MODEL.PIXEL_STD {std}",
    ]
    return "\n".join(lines)
