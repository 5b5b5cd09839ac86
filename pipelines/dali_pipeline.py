"""DALI's graph, and the pipelines of it that this process has built.

Trade-off: building pipelines repeatedly has leaked memory (DALI #4076; with DALI 2.4 on the CPU,
15 KB each). So the pipeline of a closed loader is drained and kept for the next loader with the
same settings; `free_pipelines` frees it. Two open loaders never share one.

Left out: DALI's own readers, shuffling and checkpoints; an external source asks for our batches.
"""

import threading
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmoco.errors import UsageError, first_line
from fastmoco.pipelines.background import Background
from fastmoco.pipelines.crops import BatchRequest

try:
    _dali: Any = import_module("nvidia.dali")  # Any: its types come and go with the package
    fn: Any = import_module("nvidia.dali.fn")
except ImportError as error:
    message = f"pipeline.name=dali needs DALI ({error}); pip install nvidia-dali-cuda130"
    raise ImportError(message) from error

Read = tuple[BatchRequest, list[npt.NDArray[np.uint8]]]
"""A batch and its stored images: JPEGs, or pixels ``(H, W, 3)``."""
Decoded = tuple[BatchRequest, Any]
"""A batch and DALI's TensorList of its crops; None if it has no samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Settings of a DALI pipeline, which serves all loaders with equal ones."""

    max_batch_size: int
    num_views: int
    view_size: int
    raw: bool
    device_id: int | None
    """None: CPU."""
    num_threads: int
    prefetch_batches: int
    hw_decoder_load: float


class DaliPipeline:
    """A DALI pipeline that decodes the batches of one loader after the other."""

    def __init__(self, settings: Settings) -> None:
        """Build the pipeline.

        Raises:
            UsageError: If this DALI cannot.
        """
        self.settings = settings
        self.fed: deque[BatchRequest] = deque()  # batches that DALI has not returned yet
        self._feed: Background[Read] | None = None
        self._feed_error: Exception | None = None
        try:
            self._pipe: Any = self._build()
        except Exception as error:  # another version of DALI lacks or renames operations
            raise UsageError(
                f"pipeline.name=dali: DALI {_dali.__version__} cannot build the pipeline "
                f"({first_line(error)}); pip install --upgrade nvidia-dali-cuda130, or set "
                "pipeline.name=beton"
            ) from error

    def _build(self) -> Any:
        settings = self.settings
        pipe = _dali.Pipeline(
            batch_size=settings.max_batch_size,
            num_threads=settings.num_threads,
            device_id=settings.device_id,
            prefetch_queue_depth=settings.prefetch_batches,
        )
        with pipe:
            inputs = fn.external_source(
                source=self._next_inputs, num_outputs=1 + 2 * settings.num_views, batch=True
            )
            pipe.set_outputs(_views(settings, *inputs))
        pipe.build()
        return pipe

    def run(self, feed: Background[Read]) -> Generator[Decoded]:
        """Decode batches in their order, until the feed ends or fails.

        Raises:
            RuntimeError: If DALI fails on the first batch of `fed`; the pipeline is then broken.
        """
        self._feed = feed
        while True:
            try:
                (crops,) = self._pipe.run()
            except StopIteration:
                break
            yield self.fed.popleft(), crops
        while self.fed:  # batches without samples, which occur only at the end
            yield self.fed.popleft(), None

    def drain(self) -> Exception | None:
        """Drop the batches that it was fed, ready for others; the feed must be stopped.

        Returns:
            The feed's error, if any.
        """
        try:
            while True:
                self._pipe.run()
        except StopIteration:
            self._pipe.reset()
        self.fed.clear()
        error, self._feed, self._feed_error = self._feed_error, None, None
        return error

    def free(self) -> None:
        """Free DALI's memory now: it refers back to here, and the collector may come late."""
        self._pipe = None

    def _next_inputs(self) -> list[Any]:
        """Return to DALI the stored images, then both corners of each view's boxes."""
        assert self._feed is not None
        try:
            images: list[npt.NDArray[np.uint8]] = []
            while not images:
                request, images = self._feed.get()
                self.fed.append(request)
        except Exception as error:  # raised later: DALI must first return its batches
            self._feed_error = None if isinstance(error, StopIteration) else error
            raise StopIteration from error
        boxes = request.boxes.astype(np.float32).transpose(1, 0, 2)
        corners = [c for box in boxes for c in (box[:, :2], box[:, :2] + box[:, 2:])]
        return [images, *map(np.ascontiguousarray, corners)]


def _views(settings: Settings, encoded: Any, *corners: Any) -> Any:
    """Build the graph: one decode, each box resized; uint8 ``(V, H, W, 3)`` per image."""
    on_gpu = settings.device_id is not None
    if settings.raw:
        images = encoded.gpu() if on_gpu else encoded
    else:
        images = fn.decoders.image(
            encoded,
            device="mixed" if on_gpu else "cpu",
            output_type=_dali.types.RGB,
            adjust_orientation=False,  # `convert` has turned them; a remaining EXIF tag is wrong
            jpeg_fancy_upsampling=True,  # as in libjpeg, so that GPU pixels equal the CPU's
            hw_decoder_load=settings.hw_decoder_load,
        )
    views = [
        fn.resize(
            images,
            size=(settings.view_size, settings.view_size),
            roi_start=start,
            roi_end=end,
            interp_type=_dali.types.INTERP_LINEAR,
            antialias=True,
        )
        for start, end in zip(corners[::2], corners[1::2], strict=True)
    ]
    return fn.stack(*views)


_idle: list[DaliPipeline] = []
_idle_lock = threading.Lock()


def take(settings: Settings) -> DaliPipeline:
    """Take an idle pipeline with these settings, or build one."""
    with _idle_lock:
        for pipeline in _idle:
            if pipeline.settings == settings:
                _idle.remove(pipeline)
                return pipeline
    return DaliPipeline(settings)


def give_back(pipeline: DaliPipeline) -> None:
    """Keep a drained pipeline for the next loader."""
    with _idle_lock:
        _idle.append(pipeline)


def free_pipelines() -> None:
    """Free the pipelines kept from closed loaders, and their memory."""
    with _idle_lock:
        while _idle:
            _idle.pop().free()
