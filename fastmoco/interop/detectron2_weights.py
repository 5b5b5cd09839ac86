"""The backbone under detectron2's names, in a file for its ``MODEL.WEIGHTS``.

detectron2 reads a .pth file by `torch.load`, for which a dict of plain tensors suffices. (The
official MoCo conversion writes a .pkl file of NumPy arrays, whose pickle depends on the NumPy
version that wrote it.)
"""

from pathlib import Path

from fastmoco.errors import UsageError
from fastmoco.interop.loaded_encoder import LoadedEncoder
from fastmoco.interop.settings import ExportConfig
from fastmoco.interop.state_dicts import backbone_state, library_model, torch_bytes, write_bytes

# DEPTH, and the other settings that detectron2 needs to build each backbone.
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


def write_detectron2(out: Path, loaded: LoadedEncoder, cfg: ExportConfig) -> str:
    """Write a file for detectron2's ``DetectionCheckpointer``.

    Returns:
        The detectron2 settings for these weights, one ``KEY VALUE`` per line.

    Raises:
        UsageError: If detectron2 has no such backbone, or the file's ending is another.
    """
    name = library_model(loaded, cfg)
    if out.suffix != ".pth":
        raise UsageError(f"out={out} must end in .pth; detectron2 reads other endings differently")
    state = {
        detectron2_name(name): tensor
        for name, tensor in backbone_state(loaded).items()
        if not name.endswith("num_batches_tracked")  # detectron2's frozen batch norm has no counter
    }
    record = {
        "model": state,
        "__author__": "fastmoco",
        "matching_heuristics": True,  # detectron2 adds prefixes such as `backbone.bottom_up.`
    }
    write_bytes(out, torch_bytes(record))
    return _settings(out, loaded, name)


def detectron2_name(name: str) -> str:
    """detectron2's name of a tensor of torchvision's ResNet.

    Stages count from ``res2``, the first layers are the ``stem``, a batch norm is the ``norm`` of
    its convolution, and the shortcut is one module.
    """
    *path, leaf = name.split(".")
    parent = ["stem"]
    if path[0].startswith("layer"):
        parent, path = [f"res{int(path[0].removeprefix('layer')) + 1}", path[1]], path[2:]
    if path[0] == "downsample":
        path = ["shortcut"] if path[1] == "0" else ["shortcut", "norm"]
    elif path[0].startswith("bn"):
        path = [f"conv{path[0].removeprefix('bn')}", "norm"]
    return ".".join([*parent, *path, leaf])


def _settings(out: Path, loaded: LoadedEncoder, name: str) -> str:
    """Settings for RGB in 0..255 and strides in the 3 x 3 convolutions, unlike the defaults."""
    depth, extras = _ARCHITECTURES[name]
    mean, std = (
        [round(255 * value, 3) for value in buffer.tolist()]
        for buffer in (loaded.encoder.mean, loaded.encoder.std)
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
