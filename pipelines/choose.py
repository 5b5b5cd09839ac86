"""Choice of the loader for `pipeline.name=auto`, by a rule, and the reason for it.

Nothing is timed: the same command must compute the same on the same machine, and decoders differ in
their last bits. Small sets are kept decoded. Of others the CPU decodes, unless a GPU has so few
cores that it would wait; then DALI decodes on the GPU, where `fastmoco doctor` found its pixels
right. Left out: the model. A large one waits for data less than the rule says.
"""

import os
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch

from fastmoco.data.beton_format import MODE_JPEG
from fastmoco.data.dataset import Dataset
from fastmoco.errors import first_line
from fastmoco.kept_checks import DALI_PIXELS, recall
from fastmoco.pipelines.contract import ViewLoader
from fastmoco.pipelines.resident_loader import MEMORY_SHARE, free_bytes, resident_bytes
from fastmoco.ranks import local_ranks

SMALL_SIDE = 160
"""Longest side in pixels of images that are kept decoded."""
RESIDENT_SHARE = 0.25
"""Largest fraction of a GPU's memory, or of the free memory of a CPU, that a set may take."""
CORE_PIXELS_PER_SECOND = 130e6
"""Pixels of JPEGs that a core decodes and cuts into two crops of 224 pixels: 1,400 images/s of 500
x 375 and 2,100/s of 400 x 300 on 2 cores of an AMD EPYC, n = 1."""
GPU_IMAGES_PER_SECOND = 6_000
"""What a fast GPU learns from: ResNet-50 at 224 pixels in 16 bits on an H200 (computed from the
7,944 images/s of supervised training in MLPerf)."""


class Choice(NamedTuple):
    """Name of a loader, and the reason for it in a few words."""

    name: str
    reason: str


def choose_loader(
    dataset: Dataset, device: torch.device, open_loader: Callable[[str], ViewLoader]
) -> Choice:
    """Choose for a set and a device.

    Args:
        dataset: Images to load.
        device: Device of the batches.
        open_loader: Opens a loader by name; DALI's must give a batch before it is chosen.
    """
    if max(dataset.heights.max(), dataset.widths.max()) <= SMALL_SIDE:
        return choose_for_small(dataset, device)
    if device.type == "cpu":
        return Choice("beton", "images are large and the device is the CPU")
    if not np.all(dataset.modes == MODE_JPEG):
        return Choice("beton", "not all images are JPEGs")
    cores = max(1, len(os.sched_getaffinity(0)) // local_ranks().world_size)
    pixels = float((dataset.heights.astype(np.float64) * dataset.widths).mean())
    rate = cores * CORE_PIXELS_PER_SECOND / pixels
    words = f"{cores} cores a GPU decode about {rate:,.0f} images/s"
    if rate >= GPU_IMAGES_PER_SECOND:
        return Choice("beton", words)
    if reason := _obstacle_of_dali(device) or fault_of_dali(open_loader):
        return Choice("beton", f"{words}; {reason}")
    return Choice("dali", f"{words}, and DALI's pixels are checked")


def choose_for_small(dataset: Dataset, device: torch.device) -> Choice:
    """Choose for a set of small images, by the memory that it takes when decoded."""
    needed, free = resident_bytes(dataset), free_bytes(device)
    memory = free
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    if needed > RESIDENT_SHARE * memory:
        return Choice("beton", f"{needed / 1e9:,.1f} GB decoded are too much for {device}")
    if needed > MEMORY_SHARE * free:
        return Choice("beton", f"of {device} only {free / 1e9:,.1f} GB are free")
    return Choice("resident", f"{needed / 1e6:,.1f} MB fit on {device}")


def _obstacle_of_dali(device: torch.device) -> str:
    """The reason why DALI is not considered on a device; "" if its pixels were found right."""
    if not is_installed("nvidia.dali"):
        return "DALI is not installed"
    fault = recall(DALI_PIXELS, device)
    if fault is None:
        return "DALI's pixels are not checked here yet, fastmoco doctor does it"
    return f"DALI was found wrong here ({fault}), fastmoco doctor checks again" if fault else ""


def fault_of_dali(open_loader: Callable[[str], ViewLoader]) -> str:
    """The reason why DALI gives no batch; "" if it does. Its pipeline is kept for the run."""
    try:
        with closing(open_loader("dali")) as loader:
            next(loader)
    except Exception as error:  # DALI of another version, a driver, or an image
        return f"DALI cannot be used here ({first_line(error)})"
    return ""


def is_installed(module: str) -> bool:
    """Whether a module can be found; its parent package may be missing."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
