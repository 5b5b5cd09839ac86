"""fastmoco's side of the benchmarks, as child processes call it; imports are not timed.

torch is among them, which `convert` imports where it shrinks images: FFCV's import brings it, too.
"""

import time
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch  # noqa: F401

from benchmarks.memory import own_peak_bytes, reset_own_peak
from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import Check, ConvertConfig, Encoding, Statistics, convert

_ENUMS: dict[str, type[StrEnum]] = {
    "check": Check,
    "encoding": Encoding,
    "statistics": Statistics,
}


def convert_folder(source: str, destination: str, options: dict[str, Any]) -> dict[str, float]:
    """Converts a folder on all CPUs, until the file is on the disk.

    Args:
        source: Class folders of images.
        destination: The file to make.
        options: Of ConvertConfig; enumerations by their value.

    Returns:
        ``seconds`` and the file's ``num_bytes``.
    """
    enums = {name: kind(options[name]) for name, kind in _ENUMS.items() if name in options}
    cfg = ConvertConfig(**options | enums)
    start = time.perf_counter()
    summary = convert(source, Path(destination), cfg)  # ends with fsync of the file and its folder
    seconds = time.perf_counter() - start
    assert not summary.num_quarantined, "images of a benchmark are good"
    return {"seconds": seconds, "num_bytes": summary.num_bytes}


def open_file(path: str) -> dict[str, float]:
    """Opens a file; gives ``seconds`` and by how much that raised the resident peak."""
    before = reset_own_peak()
    start = time.perf_counter()
    beton = BetonFile.open(path)
    seconds = time.perf_counter() - start
    growth = own_peak_bytes() - before
    with beton:
        return {"seconds": seconds, "growth_bytes": growth, "count": len(beton)}
