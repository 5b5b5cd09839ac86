"""The whole set as uint8 on the device: batches are gathered and cropped there, nothing is decoded.

Trade-off: the set must fit in the device's memory, decoded and at the size of its largest image; in
return a batch costs the host nothing but the launch of a dozen kernels. The host draws the boxes of
a whole epoch at once, one epoch ahead, on a thread of its own. Where the device is the CPU, the
threads of `beton_loader` cut the crops, with the same bits as from the file.

On a device crops are resized as PIL does it: an antialiased triangle filter, first along one axis,
then along the other, rounded to 8 bits in between. Each axis is a batched matrix product. Its
weights are multiples of 1/2048, so that products and sums are integers that float32 (also by way of
TF32) holds exactly: the same bits for any batch size, and within one level of PIL.

Left out: images of many sizes are padded to the largest; a set with a few large ones is better
served by `beton_loader`.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastmoco.data.dataset import Dataset
from fastmoco.pipelines.beton_loader import build_threads
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec, ViewLoader
from fastmoco.pipelines.crops import BatchRequest, epoch_request

WEIGHT_UNIT = 2048
"""Resize weights are integers over this: 11 bits, which TF32 keeps; pixels are 8 bits, sums 19."""
MEMORY_SHARE = 0.5
"""How much of the free memory the set may take: the rest is the training's."""
_DECODE_CHUNK = 256


def crop_and_resize(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut boxes out of images and resize them, antialiased bilinear, within one level of PIL.

    Args:
        images: ``(N, H, W, 3)`` uint8.
        boxes: ``(N, V, 4)`` int32: top, left, height, width in pixels, inside the image.
        size: Side of the square results, pixels.

    Returns:
        ``(N, V, size, size, 3)`` uint8, contiguous.
    """
    count, height, width = images.shape[:3]
    views = boxes.shape[1]
    top, left, box_height, box_width = boxes.unbind(2)
    rows = _weights(top, box_height, size, height).view(count, views * size, height)
    columns = _weights(left, box_width, size, width).view(count * views, size, width)
    flat = images.to(torch.float32).view(count, height, width * 3)
    tall = _rounded(rows @ flat).view(count * views, size, width, 3)
    across = tall.transpose(1, 2).reshape(count * views, width, size * 3)
    crops = _rounded(columns @ across).view(count, views, size, size, 3).to(torch.uint8)
    return crops.transpose(2, 3).contiguous()


def _rounded(sums: Tensor) -> Tensor:
    """Weighted sums to whole levels, still float32."""
    return sums.div_(WEIGHT_UNIT).add_(0.5).floor_()


def _weights(start: Tensor, length: Tensor, size: int, extent: int) -> Tensor:
    """What each output pixel takes of each input pixel along one axis, in units of 1/2048.

    PIL's ``precompute_coeffs`` for a triangle: it is as wide as the output pixel where that covers
    more than one input pixel, and never leaves the box.

    Args:
        start: ``(N, V)`` first input pixel of the box.
        length: ``(N, V)`` input pixels in the box.
        size: Output pixels.
        extent: Input pixels of the whole axis.

    Returns:
        ``(N, V, size, extent)`` float32 of whole numbers; each row sums to 2048.
    """
    start, length = start[:, :, None, None], length[:, :, None, None]
    scale = length / size
    outputs = torch.arange(size, device=start.device)[:, None]
    inputs = torch.arange(extent, device=start.device)[None, :] - start
    distance = (inputs + 0.5 - (outputs + 0.5) * scale).abs()
    weights = (1 - distance / scale.clamp(min=1)).clamp(min=0)
    weights = torch.where((inputs >= 0) & (inputs < length), weights, 0.0)
    weights = (weights * (WEIGHT_UNIT / weights.sum(-1, keepdim=True))).round_()
    largest = weights.argmax(-1, keepdim=True)
    return weights.scatter_add_(-1, largest, WEIGHT_UNIT - weights.sum(-1, keepdim=True))


class ResidentLoader:
    """Batches cut from a set that lies on the device; see `contract.ViewLoader`."""

    decode_device = "cpu"

    def __init__(
        self, images: Tensor, requests: Iterator[tuple[EpochPlan, BatchRequest]], view_size: int
    ) -> None:
        """Draw the first epoch.

        Args:
            images: The set, ``(S, H, W, 3)`` uint8, on the device.
            requests: Of each epoch, the plan and all of its batches at once.
            view_size: Side of the crops, pixels.
        """
        self._images = images
        self._requests = requests
        self._view_size = view_size
        self._drawer = ThreadPoolExecutor(1, "fastmoco-loader")
        self._ahead: Future[tuple[EpochPlan, Batch] | None] | None = self._drawer.submit(self._draw)
        self._batches: Iterator[Batch] = iter(())

    def __iter__(self) -> Self:
        """Return self: a loader is consumed once."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch."""
        start = time.perf_counter()
        batch = next(self._batches, None)
        while batch is None and self._ahead is not None:
            epoch = self._ahead.result()
            if epoch is None:
                break
            self._ahead = self._drawer.submit(self._draw)
            self._batches = _sliced(*epoch)
            batch = next(self._batches, None)
        if batch is None:
            self.close()
            raise StopIteration
        images = self._images[batch.sample_id]
        batch.crops = crop_and_resize(images, batch.boxes, self._view_size)
        batch.data_wait_seconds = time.perf_counter() - start
        return batch

    def close(self) -> None:
        """Forget the set and end the thread."""
        self._ahead = None
        self._batches = iter(())
        self._images = self._images[:0]
        self._drawer.shutdown(cancel_futures=True)

    def _draw(self) -> tuple[EpochPlan, Batch] | None:
        """All that is known of the next epoch's batches, on the device."""
        drawn = next(self._requests, None)
        if drawn is None:
            return None
        plan, request = drawn
        device = self._images.device
        facts = {
            name: torch.from_numpy(getattr(request, name)).to(device)
            for name in ("boxes", "sample_id", "draw_key", "label")
        }
        return plan, Batch(crops=self._images[:0], data_wait_seconds=0.0, **facts)


def _sliced(plan: EpochPlan, epoch: Batch) -> Iterator[Batch]:
    """The batches of an epoch, without their crops."""
    start = 0
    for count in plan.batch_sizes():
        stop = start + count
        yield Batch(
            crops=epoch.crops,
            boxes=epoch.boxes[start:stop],
            sample_id=epoch.sample_id[start:stop],
            draw_key=epoch.draw_key[start:stop],
            label=epoch.label[start:stop],
            data_wait_seconds=0.0,
        )
        start = stop


def resident_bytes(dataset: Dataset) -> int:
    """Memory that a set takes, decoded and padded to its largest image."""
    return len(dataset) * int(dataset.heights.max()) * int(dataset.widths.max()) * 3


def free_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["MemAvailable"].split()[0]) * 1024


@dataclass(frozen=True, slots=True)
class DecodedSet:
    """A set in the host's memory, for `beton_loader.fill_row`.

    Attributes:
        images: ``(S, H, W, 3)``; smaller images lie in the upper left corner.
        dataset: Where they come from.
    """

    images: npt.NDArray[np.uint8]
    dataset: Dataset

    def decode(self, sample_id: int) -> npt.NDArray[np.uint8]:
        """The pixels of an image and what pads it; boxes lie inside the image."""
        pixels: npt.NDArray[np.uint8] = self.images[sample_id]
        return pixels

    def name(self, sample_id: int) -> str:
        """As of the dataset."""
        return self.dataset.name(sample_id)


def _decode_set(dataset: Dataset, num_threads: int) -> npt.NDArray[np.uint8]:
    """``(S, H, W, 3)`` on the host; smaller images lie in the upper left corner."""
    height, width = int(dataset.heights.max()), int(dataset.widths.max())
    images = np.zeros((len(dataset), height, width, 3), np.uint8)

    def fill(start: int) -> None:
        for sample in range(start, min(start + _DECODE_CHUNK, len(dataset))):
            pixels = dataset.decode(sample)
            images[sample, : pixels.shape[0], : pixels.shape[1]] = pixels

    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(fill, range(0, len(dataset), _DECODE_CHUNK)):
            pass
    return images


def build(
    dataset: Dataset, plan: EpochPlan, spec: LoaderSpec, stop_epoch: int, device: torch.device
) -> ViewLoader:
    """The loader of `build_loader`'s arguments.

    Raises:
        ValueError: If the set does not fit on the device.
        BetonError: If an image is damaged.
    """
    needed, free = resident_bytes(dataset), free_bytes(device)
    if needed > MEMORY_SHARE * free:
        raise ValueError(
            f"pipeline.name=resident would keep {needed / 1e9:,.1f} GB on {device}, more than half "
            f"of the {free / 1e9:,.1f} GB that are free; set pipeline.name=beton"
        )
    images = _decode_set(dataset, spec.num_threads or len(os.sched_getaffinity(0)))
    if device.type == "cpu":
        source = DecodedSet(images, dataset)
        return build_threads(source, dataset, plan, spec, stop_epoch, device)
    return build_on_device(images, dataset, plan, spec, stop_epoch, device)


def build_on_device(
    images: npt.NDArray[np.uint8],
    dataset: Dataset,
    plan: EpochPlan,
    spec: LoaderSpec,
    stop_epoch: int,
    device: torch.device,
) -> ResidentLoader:
    """The loader that crops on the device, of a decoded set ``(S, H, W, 3)``."""
    requests = _epochs(dataset, plan, spec, stop_epoch)
    return ResidentLoader(torch.from_numpy(images).to(device), requests, spec.view_size)


def _epochs(
    dataset: Dataset, plan: EpochPlan, spec: LoaderSpec, stop_epoch: int
) -> Iterator[tuple[EpochPlan, BatchRequest]]:
    while plan.epoch < stop_epoch:
        yield plan, epoch_request(dataset, plan, spec)
        plan = plan.next_epoch()
