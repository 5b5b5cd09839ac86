"""FFCV's own loader over the same file, with one operation of ours: one decode, all crops.

FFCV decodes on the CPU; to decode its files on a GPU use pipeline.name=dali.

Trade-off: FFCV's runtime is compiled (some seconds at the first loader of a process) and fast, but
trusts its input and hangs when it fails. So every stored image is verified before FFCV decodes it:
its checksum, its header, and that FFCV's memory map holds the same bytes. That costs one thread
beside the decoders 75 to 140 us for 155 KB (`background`; the comparison takes 21 of them). Order,
boxes and slots are ours: FFCV asks for them before each batch, and decodes straight into a slot.
Crops come from its fast inverse DCT and area filter: 2.2 levels from Pillow's in the mean, where
the other loaders stay below 0.3.

Left out: shards (one file only). An epoch begins after the last batch of the previous one is
decoded, which leaves cores idle for a moment. Truncating a file while it is read still ends the
process by SIGBUS, because FFCV memory-maps it.
"""

import queue
import time
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import Any

import numpy as np
import torch

from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.data.dataset import Dataset
from fastmoco.errors import UsageError
from fastmoco.pipelines.background import Background, proved_blob, stop_all
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec, ViewLoader
from fastmoco.pipelines.crops import BatchRequest, batch_requests
from fastmoco.pipelines.ffcv_runtime import Filled, Memory, Slots, open_loader, stored_index
from fastmoco.pipelines.reads import LIMIT_SECONDS, Reads
from fastmoco.pipelines.transfer import CropTransfer

POLL_SECONDS = 0.1
"""Interval between checks that FFCV's thread is alive."""
ADVICE = "FFCV hangs or the disk is very slow; set pipeline.name=beton, which reads the same file"


def _proved(
    dataset: BetonFile, requests: Iterator[BatchRequest], ffcv: Any, reads: Reads
) -> Generator[BatchRequest]:
    """Yield each request after verifying its images and FFCV's memory map of them."""
    pointers = stored_index(ffcv)["data_ptr"]
    mapped = np.memmap(ffcv.fname, np.uint8, "r")
    for request in requests:
        for sample_id in request.sample_id.tolist():
            blob = proved_blob(dataset, sample_id, reads)
            start = int(pointers[sample_id])
            if mapped[start : start + len(blob)].tobytes() != blob.tobytes():
                raise BetonError(
                    f"{dataset.path}: sample {sample_id} ({dataset.name(sample_id)}): FFCV reads "
                    "bytes that differ from the file's; open the file again if it was replaced"
                )
        yield request


def _decoded_batches(loader: Any, memory: Memory, num_epochs: int) -> Generator[Filled]:
    """Yield all batches; FFCV's own iterator would wait forever for a thread that died.

    Raises:
        RuntimeError: If FFCV's thread ends early without an error.
        Exception: The error that came before a batch.
    """
    for _ in range(num_epochs):
        epoch = iter(loader)
        epoch.name = "fastmoco-loader-ffcv-epoch"
        try:
            for _ in range(-(-len(epoch.order) // loader.batch_size)):
                if not _decoded_one(epoch):
                    raise memory.error or RuntimeError("FFCV's thread ended early")
                while memory.started[0].slot is None:
                    yield memory.started.popleft()
                yield memory.started.popleft()
        except BaseException:
            memory.stop()
            raise
        finally:
            _end(epoch)
    yield from memory.rest()


def _decoded_one(epoch: Any) -> bool:
    """Wait until FFCV has decoded one more batch; False if its thread ends first."""
    while True:
        alive = epoch.is_alive()
        try:
            return epoch.output_queue.get(timeout=POLL_SECONDS) is not None
        except queue.Empty:
            if not alive:
                return False


def _end(epoch: Any) -> None:
    """End FFCV's thread, which may wait for room in a queue that is no longer read."""
    epoch.close()
    while epoch.is_alive():
        with suppress(queue.Empty):
            epoch.output_queue.get(timeout=POLL_SECONDS)


def _decoded(dataset: BetonFile, batches: Generator[Filled], memory: Memory) -> Generator[Filled]:
    """Yield each batch after checking that FFCV decoded all of its images.

    Raises:
        BetonError: If it refused an image; names the image.
    """
    with closing(batches):  # at once, even while an error's traceback keeps a reference
        for filled in batches:
            for sample_id in memory.undecoded(filled):
                dataset.decode(sample_id)  # if it fails, too, its error says more
                raise BetonError(
                    f"{dataset.path}: sample {sample_id} ({dataset.name(sample_id)}): FFCV cannot "
                    "decode it; set pipeline.name=beton"
                )
            yield filled


def _stop(slots: Slots, stages: list[Background[Any]]) -> None:
    """End all threads; one of FFCV's may wait for a slot."""
    slots.free.put(None)
    stop_all(stages)


class FfcvLoader(ViewLoader):
    """Loader whose batches are decoded ahead by FFCV."""

    decode_device = "cpu"

    def __init__(
        self,
        slots: Slots,
        batches: Background[Filled],
        feed: Background[BatchRequest],
        reads: Reads,
        device: torch.device,
    ) -> None:
        self._slots = slots
        self._batches, self._reads = batches, reads
        self._handed_out: int | None = None
        count, views, size = slots.crops.shape[1:4]
        self._transfer = CropTransfer(count, views, size, device)
        # Runs once: at `close`, when the loader is collected, or before the interpreter ends.
        self._finalizer = weakref.finalize(self, _stop, slots, [batches, feed])

    def __next__(self) -> Batch:
        self._transfer.wait()
        start = time.perf_counter()
        if self._handed_out is not None:
            self._slots.free.put(self._handed_out)
            self._handed_out = None
        try:
            request, slot = self._batches.get(self._reads)
        except Exception:
            self.close()
            raise
        self._handed_out = slot
        crops = self._slots.crops[slot or 0, : len(request.sample_id)]
        return self._transfer.batch(request, crops, time.perf_counter() - start)

    def close(self) -> None:
        """Stop the threads."""
        self._finalizer()


def build(
    dataset: Dataset,
    plan: EpochPlan,
    spec: LoaderSpec,
    stop_epoch: int,
    device: torch.device,
    *,
    timeout_seconds: float = LIMIT_SECONDS,
) -> FfcvLoader:
    """Build the loader; the arguments are those of `build_loader`.

    Raises:
        UsageError: If the dataset is not one file.
    """
    if not isinstance(dataset, BetonFile):
        raise UsageError(
            f"pipeline.name=ffcv reads only one .beton file, but {dataset.path} is not one; "
            "convert it or set pipeline.name=beton"
        )
    size, count = spec.view_size, plan.max_count
    shape = (spec.prefetch_batches + 1, count, spec.num_views, size, size, 3)
    slots = Slots(torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda"))
    ffcv = open_loader(dataset, plan, count, spec.threads)
    requests = batch_requests(dataset, plan, spec, stop_epoch)
    reads = Reads(dataset, limit_seconds=timeout_seconds, advice=ADVICE)
    proved = _proved(dataset, requests, ffcv, reads)
    feed = Background(proved, name="fastmoco-loader-reader", ahead=1)
    max_image_bytes = 3 * int((dataset.heights.astype(np.int64) * dataset.widths).max())
    memory = Memory(ffcv, slots, feed, max_image_bytes)
    batches = _decoded_batches(ffcv, memory, stop_epoch - plan.epoch)
    decoded = _decoded(dataset, batches, memory)
    checked = Background(decoded, name="fastmoco-loader-ffcv", ahead=1)
    return FfcvLoader(slots, checked, feed, reads, device)
