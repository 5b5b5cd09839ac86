"""Read the tensors of a foreign weights file without running code from it.

A safetensors file holds no code. A PyTorch file is a pickle: a child process with limits reads it
(`fastmoco.torch_files`).
"""

import json
import shlex
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fastmoco.errors import UsageError
from fastmoco.runs.encoder_file import METADATA_KEY
from fastmoco.torch_files.child import RefusedFileError, converted


class ForeignWeights(NamedTuple):
    """Tensors of a file of another project."""

    tensors: dict[str, Tensor]
    """Under the file's names."""
    container: str = ""
    """Keys of the file that lead to them, such as ``teacher``; "" unless there was a choice."""


PYTORCH_STARTS = (b"PK\x03\x04", b"\x80")
"""First bytes of what `torch.save` writes: a zip archive, before torch 1.6 a pickle."""


def read_weights(path: Path) -> ForeignWeights:
    """The model's tensors of a .safetensors, .pth, .pt, .tar, .ckpt or .bin file, on the CPU.

    Raises:
        UsageError: If the file is damaged, holds no weights, or tries to run code.
        FileNotFoundError: If it is missing.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a weights file (.pth, .safetensors)")
    if not path.is_file():
        raise UsageError(f"{path} is not a file; give a weights file (.pth, .safetensors)")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        if not file.read(4).startswith(PYTORCH_STARTS):
            raise UsageError(
                f"{path} is not a weights file of PyTorch; give a .pth, .pt, .tar, .ckpt, .bin or "
                ".safetensors file"
            )
    try:
        with converted(path, "weights") as folder:
            return _read_safetensors(folder / "weights.safetensors")
    except RefusedFileError as error:
        raise UsageError(f"{path}: {error}{_advice(path, str(error))}") from error


def _read_safetensors(path: Path) -> ForeignWeights:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if METADATA_KEY in metadata:
            raise UsageError(f"{path} was exported by fastmoco; use it as RUN without importing it")
        return ForeignWeights(load_file(path), metadata.get("container", ""))
    except SafetensorError as error:
        raise UsageError(f"{path} is damaged or is not a safetensors file ({error})") from error


def _advice(path: Path, reason: str) -> str:
    """What to do with a refused file; code that loads it only if it names no foreign code."""
    loads = {
        "refused: it is a TorchScript": 'torch.jit.load({}, map_location="cpu").state_dict()',
        "refused: its format": 'torch.load({}, map_location="cpu", weights_only=False)',
    }
    for start, load in loads.items():
        if reason.startswith(start):
            loaded = load.format(json.dumps(str(path)))
            code = shlex.quote(f'import torch; torch.save({loaded}, "weights.pth")')
            return f"; if you trust it, run python -c {code} and import weights.pth"
    if reason.startswith("refused: unpickling"):
        return "; do not load it by other means, but ask for its weights as safetensors"
    return ""
