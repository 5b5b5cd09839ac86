"""Threads that fill batches before the consumer asks for them, in order, in a ring of slots.

Trade-off: threads take a few rows at a time under one lock. So any number of threads serves any
batch size, and a thread that finds no rows left in a batch continues with the next one. The thread
that draws the boxes of a batch holds that lock: 0.1 ms for 256 images, but 0.2 s at the start of an
epoch of 1.28 million.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fastmoco.pipelines.background import join_all
from fastmoco.pipelines.buffers import request_facts
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.crops import BatchRequest
from fastmoco.pipelines.reads import Reads

CHUNK_ROWS = 8
"""Rows that a thread takes at once: few enough to share a batch, enough to lock rarely."""

FillRow = Callable[["Slot", int], None]
"""Function that fills a row of a slot with the pixels of all views of an image."""
FillRows = Callable[["Slot", range, npt.NDArray[np.int64]], Sequence[int]]
"""Function that fills what it can of some rows, and returns the rest (`small_rows`)."""


@dataclass(slots=True, eq=False)
class Slot:
    """Buffers of one batch, and its progress."""

    host: Batch
    pixels: npt.NDArray[np.uint8] = field(init=False)  # the crops, (N, V, H, W, 3)
    boxes: npt.NDArray[np.int32] = field(init=False)  # (N, V, 4)
    sample_ids: list[int] = field(default_factory=list)
    taken: int = 0
    finished: int = 0
    failure: tuple[int, BaseException] | None = None  # of the lowest row: equal for any threads

    def __post_init__(self) -> None:
        self.pixels, self.boxes = self.host.crops.numpy(), self.host.boxes.numpy()

    def start(self, request: BatchRequest) -> None:
        """Begin another batch."""
        self.sample_ids = request.sample_id.tolist()
        self.taken, self.finished, self.failure = 0, 0, None
        for name, values in request_facts(request).items():
            getattr(self.host, name)[: len(values)] = values

    def take(self, count: int) -> range:
        """Take at most ``count`` rows to fill; empty if all are taken."""
        stop = min(self.taken + count, len(self.sample_ids))
        rows, self.taken = range(self.taken, stop), stop
        return rows

    @property
    def done(self) -> bool:
        """Whether all rows are filled, or failed."""
        return self.finished == len(self.sample_ids)


class Prefetcher:
    """State that threads and consumer share: batches being made, in order, and free slots.

    It holds no reference to its loader, so that a loader that is dropped unclosed can be collected.
    Any exception of a thread reaches the consumer, which would wait forever otherwise.
    """

    def __init__(
        self,
        fill_row: FillRow,
        requests: Iterator[BatchRequest],
        slots: list[Slot],
        reads: Reads,
        fill_rows: FillRows | None = None,
    ) -> None:
        """Prepare the work that threads do by running `work`.

        Args:
            fill_row: Fills the rows that ``fill_rows`` leaves.
            requests: The batches.
            slots: Where they are made.
            reads: Notes what is read.
            fill_rows: None leaves all rows.
        """
        self._fill_row, self._fill_rows, self._reads = fill_row, fill_rows, reads
        self._chunk_rows = CHUNK_ROWS if fill_rows is None else 2 * CHUNK_ROWS  # a call takes 20 us
        self._requests = requests
        self._free = deque(slots)
        self._making: deque[Slot] = deque()  # only the last can have rows that are not taken
        self._changed = threading.Condition()
        self._drawn_all = False
        self._stopped = False
        self._broken: BaseException | None = None

    def work(self) -> None:
        """Fill rows until none is left or `stop` is called; each thread runs this."""
        try:
            while job := self._take():
                self._fill(*job)
        except BaseException as error:  # while drawing a batch, or a fault of this class
            with self._changed:
                self._broken = error
                self._changed.notify_all()

    def _take(self) -> tuple[Slot, range] | None:
        with self._changed:
            while not self._stopped:
                if self._making and (rows := self._making[-1].take(self._chunk_rows)):
                    return self._making[-1], rows
                if self._drawn_all:
                    return None
                if self._free:
                    self._begin_batch()
                else:
                    self._changed.wait()
        return None

    def _begin_batch(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._drawn_all = True
        else:
            self._making.append(self._free.popleft())
            self._making[-1].start(request)
        self._changed.notify_all()

    def _fill(self, slot: Slot, rows: range) -> None:
        left: Sequence[int] = rows
        if self._fill_rows is not None:
            place = self._reads.begin(slot.sample_ids[rows.start : rows.stop])
            left = self._fill_rows(slot, rows, place)
        for row in left:
            if self._stopped:
                return
            try:
                self._reads.begin([slot.sample_ids[row]])
                self._fill_row(slot, row)
            except BaseException as error:
                with self._changed:
                    if slot.failure is None or row < slot.failure[0]:
                        slot.failure = row, error
        self._reads.end()
        with self._changed:
            slot.finished += len(rows)
            if slot.done:
                self._changed.notify_all()

    def release(self, slot: Slot) -> None:
        """Give back a slot whose batch is no longer used."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()

    def next_batch(self) -> Slot | None:
        """Wait for the oldest batch; None at the end or after `stop`.

        Raises:
            HungReadError: If one of its samples takes too long.
            BaseException: The first error of one of its samples.
        """
        with self._changed:
            self._reads.wait(self._changed, self._can_answer)
            if self._broken is not None:
                raise self._broken
            if self._stopped or not self._making:
                return None
            slot = self._making.popleft()
        if slot.failure is not None:
            raise slot.failure[1]
        return slot

    def _can_answer(self) -> bool:
        if self._stopped or self._broken is not None:
            return True
        return self._making[0].done if self._making else self._drawn_all

    def stop(self, threads: list[threading.Thread]) -> None:
        """End the threads; wait `background.STOP_SECONDS` at most, then leave stuck ones behind."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if threading.current_thread() in threads:  # the garbage collector can call from anywhere
            return
        self._free.clear()  # no thread takes from them once it sees `_stopped`
        self._making.clear()
        join_all(threads)
