"""Work over a source's samples, such as `encode_batch`, on threads, in order.

Reading, decoding, resizing, encoding and checksums release the GIL; the rest of Python limits the
rate to some 10,000 photographs per second, which few disks can write. Processes would be faster
still, but take a second to start, copy every image, and must not outlive a kill. Small images
need mostly Python, for which threads would only wait for each other, so one thread encodes them.
"""

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.encode import EncodedBatch, encode_batch
from fastmoco.data.settings import ConvertConfig
from fastmoco.data.sources import SampleSet

BATCH_SAMPLES = 32
SMALL_BYTES = 8192  # mean size of a source's files below which threads do not help


Batch = TypeVar("Batch")


def encoded_batches(
    samples: SampleSet, measured: NDArray[np.bool_], cfg: ConvertConfig, start: int = 0
) -> Generator[EncodedBatch, None, None]:
    """Encode a source's samples in batches, in order.

    Args:
        samples: The source.
        measured: Which samples' pixels count in the batches' moments, ``(n,)``.
        cfg: Options; see `in_batches` for ``workers``.
        start: Index of the first sample.
    """

    def encode(batch: slice) -> EncodedBatch:
        return encode_batch(samples.load, samples.keys[batch], measured[batch].tolist(), cfg)

    return in_batches(samples, encode, cfg.workers, start)


def in_batches(
    samples: SampleSet, work: Callable[[slice], Batch], workers: int, start: int
) -> Generator[Batch, None, None]:
    """Do work on a source's samples in batches, in order; at most threads + 4 wait in memory.

    Args:
        samples: The source.
        work: What to do with some consecutive samples.
        workers: Number of threads; 0: one for small images, else one per usable CPU.
        start: Index of the first sample.
    """
    batches = (
        slice(first, first + BATCH_SAMPLES)
        for first in range(start, len(samples.names), BATCH_SAMPLES)
    )
    count = workers or _choose_workers(samples)
    if count == 1:
        yield from map(work, batches)
        return
    pool = ThreadPoolExecutor(count, "fastmoco-convert")
    pending: deque[Future[Batch]] = deque()
    try:
        for batch in batches:
            pending.append(pool.submit(work, batch))
            if len(pending) >= count + 4:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _choose_workers(samples: SampleSet) -> int:
    num_bytes = samples.stamps[:, 0].sum()
    small = len(samples.stamps) > 0 and num_bytes < SMALL_BYTES * len(samples.names)
    return 1 if small else len(os.sched_getaffinity(0))
