"""Runs `encode_batch` over a source: in this process for small sets, else in several.

Threads would do (the decoders release the GIL) but for the Python around them, which ends at some
thousand images per second however many cores there are.
"""

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastmoco.data.encode import EncodedBatch, EncodeOptions, encode_batch
from fastmoco.data.sources import SampleSet

BATCH_SAMPLES = 32
IN_PROCESS_SAMPLES = 1_000  # below, starting processes (about a second) costs more than it brings


def encoded_batches(
    samples: SampleSet,
    measured: NDArray[np.bool_],
    options: EncodeOptions,
    workers: int,
    start: int = 0,
) -> Generator[EncodedBatch, None, None]:
    """Encodes a source's samples in batches, in order; memory holds four batches more than workers.

    Args:
        samples: The source.
        measured: Which samples' pixels count in the batches' histograms, ``(n,)``.
        options: How images are stored.
        workers: Number of processes; 0 means one for each usable CPU, or none for a small set.
        start: The first sample.

    Raises:
        ChildProcessError: If a worker process dies.
    """
    jobs = (
        (samples.load, samples.keys[first:last], measured[first:last].tolist(), options)
        for first in range(start, len(samples.names), BATCH_SAMPLES)
        for last in [first + BATCH_SAMPLES]
    )
    count = workers or len(os.sched_getaffinity(0))
    if count == 1 or (workers == 0 and len(samples.names) - start < IN_PROCESS_SAMPLES):
        for job in jobs:
            yield encode_batch(*job)
        return
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_start_worker)
    pending: deque[Future[EncodedBatch]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(encode_batch, *job))
            if len(pending) >= count + 4:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process died, most likely for lack of memory: fewer may do, workers="
            f"{max(1, count // 2)}; a script that calls convert() needs `if __name__ == "
            "'__main__':` around it, or workers=1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def show_progress(total: int, done: int = 0) -> Iterator[Callable[[int, int], None]]:
    """A progress line on stderr, if that is a terminal.

    Args:
        total: Number of images.
        done: How many of them an earlier run has dealt with.

    Yields:
        A function to call with the number of images done and of bytes read since the last call.
    """
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images  {task.fields[rate]}  ETA"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    start, images, size = time.monotonic(), 0, 0
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=total, completed=done, rate="")

        def advance(new_images: int, new_bytes: int) -> None:
            nonlocal images, size
            images, size = images + new_images, size + new_bytes
            seconds = max(time.monotonic() - start, 1e-9)
            rate = f"{images / seconds:,.0f} images/s  {size / 1e6 / seconds:.1f} MB/s"
            progress.update(task, advance=new_images, rate=rate)

        yield advance


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, ends with it even where it is killed, and is one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when an image to shrink imports torch
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
