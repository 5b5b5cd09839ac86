"""Choice of the loader for `pipeline.name=auto`, and the reason for it.

Small sets are kept decoded. For others, a GPU may or may not decode faster than the CPU: it depends
on both, on the size of the images and on the disk. So both loaders are tried for a moment.
"""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch

from fastmoco.data.beton_format import MODE_JPEG
from fastmoco.data.dataset import Dataset
from fastmoco.errors import UsageError
from fastmoco.pipelines.contract import Batch, ViewLoader
from fastmoco.pipelines.resident_loader import free_bytes, resident_bytes

SMALL_SIDE = 160
"""Longest side in pixels of images that are kept decoded."""
RESIDENT_SHARE = 0.25
"""Largest fraction of the free memory that a set may take when auto chooses."""
TRIAL_SECONDS = 1.5


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
        open_loader: Opens a loader by name for a trial, which closes it.
    """
    needed, free = resident_bytes(dataset), free_bytes(device)
    if max(dataset.heights.max(), dataset.widths.max()) <= SMALL_SIDE:
        if needed <= RESIDENT_SHARE * free:
            return Choice("resident", f"{needed / 1e6:,.1f} MB fit on {device}")
        return Choice("beton", f"{needed / 1e9:,.1f} GB decoded are too much for {device}")
    if device.type == "cpu":
        return Choice("beton", "images are large and the device is the CPU")
    if not np.all(dataset.modes == MODE_JPEG):
        return Choice("beton", "not all images are JPEGs")
    if not is_installed("nvidia.dali"):
        return Choice("beton", "DALI is not installed, so the CPU decodes")
    rates = {name: _try(open_loader, name) for name in ("dali", "beton")}
    best = "dali" if rates["dali"] > rates["beton"] else "beton"
    if best != "dali" and rates["dali"]:
        from fastmoco.pipelines.dali_pipeline import free_pipelines

        free_pipelines()  # a closed loader keeps its pipeline, and so device memory, for the next
    tried = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    return Choice(best, f"tried, images/s: {tried}")


def is_installed(module: str) -> bool:
    """Whether a module can be found; its parent package may be missing."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _try(open_loader: Callable[[str], ViewLoader], name: str) -> float:
    """Images per second of a loader after its first batch; 0 where it cannot run here."""
    try:
        with closing(open_loader(name)) as loader:
            next(loader)
            return images_per_second(loader, TRIAL_SECONDS)
    except (ImportError, UsageError, RuntimeError, StopIteration, TimeoutError):
        return 0.0


def images_per_second(batches: Iterable[Batch], max_seconds: float = math.inf) -> float:
    """Measure the rate of some batches, and stop after the first that ends past the limit."""
    images, start = 0, time.perf_counter()
    for batch in batches:
        if batch.crops.is_cuda:
            torch.cuda.synchronize()
        images += len(batch.crops)
        if time.perf_counter() - start > max_seconds:
            break
    return images / (time.perf_counter() - start)
