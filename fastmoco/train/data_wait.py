"""Waiting for the next batch: how long the device stands idle, and what ends the wait.

A signal or a hung read ends it, and what was learned is saved.
"""

import faulthandler
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from fastmoco.errors import Interrupted
from fastmoco.pipelines.contract import Batch, ViewLoader
from fastmoco.pipelines.reads import HungReadError
from fastmoco.runs.stop_signals import StopRequest, WaitStopped
from fastmoco.train.trainer import Trainer


class Mark(Protocol):
    """A point in a device's queue of work, as `torch.cuda.Event` keeps it."""

    def record(self) -> None:
        """Place the mark behind all work queued so far."""

    def query(self) -> bool:
        """Whether the device has passed the mark."""
        ...

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from passing this mark to passing a later one."""
        ...


def cuda_mark() -> Mark:
    """A mark on the current stream of a GPU."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class DataWait:
    """Adds up the time for which the device had nothing to do for want of a batch.

    On a CPU that is the time that ``next()`` took. A host that runs ahead of a GPU waits in
    ``next()``, too, while the GPU works on the steps before. So a mark is placed before and after
    ``next()``: the GPU passes both at once where it is behind the host, and else the time between
    them is what it was idle for, a late copy of the batch included. Where a loader makes the batch
    on the device and waits for nothing, the time between them is work. Nothing here makes the host
    wait for the device.
    """

    def __init__(self, device: torch.device, make_mark: Callable[[], Mark] = cuda_mark) -> None:
        """Start at zero."""
        self._on_device, self._make_mark = device.type != "cpu", make_mark
        self._pairs: deque[tuple[Mark, Mark]] = deque()  # oldest first
        self._seconds = 0.0

    def next(self, loader: ViewLoader) -> Batch:
        """Return the next batch of a loader, and count the wait for it."""
        if not self._on_device:
            batch = next(loader)
            self._seconds += batch.data_wait_seconds
            return batch
        before, after = self._make_mark(), self._make_mark()
        before.record()
        batch = next(loader)
        after.record()
        if batch.data_wait_seconds:
            self._pairs.append((before, after))
        self._collect()  # so that few are kept
        return batch

    def seconds(self) -> float:
        """Return the sum; complete if the device has finished the last step."""
        self._collect()
        return self._seconds

    def restart(self) -> None:
        """Set the sum to zero, without the waits that the device has not come to yet."""
        self._pairs.clear()
        self._seconds = 0.0

    def _collect(self) -> None:
        while self._pairs and self._pairs[0][1].query():
            before, after = self._pairs.popleft()
            self._seconds += before.elapsed_time(after) / 1e3


def next_batch(
    loader: ViewLoader,
    trainer: Trainer,
    stop: StopRequest,
    save: Callable[[], None],
    wait: DataWait,
) -> Batch:
    """Wait for a batch; the state is that after the last step, and `save` saves it.

    With several ranks, a signal does not end the wait: all stop after the same step.

    Raises:
        Interrupted: After a signal, with the state saved.
        HungReadError: If an image takes too long; the stacks of all threads are written.
    """
    alone = not trainer.ranks.several
    try:
        with stop.ending_wait(alone=alone):
            return wait.next(loader)
    except WaitStopped:
        save()
        raise stopped(trainer, stop.signal_number) from None
    except HungReadError:
        write_stacks(trainer.run.stacks(trainer.ranks.rank))
        raise


def stopped(trainer: Trainer, signal_number: int) -> Interrupted:
    """The error that ends a run after a signal, with the state saved."""
    return Interrupted(
        signal_number, f"stopped after step {trainer.steps_done}, saved; the same command resumes"
    )


def write_stacks(path: Path) -> None:
    """Write what all threads of this process are doing, if the disk takes it."""
    with suppress(OSError), path.open("w", encoding="utf-8") as file:
        faulthandler.dump_traceback(file, all_threads=True)
