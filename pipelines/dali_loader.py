"""DALI decodes JPEGs, of a .beton file, a folder or tar shards: on a GPU if there is one.

Trade-off: decoding leaves the host, which only reads and proves the bytes; in return the pixels are
DALI's. On the CPU crops differ from Pillow's by 0.3 levels in the mean. On a GPU nvJPEG decodes,
whose hardware unit has been seen to overwrite live memory (pytorch/vision #9606): compare its
pixels with another loader's before trusting a new GPU or driver. Order, boxes and keys are ours;
labels and ids travel beside DALI, not through it. One decode serves all views of an image.

One bad image stops a whole DALI batch, which is then decoded on the CPU to find out which it was.
DALI does not notice a JPEG whose second half is wiped: only the checksum does, which files that
FFCV wrote lack (beton_loader notices).
Closing waits for the batches that DALI has begun (`dali_pipeline` says why), but 5 seconds at most.

Left out: files that hold both JPEGs and raw pixels (beton_loader reads them).
"""

import os
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Self

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from fastmoco.data.beton_format import MODE_RAW
from fastmoco.data.dataset import Dataset
from fastmoco.pipelines.background import Background, proved_blob, stop_all
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec
from fastmoco.pipelines.crops import BatchRequest, batch_requests
from fastmoco.pipelines.dali_pipeline import (
    Decoded,
    Read,
    Settings,
    free_pipelines,
    give_back,
    take,
)
from fastmoco.pipelines.transfer import Handover

HW_DECODER_LOAD = 0.65
"""Share of a batch that the GPU's JPEG unit decodes, where it has one; DALI's own default."""
SWEEP = (0.2, 0.35, 0.5, 0.65, 0.7)
"""Shares that are tried; 0.9 gains 2% and more than doubles the longest wait."""
TIMEOUT_SECONDS = 120.0
ADVICE = "DALI hangs or the disk is very slow; set pipeline.name=beton, which decodes on the CPU"


def _read(dataset: Dataset, requests: Iterator[BatchRequest], *, raw: bool) -> Generator[Read]:
    """The stored images of each batch, proved."""
    for request in requests:
        images = [proved_blob(dataset, i) for i in request.sample_id.tolist()]
        if raw:
            heights = dataset.heights[request.sample_id].tolist()
            rows = zip(images, heights, strict=True)
            images = [image.reshape(height, -1, 3) for image, height in rows]
        yield request, images


def _decode(dataset: Dataset, settings: Settings, feed: Background[Read]) -> Generator[Decoded]:
    """The crops of each batch. A pipeline that failed is dropped: DALI calls it no longer valid."""
    pipeline = take(settings)
    try:
        yield from pipeline.run(feed)  # closes it, too
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
    """DALI's error as that of the image that the CPU cannot decode either, if there is one."""
    for request in batches:
        for sample_id in request.sample_id.tolist():
            try:
                dataset.decode(sample_id)
            except Exception as cause:
                return cause
    sample_ids = batches[0].sample_id.tolist() if batches else []
    return RuntimeError(
        f"DALI failed on samples {sample_ids}, which the CPU decodes; set pipeline.name=beton. "
        f"DALI says: {error}"
    )


class DaliLoader:
    """Batches decoded by DALI, ahead of their use; see `contract.ViewLoader`.

    Attributes:
        decode_device: ``cpu``, or ``gpu`` and what share of the images its JPEG unit decodes; of
            raw pixels, where they are cropped.
    """

    def __init__(
        self,
        dataset: Dataset,
        requests: Iterator[BatchRequest],
        settings: Settings,
        device: torch.device,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Start reading and decoding."""
        self.decode_device = "cpu" if settings.device_id is None else "gpu"
        if self.decode_device == "gpu" and not settings.raw:
            self.decode_device += f" (hw_decoder_load {settings.hw_decoder_load:g})"
        self._timeout_seconds = timeout_seconds
        count, views, size = settings.max_batch_size, settings.num_views, settings.view_size
        self._handover = Handover(count, views, size, device)
        self._empty = torch.empty((0, views, size, size, 3), dtype=torch.uint8)
        reads = Background(
            _read(dataset, requests, raw=settings.raw), name="fastmoco-loader-reader", ahead=1
        )
        self._decodes = Background(
            _decode(dataset, settings, reads), name="fastmoco-loader-dali", ahead=1, advice=ADVICE
        )
        # Runs once: at `close`, when the loader is collected, or before the interpreter ends.
        self._finalizer = weakref.finalize(self, stop_all, [self._decodes, reads])

    def __iter__(self) -> Self:
        """Return self: a loader is consumed once."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch; the one before loses its validity."""
        self._handover.wait()
        start = time.perf_counter()
        try:
            request, decoded = self._decodes.get(self._timeout_seconds)
        except Exception:
            self.close()
            raise
        # DALI has finished the crops: its `run` waits for the device.
        crops = self._empty if decoded is None else from_dlpack(decoded.as_tensor())
        return self._handover.batch(request, crops, time.perf_counter() - start)

    def close(self) -> None:
        """Stop the threads, leave the pipeline to the next loader."""
        self._finalizer()


def build(
    dataset: Dataset,
    plan: EpochPlan,
    spec: LoaderSpec,
    stop_epoch: int,
    device: torch.device,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> DaliLoader:
    """The loader of `build_loader`'s arguments.

    Raises:
        ValueError: If the file holds both JPEGs and raw pixels.
    """
    settings = _settings(dataset, plan, spec, device)
    requests = batch_requests(dataset, plan, spec, stop_epoch)
    return DaliLoader(dataset, requests, settings, device, timeout_seconds=timeout_seconds)


def _settings(
    dataset: Dataset, plan: EpochPlan, spec: LoaderSpec, device: torch.device
) -> Settings:
    num_raw = int(np.count_nonzero(dataset.modes == MODE_RAW))
    if 0 < num_raw < len(dataset):
        raise ValueError(
            f"{dataset.path}: {num_raw} of its {len(dataset)} images are raw pixels, the others "
            "JPEGs, which pipeline.name=dali does not read together; set pipeline.name=beton"
        )
    device_id = None
    if device.type == "cuda":
        device_id = torch.cuda.current_device() if device.index is None else device.index
    load = spec.hw_decoder_load
    if load is None and (device_id is None or num_raw):
        load = HW_DECODER_LOAD  # nothing is decoded by such a unit
    if load is None:
        load = _fastest_load(dataset, plan, spec, device)
    return Settings(
        max_batch_size=-(-min(plan.num_samples, plan.global_batch_size) // plan.world_size),
        num_views=spec.num_views,
        view_size=spec.view_size,
        raw=num_raw > 0,
        device_id=device_id,
        num_threads=spec.num_threads or len(os.sched_getaffinity(0)),
        prefetch_batches=spec.prefetch_batches,
        hw_decoder_load=load,
    )


_fastest_loads: dict[torch.device, float] = {}


def _fastest_load(
    dataset: Dataset, plan: EpochPlan, spec: LoaderSpec, device: torch.device
) -> float:
    """The best of a sweep, which is made once in a process and for a device."""
    if device not in _fastest_loads:
        rates = sweep_hw_decoder_load(dataset, plan, spec, device)
        _fastest_loads[device] = max(rates, key=rates.__getitem__)
    return _fastest_loads[device]


def sweep_hw_decoder_load(
    dataset: Dataset,
    plan: EpochPlan,
    spec: LoaderSpec,
    device: torch.device,
    *,
    num_batches: int = 10,
) -> dict[float, float]:
    """Images per second for each share of `SWEEP`.

    It builds and frees a pipeline for each share.

    Args:
        dataset: As of `build`; likewise the others.
        plan: Its first batches are loaded, the first of them to warm up.
        spec: Of the loader.
        device: A GPU.
        num_batches: How many to measure.
    """
    rates = {}
    for load in SWEEP:
        with closing(
            build(dataset, plan, replace(spec, hw_decoder_load=load), plan.epoch + 1000, device)
        ) as loader:
            next(loader)
            images, start = 0, time.perf_counter()
            for batch in islice(loader, num_batches):
                if batch.crops.is_cuda:
                    torch.cuda.synchronize()
                images += len(batch.crops)
            rates[load] = images / (time.perf_counter() - start)
        free_pipelines()
    return rates
