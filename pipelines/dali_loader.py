"""Loader that decodes JPEGs by DALI, from a .beton file, a folder or tar shards; on a GPU if any.

Trade-off: the host only reads and verifies the bytes and does not decode; in return the pixels are
DALI's. On the CPU crops differ from Pillow's by 0.3 levels in the mean. On a GPU nvJPEG decodes,
whose hardware unit has been seen to overwrite live memory (pytorch/vision #9606): compare its
pixels with another loader's before trusting a new GPU or driver. Order, boxes and keys are ours;
labels and ids bypass DALI. One decode serves all views of an image.

One bad image stops a DALI batch; the batch is then decoded on the CPU to find that image. DALI does
not detect a JPEG whose second half is wiped. Only the checksum does, which files written by FFCV
lack (beton_loader detects it). Closing waits for the batches that DALI has begun (`dali_pipeline`
says why), but 5 seconds at most.

Left out: files that hold both JPEGs and raw pixels (beton_loader reads them).
"""

import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from fastmoco.data.beton_format import MODE_RAW
from fastmoco.data.dataset import Dataset
from fastmoco.errors import UsageError
from fastmoco.pipelines.background import Background, proved_blob, stop_all
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec, ViewLoader
from fastmoco.pipelines.crops import BatchRequest, batch_requests
from fastmoco.pipelines.dali_pipeline import (
    Decoded,
    Read,
    Settings,
    give_back,
    take,
)
from fastmoco.pipelines.reads import LIMIT_SECONDS, Reads
from fastmoco.pipelines.transfer import CropTransfer

HW_DECODER_LOAD = 0.65
"""Fraction of a batch that the GPU's JPEG unit decodes, where it has one; DALI's own default.
0.9 gains 2% and more than doubles the longest wait (NVIDIA's figures)."""
ADVICE = "DALI hangs or the disk is very slow; set pipeline.name=beton, which decodes on the CPU"


def _read(
    dataset: Dataset, requests: Iterator[BatchRequest], reads: Reads, *, raw: bool
) -> Generator[Read]:
    """Read and verify the stored images of each batch."""
    for request in requests:
        images = [proved_blob(dataset, i, reads) for i in request.sample_id.tolist()]
        if raw:
            heights = dataset.heights[request.sample_id].tolist()
            rows = zip(images, heights, strict=True)
            images = [image.reshape(height, -1, 3) for image, height in rows]
        yield request, images


def _decode(dataset: Dataset, settings: Settings, feed: Background[Read]) -> Generator[Decoded]:
    """Decode each batch to crops; drop a pipeline that failed, because it is no longer valid."""
    pipeline = take(settings)
    try:
        yield from pipeline.run(feed)  # also closes that generator
    except GeneratorExit:
        pass
    except RuntimeError as error:
        raise _explained(dataset, pipeline.fed, error) from error
    feed.stop()
    feed_error = pipeline.drain()
    give_back(pipeline)
    if feed_error is not None:
        raise feed_error


def _explained(dataset: Dataset, batches: deque[BatchRequest], error: Exception) -> Exception:
    """Return the error of an image that the CPU cannot decode either, or else DALI's own."""
    for request in batches:
        for sample_id in request.sample_id.tolist():
            try:
                dataset.decode(sample_id)
            except Exception as cause:
                return cause
    sample_ids = batches[0].sample_id.tolist() if batches else []
    return RuntimeError(
        f"DALI cannot decode samples {sample_ids}, but the CPU can; set pipeline.name=beton. "
        f"DALI's error: {error}"
    )


class DaliLoader(ViewLoader):
    """Loader whose batches are decoded ahead by DALI.

    Attributes:
        decode_device: ``cpu``, or ``gpu`` and the fraction of images that its JPEG unit decodes;
            for raw pixels, the device that crops them.
    """

    def __init__(
        self,
        dataset: Dataset,
        requests: Iterator[BatchRequest],
        settings: Settings,
        device: torch.device,
        *,
        timeout_seconds: float,
    ) -> None:
        """Start reading and decoding."""
        self.decode_device = "cpu" if settings.device_id is None else "gpu"
        if self.decode_device == "gpu" and not settings.raw:
            self.decode_device += f" (hw_decoder_load {settings.hw_decoder_load:g})"
        self._reads = Reads(dataset, limit_seconds=timeout_seconds, advice=ADVICE)
        count, views, size = settings.max_batch_size, settings.num_views, settings.view_size
        self._transfer = CropTransfer(count, views, size, device)
        self._empty = torch.empty((0, views, size, size, 3), dtype=torch.uint8)
        images = _read(dataset, requests, self._reads, raw=settings.raw)
        feed = Background(images, name="fastmoco-loader-reader", ahead=1)
        self._decodes = Background(
            _decode(dataset, settings, feed), name="fastmoco-loader-dali", ahead=1
        )
        # Runs once: at `close`, when the loader is collected, or before the interpreter ends.
        self._finalizer = weakref.finalize(self, stop_all, [self._decodes, feed])

    def __next__(self) -> Batch:
        self._transfer.wait()
        start = time.perf_counter()
        try:
            request, decoded = self._decodes.get(self._reads)
        except Exception:
            self.close()
            raise
        # The crops are finished: DALI's `run` waits for the device.
        crops = self._empty if decoded is None else from_dlpack(decoded.as_tensor())
        return self._transfer.batch(request, crops, time.perf_counter() - start)

    def close(self) -> None:
        """Stop the threads, and keep the pipeline for the next loader."""
        self._finalizer()


def build(
    dataset: Dataset,
    plan: EpochPlan,
    spec: LoaderSpec,
    stop_epoch: int,
    device: torch.device,
    *,
    timeout_seconds: float = LIMIT_SECONDS,
) -> DaliLoader:
    """Build the loader; the arguments are those of `build_loader`.

    Raises:
        UsageError: If the file holds both JPEGs and raw pixels.
    """
    settings = _settings(dataset, plan, spec, device)
    requests = batch_requests(dataset, plan, spec, stop_epoch)
    return DaliLoader(dataset, requests, settings, device, timeout_seconds=timeout_seconds)


def _settings(
    dataset: Dataset, plan: EpochPlan, spec: LoaderSpec, device: torch.device
) -> Settings:
    num_raw = int(np.count_nonzero(dataset.modes == MODE_RAW))
    if 0 < num_raw < len(dataset):
        raise UsageError(
            f"pipeline.name=dali reads only JPEGs or only raw pixels, but {num_raw} of the "
            f"{len(dataset)} images of {dataset.path} are raw pixels; set pipeline.name=beton"
        )
    device_id = None
    if device.type == "cuda":
        device_id = torch.cuda.current_device() if device.index is None else device.index
    load = spec.hw_decoder_load
    return Settings(
        max_batch_size=plan.max_count,
        num_views=spec.num_views,
        view_size=spec.view_size,
        raw=num_raw > 0,
        device_id=device_id,
        num_threads=spec.threads,
        prefetch_batches=spec.prefetch_batches,
        hw_decoder_load=HW_DECODER_LOAD if load is None else load,
    )
