"""The default loader: one decode per image, both crops cut from it, on a pool of threads.

Trade-off: a full decode serves two views, so no view can use a cheaper, DCT-scaled decode of its
own. Crops of up to 64 pixels are resized by loops that Numba compiles (`resize`), larger ones by
torch's antialiased bilinear kernel for uint8 channels_last images, straight into the batch: it is
vectorized and runs on the calling thread alone, without the GIL (torch 2.15, 2 cores, 300 x 280 to
224 x 224: 0.12 ms; by `torch.nn.functional.interpolate` and a copy, which allocate, 0.36 ms).

Left out: decoding on a GPU (dali_loader), small sets kept on the device (resident_loader).
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastmoco.data.dataset import Dataset
from fastmoco.pipelines.buffers import CudaUploader, batch_rows, empty_batch
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec, ViewLoader
from fastmoco.pipelines.crops import BatchRequest, batch_requests
from fastmoco.pipelines.prefetch import Prefetcher, Slot
from fastmoco.pipelines.reads import Reads
from fastmoco.pipelines.resize import crop_and_resize_views
from fastmoco.pipelines.small_rows import SmallRows

# The kernel of `torch.nn.functional.interpolate`, which has no argument `out`.
_resize: Any = torch._C._nn._upsample_bilinear2d_aa
NUMBA_SIZE = 64
"""Views up to this many pixels are faster by Numba; measured in `resize`."""

Decode = Callable[[int], npt.NDArray[np.uint8]]
"""Function from a sample id to the pixels of its image, ``(H, W, 3)``."""


def crop_and_resize(
    image: npt.NDArray[np.uint8], boxes: npt.NDArray[np.int32], out: npt.NDArray[np.uint8]
) -> None:
    """Cut boxes out of an image and resize each, antialiased bilinear, within 1 level of PIL.

    Args:
        image: ``(H, W, 3)``, contiguous.
        boxes: ``(V, 4)``: top, left, height, width in pixels, inside the image.
        out: ``(V, size, size, 3)``, contiguous; overwritten.
    """
    if out.shape[1] <= NUMBA_SIZE:
        crop_and_resize_views(image, boxes, out)
        return
    for (top, left, height, width), view in zip(boxes.tolist(), out, strict=True):
        # Without the copy the kernel takes 3 to 60 times as long on rows of a wider image.
        crop = torch.from_numpy(image[None, top : top + height, left : left + width].copy())
        target = torch.from_numpy(view[None]).permute(0, 3, 1, 2)
        source = crop.permute(0, 3, 1, 2)
        if source.shape == target.shape:
            target.copy_(source)
        else:
            _resize(source, target.shape[2:], False, None, None, out=target)


def _fill_row(dataset: Dataset, decode: Decode, slot: Slot, row: int) -> None:
    """Make all views of one image from one decode."""
    sample_id = slot.sample_ids[row]
    try:
        crop_and_resize(decode(sample_id), slot.boxes[row], slot.pixels[row])
    except Exception as error:
        error.add_note(f"while loading {dataset.name(sample_id)}")
        raise


class BetonLoader(ViewLoader):
    """Loader whose batches are made ahead by threads."""

    decode_device = "cpu"

    def __init__(
        self, prefetcher: Prefetcher, num_threads: int, uploader: CudaUploader | None
    ) -> None:
        """Start the threads."""
        self._prefetcher = prefetcher
        self._uploader = uploader
        self._handed_out: Slot | None = None
        threads = [
            threading.Thread(target=prefetcher.work, name=f"fastmoco-loader-{i}", daemon=True)
            for i in range(num_threads)
        ]
        # Runs once: at `close`, when the loader is collected, or before the interpreter ends.
        self._finalizer = weakref.finalize(self, prefetcher.stop, threads)
        for thread in threads:
            thread.start()

    def __next__(self) -> Batch:
        if self._uploader is not None:
            self._uploader.wait()
        start = time.perf_counter()
        slot, self._handed_out = self._handed_out, None
        if slot is not None:
            self._prefetcher.release(slot)
        try:
            slot = self._prefetcher.next_batch()
        except Exception:
            self.close()
            raise
        if slot is None:
            self.close()
            raise StopIteration
        self._handed_out = slot
        rows = slice(len(slot.sample_ids))
        batch = batch_rows(slot.host, rows, time.perf_counter() - start)
        return batch if self._uploader is None else self._uploader.upload(batch)

    def close(self) -> None:
        """Stop the threads, free the buffers."""
        self._handed_out = None
        self._finalizer()


def build(
    dataset: Dataset, plan: EpochPlan, spec: LoaderSpec, stop_epoch: int, device: torch.device
) -> BetonLoader:
    """Build the loader; the arguments are those of `build_loader`."""
    small_rows = SmallRows.of(dataset) if spec.view_size <= NUMBA_SIZE else None
    return build_threads(dataset.decode, dataset, plan, spec, stop_epoch, device, small_rows)


def build_threads(
    decode: Decode,
    dataset: Dataset,
    plan: EpochPlan,
    spec: LoaderSpec,
    stop_epoch: int,
    device: torch.device,
    small_rows: SmallRows | None = None,
) -> BetonLoader:
    """Build the loader of a dataset whose pixels come from ``decode``, or from ``small_rows``."""
    requests = batch_requests(dataset, plan, spec, stop_epoch)
    return build_for_requests(decode, dataset, requests, plan.max_count, spec, device, small_rows)


def build_for_requests(
    decode: Decode,
    dataset: Dataset,
    requests: Iterator[BatchRequest],
    max_count: int,
    spec: LoaderSpec,
    device: torch.device,
    small_rows: SmallRows | None = None,
) -> BetonLoader:
    """Build the loader of given batches of at most ``max_count`` images."""
    on_cuda = device.type == "cuda"
    slots = [
        Slot(empty_batch(max_count, spec.num_views, spec.view_size, pinned=on_cuda))
        for _ in range(spec.prefetch_batches + 1)
    ]
    uploader = CudaUploader(slots[0].host, device) if on_cuda else None
    fill_row = partial(_fill_row, dataset, decode)
    prefetcher = Prefetcher(fill_row, requests, slots, Reads(dataset), small_rows)
    return BetonLoader(prefetcher, spec.threads, uploader)
