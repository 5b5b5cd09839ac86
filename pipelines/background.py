"""Fences around foreign decoders: what goes in is proved, what comes out has a time limit.

Trade-off: one thread reads and proves for all decoders, 155 KB in 54 us at best and 115 us in the
median (11 rounds of 64 images, 2 busy cores): some 9,000 to 18,000 large photographs a second.

Left out: a foreign call that never returns cannot be ended. It is
reported in time, and its thread is left behind.
"""

import threading
import time
import warnings
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from fastmoco.data.beton_format import MODE_RAW
from fastmoco.data.dataset import Dataset
from fastmoco.data.images import jpeg_shape
from fastmoco.data.jpeg_markers import ImageError

STOP_SECONDS = 5.0
"""How long stopping waits for a thread that is stuck."""

T = TypeVar("T")


def proved_blob(dataset: Dataset, sample_id: int) -> npt.NDArray[np.uint8]:
    """The stored bytes of an image: its checksum proved, its header as its metadata says.

    Raises:
        BetonError: If they are not, naming the sample.
    """
    blob = dataset.blob(sample_id)
    if dataset.modes[sample_id] != MODE_RAW:
        try:
            found = jpeg_shape(blob)
        except ImageError:
            found = None
        if found != (dataset.heights[sample_id], dataset.widths[sample_id]):
            dataset.decode(sample_id)  # raises, and says what is wrong
    return np.frombuffer(blob, np.uint8)


class Background(Generic[T]):
    """What a generator yields, made a few items ahead on a thread of its own.

    Whatever happens to the thread reaches the one who asks. The generator is closed on that thread,
    so that its ``finally`` runs there. It must not refer to the loader, so that a loader that is
    dropped unclosed can be collected.
    """

    def __init__(self, items: Generator[T], *, name: str, ahead: int, advice: str = "") -> None:
        """Start the thread.

        Args:
            items: What to run through.
            name: Of the thread.
            ahead: How many items may wait to be taken.
            advice: What to do about a time-out.
        """
        self._items = items
        self._ahead = ahead
        self._advice = advice
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._stopped = self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def get(self, timeout_seconds: float | None = None) -> T:
        """Wait for the next item.

        Raises:
            StopIteration: At the end, or after `stop`.
            TimeoutError: If none comes in time.
            BaseException: What ended the generator, after the items before it.
        """
        with self._changed:
            if not self._changed.wait_for(self._can_answer, timeout_seconds):
                raise TimeoutError(
                    f"{self._thread.name} gave no batch for {timeout_seconds:g} s; {self._advice}"
                )
            if self._ready and not self._stopped:
                self._changed.notify_all()
                return self._ready.popleft()
            error, self._error = self._error, None
        if error is not None and not self._stopped:
            raise error
        raise StopIteration

    def stop(self) -> None:
        """Tell the thread to end, and wake who waits; `join` waits for it."""
        with self._changed:
            self._stopped = True
            self._error = None
            self._ready.clear()
            self._changed.notify_all()

    def join(self, deadline: float) -> bool:
        """Whether the thread ends before a time of `time.monotonic`."""
        if threading.current_thread() is not self._thread:  # a garbage collector can run anywhere
            self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _can_answer(self) -> bool:
        return bool(self._ready) or self._stopped or self._ended

    def _work(self) -> None:
        failure: BaseException | None = None
        try:
            self._run_through()
        except BaseException as error:
            failure = error
        with self._changed:
            # After `stop` nobody asks, and its traceback would keep files and buffers alive.
            self._error = None if self._stopped else failure
            self._ended = True
            self._changed.notify_all()

    def _run_through(self) -> None:
        try:
            while not self._stopped:
                item = next(self._items, None)
                if item is None:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or len(self._ready) < self._ahead)
                    if not self._stopped:
                        self._ready.append(item)
                        self._changed.notify_all()
        finally:
            self._items.close()


def stop_all(stages: Sequence[Background[Any]]) -> None:
    """End the threads, and wait for them but not for one that is stuck."""
    for stage in stages:
        stage.stop()
    deadline = time.monotonic() + STOP_SECONDS
    if stuck := sum([not stage.join(deadline) for stage in stages]):
        warnings.warn(f"{stuck} loader threads are stuck and left behind", stacklevel=3)
