"""A safetensors file, written with its SHA-256 in one pass.

The library writes a file under a random name of its own, which a kill leaves behind, and its bytes
must be read again for a digest. Here each byte is written once, into a file that the caller opened.
Every file is read back by the library.
"""

import hashlib
import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastmoco.files import regular_file

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the format."""


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> str:
    """Write tensors in the safetensors format.

    The format: the header's length in 8 bytes, a JSON header with dtype, shape and place of each
    tensor, then all values without gaps.

    Args:
        file: Open for writing, empty.
        tensors: On the CPU, contiguous.
        metadata: Text under ``__metadata__`` in the header.

    Returns:
        Hex SHA-256 of all bytes of the file.

    Raises:
        OSError: If they cannot be written.
    """
    # Larger elements first, so that each tensor begins at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    values = (_bytes_of(tensors[name]) for name in names)
    head = memoryview(len(text).to_bytes(8, "little") + text)
    for part in chain([head], values):
        digest.update(part)
        file.write(part)
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    flat: NDArray[np.uint8] = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return flat.data


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file by the library: the tensors, on the CPU, and the metadata.

    Raises:
        ValueError: If it is not such a file.
        OSError: If it cannot be read.
    """
    try:
        with safe_open(regular_file(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or is not a safetensors file ({error})") from error
