"""Loader that keeps a decoded set as uint8 on the device, and gathers and crops batches there.

Trade-off: the set must fit in the device's memory, decoded and at the size of its largest image; in
return a batch costs the host only the launch of a dozen kernels. The host draws the boxes of an
epoch at once, one epoch ahead, on a thread of its own. If the device is the CPU, the threads of
`beton_loader` cut the crops, with the same bits as from the file.

On a device crops are resized as PIL does it: an antialiased triangle filter, first along one axis,
then along the other, rounded to 8 bits in between. Each axis is a batched matrix product. Its
weights are multiples of 1/2048, so that products and sums are integers that float32 (also TF32)
holds exactly: the same bits for any batch size, and within one level of PIL.

A decoded set is shared by all open loaders of the same data on the same device: the kNN monitor
reads the images that training keeps.

Left out: images of different sizes are padded to the largest; for a set with a few large images
`beton_loader` is better.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastmoco import memory
from fastmoco.data.dataset import Dataset
from fastmoco.errors import UsageError
from fastmoco.pipelines.background import for_each
from fastmoco.pipelines.beton_loader import build_threads
from fastmoco.pipelines.buffers import batch_rows, request_facts
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec, ViewLoader
from fastmoco.pipelines.crops import BatchRequest, epoch_request
from fastmoco.pipelines.reads import Reads

WEIGHT_UNIT = 2048
"""Resize weights are integers over this: 11 bits, which TF32 keeps; pixels are 8 bits, sums 19."""
MEMORY_SHARE = 0.5
"""Largest fraction of the free memory that the set may take: training needs the rest."""


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
    """Round weighted sums to integer levels, in place, still float32."""
    return sums.div_(WEIGHT_UNIT).add_(0.5).floor_()


def _weights(start: Tensor, length: Tensor, size: int, extent: int) -> Tensor:
    """Compute the weight of each input pixel in each output pixel along one axis, times 2048.

    PIL's ``precompute_coeffs`` for a triangle: it is as wide as the output pixel where that covers
    more than one input pixel, and never leaves the box.

    Args:
        start: First input pixel of the box, ``(N, V)``.
        length: Input pixels in the box, ``(N, V)``.
        size: Output pixels.
        extent: Input pixels of the full axis.

    Returns:
        ``(N, V, size, extent)`` float32, integers; each row sums to 2048.
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


class ResidentSet:
    """A decoded set on a device; it is freed with its last loader.

    Attributes:
        images: ``(S, H, W, 3)`` uint8.
    """

    def __init__(self, images: npt.NDArray[np.uint8], device: torch.device) -> None:
        """Copy decoded images to a device; a CPU uses them where they are."""
        self.images = torch.from_numpy(images).to(device)
        self._pixels = images if device.type == "cpu" else None

    def decode(self, sample_id: int) -> npt.NDArray[np.uint8]:
        """The pixels of an image, with its padding, ``(H, W, 3)``; on a CPU only."""
        assert self._pixels is not None
        image: npt.NDArray[np.uint8] = self._pixels[sample_id]
        return image


_open_sets: WeakValueDictionary[tuple[str, str, torch.device], ResidentSet] = WeakValueDictionary()


class ResidentLoader(ViewLoader):
    """Loader that cuts batches from a set on the device."""

    decode_device = "cpu"

    def __init__(
        self,
        resident: ResidentSet,
        requests: Iterator[tuple[EpochPlan, BatchRequest]],
        view_size: int,
    ) -> None:
        """Draw the first epoch.

        Args:
            resident: The set, on the device.
            requests: For each epoch, the plan and all of its batches at once.
            view_size: Side of the crops, pixels.
        """
        self._set: ResidentSet | None = resident
        self._images = resident.images
        self._requests = requests
        self._view_size = view_size
        self._drawer = ThreadPoolExecutor(1, "fastmoco-loader")
        self._ahead: Future[tuple[EpochPlan, Batch] | None] | None = self._drawer.submit(self._draw)
        self._batches: Iterator[Batch] = iter(())

    def __next__(self) -> Batch:
        waited = 0.0  # the crops are work of the device, and nothing waits for them
        batch = next(self._batches, None)
        while batch is None and self._ahead is not None:
            start = time.perf_counter()
            epoch = self._ahead.result()
            waited += time.perf_counter() - start
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
        batch.data_wait_seconds = waited
        return batch

    def close(self) -> None:
        """Release the set and end the thread."""
        self._ahead = None
        self._batches = iter(())
        self._set, self._images = None, self._images.new_empty(0, *self._images.shape[1:])
        self._drawer.shutdown(cancel_futures=True)

    def _draw(self) -> tuple[EpochPlan, Batch] | None:
        """Draw the next epoch's batches, without crops, as one batch on the device."""
        drawn = next(self._requests, None)
        if drawn is None:
            return None
        plan, request = drawn
        facts = request_facts(request, self._images.device)
        return plan, Batch(crops=self._images[:0], data_wait_seconds=0.0, **facts)


def _sliced(plan: EpochPlan, epoch: Batch) -> Iterator[Batch]:
    """Yield the batches of an epoch, without their crops."""
    start = 0
    for count in plan.batch_sizes():
        yield batch_rows(epoch, slice(start, start + count))
        start += count


def resident_bytes(dataset: Dataset) -> int:
    """Compute the memory of a set, decoded and padded to its largest image."""
    return len(dataset) * int(dataset.heights.max()) * int(dataset.widths.max()) * 3


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory.free_bytes()


def _decode_set(dataset: Dataset, num_threads: int) -> npt.NDArray[np.uint8]:
    """Decode to ``(S, H, W, 3)`` on the host; smaller images are in the upper left corner."""
    height, width = int(dataset.heights.max()), int(dataset.widths.max())
    images = np.zeros((len(dataset), height, width, 3), np.uint8)

    def fill(sample: int) -> None:
        pixels = dataset.decode(sample)
        images[sample, : pixels.shape[0], : pixels.shape[1]] = pixels

    for_each(fill, len(dataset), num_threads, Reads(dataset))
    return images


def resident_set(dataset: Dataset, num_threads: int, device: torch.device) -> ResidentSet:
    """Return the decoded set on a device: the one that is open already, or a new one.

    Raises:
        UsageError: If the set does not fit on the device.
        BetonError: If an image is damaged.
    """
    device = torch.empty(0, device=device).device  # with its index
    key = (str(dataset.path), dataset.fingerprint, device)
    found = _open_sets.get(key)
    if found is None:
        needed, free = resident_bytes(dataset), free_bytes(device)
        if needed > MEMORY_SHARE * free:
            raise UsageError(
                f"pipeline.name=resident needs {needed / 1e9:,.1f} GB on {device}, more than half "
                f"of the {free / 1e9:,.1f} GB that are free; set pipeline.name=beton"
            )
        found = _open_sets[key] = ResidentSet(_decode_set(dataset, num_threads), device)
    return found


def build(
    dataset: Dataset, plan: EpochPlan, spec: LoaderSpec, stop_epoch: int, device: torch.device
) -> ViewLoader:
    """Build the loader; the arguments are those of `build_loader`, the errors of `resident_set`."""
    resident = resident_set(dataset, spec.threads, device)
    if device.type == "cpu":
        # Images come with their padding, but boxes are inside the image.
        return build_threads(resident.decode, dataset, plan, spec, stop_epoch, device)
    return build_on_device(resident, dataset, plan, spec, stop_epoch)


def build_on_device(
    resident: ResidentSet, dataset: Dataset, plan: EpochPlan, spec: LoaderSpec, stop_epoch: int
) -> ResidentLoader:
    """Build the loader that crops on the device of a decoded set."""
    requests = ((epoch, epoch_request(dataset, epoch, spec)) for epoch in plan.epochs(stop_epoch))
    return ResidentLoader(resident, requests, spec.view_size)
