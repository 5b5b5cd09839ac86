"""Loader that keeps a decoded set as uint8 on the device, and gathers and crops batches there.

Trade-off: the set must fit in the device's memory, decoded and at the size of its largest image; in
return a batch costs the host only the launch of some kernels (`device_crops`), and none where the
training step cuts the crops itself, within its graph. The host draws the boxes of an epoch at once,
one epoch ahead, on a thread of its own. If the device is the CPU, the threads of `beton_loader` cut
the crops, with the same bits as from the file.

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

from fastmoco import memory
from fastmoco.data.dataset import Dataset
from fastmoco.errors import UsageError
from fastmoco.pipelines.background import for_each
from fastmoco.pipelines.beton_loader import build_threads
from fastmoco.pipelines.buffers import batch_rows, request_facts
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec, ViewLoader
from fastmoco.pipelines.crops import BatchRequest, epoch_request
from fastmoco.pipelines.device_crops import crop_and_resize
from fastmoco.pipelines.reads import Reads

MEMORY_SHARE = 0.5
"""Largest fraction of the free memory that the set may take: training needs the rest."""


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
        spec: LoaderSpec,
    ) -> None:
        """Draw the first epoch.

        Args:
            resident: The set, on the device.
            requests: For each epoch, the plan and all of its batches at once.
            spec: Size of the crops, and whether the step cuts them.
        """
        self._set: ResidentSet | None = resident
        self._images = resident.images
        self._requests = requests
        self._spec = spec
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
        size = self._spec.view_size
        if self._spec.cut_in_step:
            batch.images = self._images
            batch.crops = self._images.new_empty((*batch.boxes.shape[:2], size, size, 0))
        else:
            batch.crops = crop_and_resize(self._images[batch.sample_id], batch.boxes, size)
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
    return ResidentLoader(resident, requests, spec)
