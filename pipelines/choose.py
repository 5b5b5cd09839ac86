"""Which loader `pipeline.name=auto` takes, and why.

Small sets are kept decoded. Else a GPU may decode faster than the CPU, or not: it depends on both,
on the size of the images and on the disk, so both loaders are tried for a moment.
"""

import time
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch

from fastmoco.data.beton_format import MODE_JPEG
from fastmoco.data.dataset import Dataset
from fastmoco.pipelines.contract import ViewLoader
from fastmoco.pipelines.resident_loader import free_bytes, resident_bytes

SMALL_SIDE = 160
"""Longest side in pixels of images that are kept decoded."""
RESIDENT_SHARE = 0.25
"""How much of the free memory a set may take where nobody asked for it."""
TRIAL_SECONDS = 1.5


class Choice(NamedTuple):
    """A loader and the reason for it, in a few words."""

    name: str
    reason: str


def choose_loader(
    dataset: Dataset, device: torch.device, open_loader: Callable[[str], ViewLoader]
) -> Choice:
    """Choose for a set and a device.

    Args:
        dataset: What is read.
        device: Where batches are handed out.
        open_loader: Opens a loader by name, for a trial; it is closed again.
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
    if find_spec("nvidia.dali") is None:
        return Choice("beton", "DALI is not installed, so the CPU decodes")
    rates = {name: _try(open_loader, name) for name in ("dali", "beton")}
    best = "dali" if rates["dali"] > rates["beton"] else "beton"
    if best != "dali" and rates["dali"]:
        from fastmoco.pipelines.dali_pipeline import free_pipelines

        free_pipelines()  # one that is closed is kept for the next, and its device memory with it
    tried = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    return Choice(best, f"tried, images/s: {tried}")


def _try(open_loader: Callable[[str], ViewLoader], name: str) -> float:
    """Images per second of a loader, its first batch left out; 0 where it cannot run here."""
    try:
        with closing(open_loader(name)) as loader:
            next(loader)
            images, start = 0, time.perf_counter()
            for batch in loader:
                if batch.crops.is_cuda:
                    torch.cuda.synchronize()
                images += len(batch.crops)
                if time.perf_counter() - start > TRIAL_SECONDS:
                    break
            return images / (time.perf_counter() - start)
    except (ImportError, RuntimeError, StopIteration, TimeoutError):
        return 0.0
