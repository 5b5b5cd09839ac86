"""Interface to FFCV: its loader, with our own decoder, order and memory.

FFCV's epoch thread calls three of our hooks: `Order` once for the order of its samples,
`Memory.start_batch` before each batch, and the decoder that `TwoCropDecoder` generates. The boxes
and the slot of a batch reach the decoder as arrays beside the memory map, written before each
batch: in a closure, Numba would treat them as constants.

Trade-off: these are internals of FFCV 1.0.2 (the package's last release, May 2024), and only this
module uses them. Left out: its page-reading process cache; the operating system's cache suffices.
"""

import queue
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numba
import numpy as np
import torch

from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.draws.streams import INT64
from fastmoco.pipelines.background import Background
from fastmoco.pipelines.contract import EpochPlan
from fastmoco.pipelines.crops import BatchRequest

_torch_threads = torch.get_num_threads()
try:
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.libffcv import imdecode, resize_crop
    from ffcv.loader import Loader
    from ffcv.memory_managers.os_cache import OSCacheContext
    from ffcv.pipeline import compiler
except ImportError as error:
    message = f"pipeline.name=ffcv needs FFCV ({error}); pip install ffcv, which compiles it"
    raise ImportError(message) from error
torch.set_num_threads(_torch_threads)  # importing FFCV sets it to 1

_imdecode = numba.njit(nogil=True)(imdecode)  # noqa: TID251
_resize_crop = numba.njit(nogil=True)(resize_crop)  # noqa: TID251


class Filled(NamedTuple):
    """A batch and the index of its slot in `Slots.crops`; None if it has no samples."""

    request: BatchRequest
    slot: int | None


@numba.njit(nogil=True, parallel=True)  # noqa: TID251 (not cached: it calls FFCV by address)
def _decode_batch(sample_ids: Any, metadata: Any, state: Any) -> None:
    """Decode each image once, write its crops to the slot, and keep FFCV's return code."""
    file, pointers, sizes, boxes, crops, codes, scratch, slot = state
    for worker in numba.prange(len(scratch)):
        for row in range(worker, len(sample_ids), len(scratch)):
            sample = metadata[sample_ids[row]]
            pointer, height, width = sample["data_ptr"], sample["height"], sample["width"]
            stored = file[pointer : pointer + sizes[np.searchsorted(pointers, pointer)]]
            image = stored
            code = 0
            if sample["mode"] == 0:
                image = scratch[worker]
                code = _imdecode(
                    stored, image, height, width, height, width, 0, 0, 1, 1, False, False
                )
            num_bytes = np.int64(height) * np.int64(width) * 3
            pixels = image[:num_bytes].reshape(np.int64(height), np.int64(width), 3)
            codes[slot[0], row] = code
            for view in range(boxes.shape[1]):
                top, left, rows, columns = boxes[row, view]
                _resize_crop(
                    pixels, top, top + rows, left, left + columns, crops[slot[0], row, view]
                )


class TwoCropDecoder(SimpleRGBImageDecoder):  # type: ignore[misc]
    """Decodes FFCV's image field by `_decode_batch`, without memory of FFCV's."""

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, None]:
        """Declare batch indices as the result; crops go to a slot."""
        return replace(previous_state, jit_mode=True, shape=(), dtype=np.dtype("i8")), None

    def generate_code(self) -> Any:
        """Return the function that FFCV calls for each batch."""

        def decode(batch_indices: Any, _memory: Any, metadata: Any, storage_state: Any) -> Any:
            _decode_batch(batch_indices, metadata, storage_state)
            return batch_indices

        return decode


@dataclass(slots=True)
class Slots:
    """Memory of batches, and the slots of it that are free.

    Attributes:
        crops: ``(slots, N, V, H, W, 3)`` uint8.
        free: Slots that may be filled; None ends a waiting thread.
    """

    crops: torch.Tensor
    free: "queue.SimpleQueue[int | None]" = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        for slot in range(len(self.crops)):
            self.free.put(slot)


class Memory(OSCacheContext):  # type: ignore[misc]
    """FFCV's memory map of the file, and the decoder's other inputs for each batch.

    Attributes:
        started: Batches that FFCV has begun, the oldest first.
        error: Error that came before a batch.
    """

    def __init__(
        self, loader: Any, slots: Slots, feed: Background[BatchRequest], max_image_bytes: int
    ) -> None:
        """Allocate the arrays that all batches share."""
        super().__init__(loader.memory_manager)
        self.started: deque[Filled] = deque()
        self.error: Exception | None = None
        self._slots, self._feed = slots, feed
        num_slots, count, views = slots.crops.shape[:3]
        self._codes = np.zeros((num_slots, count), np.int64)
        self._boxes = np.zeros((count, views, 4), np.int64)
        self._scratch = np.zeros((loader.num_workers, max_image_bytes), np.uint8)
        self._slot = np.zeros(1, np.int64)
        loader.memory_manager.context = self

    @property
    def state(self) -> tuple[Any, ...]:
        """Inputs of the decoder."""
        crops = self._slots.crops.numpy()
        ours = self._boxes, crops, self._codes, self._scratch, self._slot
        return (self.mmap, self.manager.ptrs, self.manager.sizes, *ours)

    def start_batch(self, _batch: int) -> None:
        """Prepare the next batch of FFCV, which handles no exception but StopIteration."""
        try:
            while not len((request := self._feed.get()).sample_id):
                self.started.append(Filled(request, None))
            slot = self._slots.free.get()
        except Exception as error:
            self.error = None if isinstance(error, StopIteration) else error
            raise StopIteration from error
        if slot is None:
            raise StopIteration
        self._boxes[: len(request.boxes)] = request.boxes
        self._slot[0] = slot
        self.started.append(Filled(request, slot))

    def stop(self) -> None:
        """Wake FFCV's thread from any wait, and end it."""
        self._feed.stop()
        self._slots.free.put(None)

    def rest(self) -> Generator[Filled]:
        """Yield the batches without samples at the end, which FFCV does not see."""
        yield from self.started
        with suppress(StopIteration):
            while True:
                yield Filled(self._feed.get(), None)

    def undecoded(self, filled: Filled) -> list[int]:
        """Return the samples of a batch that FFCV's decoder refused."""
        codes = self._codes[filled.slot or 0, : len(filled.request.sample_id)]
        refused: list[int] = filled.request.sample_id[codes != 0].tolist()
        return refused


class Order:
    """FFCV's hook for the order of an epoch's samples."""

    def __init__(self, plan: EpochPlan) -> None:
        self._plan = plan

    def sample_order(self, _epoch: int) -> INT64:
        """The samples of the next epoch."""
        plan, self._plan = self._plan, self._plan.next_epoch()
        return plan.remaining()


def open_loader(dataset: BetonFile, plan: EpochPlan, max_count: int, num_threads: int) -> Any:
    """Open FFCV's loader of a file in our order; torch and Numba keep their numbers of threads.

    Raises:
        BetonError: If FFCV reads an index that differs from the one we verified.
    """
    # FFCV would set torch's number of threads for the process, again in each epoch's thread.
    compiler.ch = SimpleNamespace(set_num_threads=lambda _count: None)
    before = numba.get_num_threads()
    numba_config: Any = numba.config
    compiler.Compiler.set_enabled(False)  # otherwise it compiles `decode` again for each loader
    loader = Loader(
        str(dataset.local_path),
        batch_size=max_count,
        num_workers=min(num_threads, numba_config.NUMBA_NUM_THREADS),
        os_cache=True,
        drop_last=False,
        batches_ahead=1,
        pipelines={"image": [TwoCropDecoder()], "label": None},
    )
    compiler.Compiler.set_enabled(True)
    numba.set_num_threads(before)
    loader.traversal_order = Order(plan)  # its constructor refuses an object
    index, table = stored_index(loader), loader.memory_manager
    positions = np.searchsorted(table.ptrs, index["data_ptr"])
    pairs: list[tuple[Any, Any]] = [
        (dataset.heights, index["height"]),
        (dataset.widths, index["width"]),
        (dataset.modes, index["mode"]),
        (dataset.sizes, table.sizes[np.minimum(positions, len(table.sizes) - 1)]),
    ]
    if not all(np.array_equal(ours, theirs) for ours, theirs in pairs):
        raise BetonError(f"{dataset.path}: changed since it was opened; open it again")
    return loader


def stored_index(loader: Any) -> Any:
    """Return FFCV's records of all images: ``mode``, ``width``, ``height``, ``data_ptr``."""
    return loader.reader.metadata[f"f{loader.field_name_to_f_ix['image']}"]
