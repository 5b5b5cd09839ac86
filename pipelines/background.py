"""Guards around foreign decoders: their input is verified, and waiting for output has a time limit.

Trade-off: one thread reads and verifies for all decoders, 155 KB in 54 us at best and 115 us in the
median (11 rounds of 64 images, 2 busy cores): some 9,000 to 18,000 large photographs a second.

Left out: a foreign call that never returns cannot be ended. It is reported after the time limit,
and its thread is left behind.
"""

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from fastmoco.data.beton_format import MODE_RAW
from fastmoco.data.dataset import Dataset
from fastmoco.data.images import jpeg_shape
from fastmoco.data.jpeg_markers import ImageError
from fastmoco.pipelines.reads import Reads

STOP_SECONDS = 5.0
"""Longest wait for threads to end."""

T = TypeVar("T")


def proved_blob(dataset: Dataset, sample_id: int, reads: Reads) -> npt.NDArray[np.uint8]:
    """Read the stored bytes of an image; verify their checksum, and their header by the metadata.

    Raises:
        BetonError: If either does not match; names the sample.
    """
    with reads.of(sample_id):
        blob = dataset.blob(sample_id)
    if dataset.modes[sample_id] != MODE_RAW:
        try:
            found = jpeg_shape(blob)
        except ImageError:
            found = None
        if found != (dataset.heights[sample_id], dataset.widths[sample_id]):
            dataset.decode(sample_id)  # raises an error that says what is wrong
    return np.frombuffer(blob, np.uint8)


class Background(Generic[T]):
    """A generator that runs a few items ahead on a thread of its own.

    Any exception of the thread reaches the caller of `get`. The generator is closed on that thread,
    so that its ``finally`` runs there. It must hold no reference to the loader, so that a loader
    that is dropped unclosed can be collected.
    """

    def __init__(self, items: Generator[T], *, name: str, ahead: int) -> None:
        """Start the thread.

        Args:
            items: Generator to run.
            name: Name of the thread.
            ahead: Items that may wait to be taken.
        """
        self._items = items
        self._ahead = ahead
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._stopped = self._ended = False
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def get(self, reads: Reads | None = None) -> T:
        """Wait for the next item; without `reads`, without a limit.

        Raises:
            StopIteration: At the end, or after `stop`.
            HungReadError: If an image, or what is done after reading, takes longer than the limit.
            BaseException: The error that ended the generator, after the items before it.
        """
        with self._changed:
            if reads is None:
                self._changed.wait_for(self._can_answer)
            else:
                reads.wait(self._changed, self._can_answer)
            if self._ready and not self._stopped:
                self._changed.notify_all()
                return self._ready.popleft()
            error, self._error = self._error, None
        if error is not None and not self._stopped:
            raise error
        raise StopIteration

    def stop(self) -> None:
        """Tell the thread to end, and wake those that wait; `stop_all` also waits for its end."""
        with self._changed:
            self._stopped = True
            self._error = None
            self._ready.clear()
            self._changed.notify_all()

    def _can_answer(self) -> bool:
        return bool(self._ready) or self._stopped or self._ended

    def _work(self) -> None:
        failure: BaseException | None = None
        try:
            with closing(self._items):
                while not self._stopped and (item := next(self._items, None)) is not None:
                    self._offer(item)
        except BaseException as error:
            failure = error
        with self._changed:
            # After `stop` it is not read, and its traceback would keep files and buffers alive.
            self._error = None if self._stopped else failure
            self._ended = True
            self._changed.notify_all()

    def _offer(self, item: T) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._ready) < self._ahead)
            if not self._stopped:
                self._ready.append(item)
                self._changed.notify_all()


def for_each(function: Callable[[int], None], count: int, num_threads: int, reads: Reads) -> None:
    """Call a function, which reads an image, with 0 to ``count - 1`` on threads.

    Raises:
        HungReadError: If one image takes too long; its thread is left behind.
        BaseException: The error of the lowest number.
    """
    numbers = iter(range(count))  # the threads take from it in order
    errors, ended = dict[int, BaseException](), list[int]()
    changed, stopping = threading.Condition(), threading.Event()

    def work() -> None:
        for number in numbers:
            try:
                with reads.of(number):
                    function(number)
            except BaseException as error:
                errors[number] = error
            if errors or stopping.is_set():
                break
        with changed:
            ended.append(1)
            changed.notify_all()

    names = [f"fastmoco-loader-decode-{i}" for i in range(num_threads)]
    threads = [threading.Thread(target=work, name=name, daemon=True) for name in names]
    for thread in threads:
        thread.start()
    try:
        with changed:
            reads.wait(changed, lambda: len(ended) == num_threads)
    finally:
        stopping.set()
        join_all(threads)
    if errors:
        raise errors[min(errors)]


def stop_all(stages: Sequence[Background[Any]]) -> None:
    """Stop the threads, and wait for them as `join_all` does."""
    for stage in stages:
        stage.stop()
    join_all([stage.thread for stage in stages])


def join_all(threads: Sequence[threading.Thread]) -> None:
    """Wait for stopping threads, `STOP_SECONDS` in all; warn of those that are stuck."""
    deadline = time.monotonic() + STOP_SECONDS
    for thread in threads:
        if threading.current_thread() is not thread:  # the garbage collector can run anywhere
            thread.join(max(0.0, deadline - time.monotonic()))
    if stuck := sum(thread.is_alive() for thread in threads):
        warnings.warn(f"{stuck} loader threads are stuck and left behind", stacklevel=4)
