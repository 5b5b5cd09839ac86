"""An encoder in one safetensors file, whose metadata describe how to build and feed it.

Tensors are named ``backbone.*`` and ``head.*``. The metadata entry ``fastmoco`` is JSON: format
version, step, the facts of a checkpoint, the SHA-256 of the tensors, and a checksum of all of it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastmoco.files import atomic_path
from fastmoco.runs.finite import first_not_finite
from fastmoco.runs.record import parse_record, record_text, sealed
from fastmoco.runs.tensor_file import read_tensors, write_tensors

FORMAT_VERSION = 2
"""Version 1 had no checksum of the metadata; it is still read."""
TYPES = {"format_version": int, "step": int, "sha256": str, "facts": dict}
METADATA_KEY = "fastmoco"


class EncoderFileError(ValueError):
    """A file is damaged or is not an encoder exported by fastmoco."""


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of names, dtypes, shapes and values, independent of their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_encoder_file(
    path: Path, tensors: Mapping[str, Tensor], *, step: int, facts: dict[str, Any]
) -> None:
    """Write an encoder atomically.

    Args:
        path: File to write; an existing one is replaced.
        tensors: ``backbone.*`` and ``head.*``.
        step: Number of training steps.
        facts: JSON values: ``config``, ``channel_mean``, ``channel_std``, ``has_head`` and more.

    Raises:
        OSError: If the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    record = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "sha256": tensors_digest(plain),
        "facts": facts,
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        write_tensors(file, plain, {METADATA_KEY: record_text(sealed(record))})


def is_encoder_file(path: Path) -> bool:
    """Whether a file was written by `write_encoder_file`, by its header alone."""
    try:
        with safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_encoder_file(path: Path) -> tuple[dict[str, Tensor], int, dict[str, Any]]:
    """Read what `write_encoder_file` wrote.

    Returns:
        Tensors on the CPU, step, facts.

    Raises:
        EncoderFileError: If the file is damaged or was not written by fastmoco.
    """
    try:
        tensors, metadata = read_tensors(path)
    except ValueError as error:
        raise EncoderFileError(f"{error}; export it again") from error
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise EncoderFileError(
            f"{path} was not exported by fastmoco; import it first: "
            f"fastmoco import {path} out=FOLDER"
        )
    try:
        record = parse_record(text, TYPES, first_sealed=2)
    except ValueError as error:
        raise EncoderFileError(f"{path} has damaged metadata ({error}); export it again") from error
    version, digest = record["format_version"], record["sha256"]
    if version > FORMAT_VERSION:
        raise EncoderFileError(
            f"{path} has format version {version}, not {FORMAT_VERSION}; "
            "use the fastmoco that wrote it"
        )
    if tensors_digest(tensors) != digest:
        raise EncoderFileError(f"{path} is damaged (wrong checksum); export it again")
    if bad := first_not_finite(tensors):
        raise EncoderFileError(f"{path}: {bad} has values that are not finite; export another run")
    return tensors, record["step"], record["facts"]
