"""Which image each thread of a loader reads, and a limit for one that never comes.

Trade-off: a thread notes each image in a dictionary; the waiting thread looks at it once a
second. Time counts as seconds in which it looked, so that a stopped process (Ctrl-Z, a sleeping
laptop) is not taken for a hung disk. A slow disk is none: each image has the limit for itself.

Left out: a read on the waiting thread itself, as the reference loader does it.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from fastmoco.data.dataset import Dataset
from fastmoco.data.remote.streamed import StreamedSet

LIMIT_SECONDS = 120.0
"""Longest time that one image may take to be read and decoded."""
TICK_SECONDS = 1.0
NAME_SECONDS = 2.0
"""Longest wait for an image's name, which may be in the file that hangs."""


class HungReadError(TimeoutError):
    """An image was not read within the limit."""


class Reads:
    """The images that are being read, in the order in which their reading began."""

    def __init__(
        self, dataset: Dataset, *, limit_seconds: float = LIMIT_SECONDS, advice: str = ""
    ) -> None:
        """Start without a read.

        Args:
            dataset: Names the images.
            limit_seconds: Limit for each of them.
            advice: End of the error's message; empty: look at the disk.
        """
        self._dataset, self._limit_seconds = dataset, limit_seconds
        self._advice = advice or "see whether its disk answers; the same command resumes a run"
        # By thread: the images, and which of them; each list of images has a place of its own.
        self._current: dict[int, tuple[Sequence[int], npt.NDArray[np.int64]]] = {}

    def begin(self, sample_ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """Note that this thread reads images one after the other, and no other ones.

        Returns:
            Position of the image that is read, ``(1,)``, 0; for the caller to change.
        """
        thread, place = threading.get_ident(), np.zeros(1, np.int64)
        self._current.pop(thread, None)  # so that it comes last
        self._current[thread] = sample_ids, place
        return place

    def end(self) -> None:
        """Note that this thread reads no image."""
        self._current.pop(threading.get_ident(), None)

    @contextmanager
    def of(self, sample_id: int) -> Iterator[None]:
        """Note that this thread reads an image within the block."""
        self.begin([sample_id])
        try:
            yield
        finally:
            self.end()

    def wait(self, changed: threading.Condition, can_answer: Callable[[], bool]) -> None:
        """Wait on a condition, which the caller holds, until there is an answer.

        Raises:
            HungReadError: If one image, or what comes between two, takes longer than the limit.
        """
        tick, ticks = min(TICK_SECONDS, self._limit_seconds), 0
        seen, position = None, 0
        while not changed.wait_for(can_answer, tick):
            oldest = next(iter(self._current.copy().values()), None)
            now = 0 if oldest is None else int(oldest[1][0])
            stands = oldest is seen and now == position and not self._is_fetching()
            ticks = ticks + 1 if stands else 0
            seen, position = oldest, now
            if ticks * tick >= self._limit_seconds:
                raise HungReadError(self._describe(oldest and oldest[0][now]))

    def _is_fetching(self) -> bool:
        """Whether a shard is on its way; a connection has limits of its own."""
        return isinstance(self._dataset, StreamedSet) and self._dataset.waits

    def _describe(self, sample_id: int | None) -> str:
        took = f"{self._limit_seconds:g} s"
        if sample_id is None:
            return f"no batch came within {took}, while no image was read; {self._advice}"
        return f"reading {self._name(sample_id)} has taken more than {took}; {self._advice}"

    def _name(self, sample_id: int) -> str:
        names: list[str] = []
        reader = threading.Thread(
            target=lambda: names.append(self._dataset.name(sample_id)), daemon=True
        )
        reader.start()
        reader.join(NAME_SECONDS)
        return f"sample {sample_id} of {self._dataset.path}" + "".join(f" ({n})" for n in names)
