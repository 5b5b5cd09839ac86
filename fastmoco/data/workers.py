"""Runs `encode_batch` over a source on threads, in order.

Reading, decoding, resizing, encoding and checksums release the GIL; what is left of Python ends at
some 10,000 photographs a second, which few disks write. Processes would go beyond that, but cost a
second to start, the copying of every image, and care that none outlives a kill. Small images are
mostly Python, for which threads would only wait for each other: this thread does them alone.
"""

import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.encode import EncodedBatch, EncodeOptions, encode_batch
from fastmoco.data.sources import SampleSet

BATCH_SAMPLES = 32
SMALL_BYTES = 8192  # mean size of a source's files, below which threads do not pay


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
        measured: Which samples' pixels count in the batches' moments, ``(n,)``.
        options: How images are stored.
        workers: Number of threads; 0 means one for each usable CPU, but none for small images.
        start: The first sample.
    """
    jobs = (
        (samples.load, samples.keys[first:last], measured[first:last].tolist(), options)
        for first in range(start, len(samples.names), BATCH_SAMPLES)
        for last in [first + BATCH_SAMPLES]
    )
    count = workers or _choose_workers(samples)
    if count == 1:
        for job in jobs:
            yield encode_batch(*job)
        return
    pool = ThreadPoolExecutor(count, "fastmoco-convert")
    pending: deque[Future[EncodedBatch]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(encode_batch, *job))
            if len(pending) >= count + 4:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _choose_workers(samples: SampleSet) -> int:
    small = len(samples.stamps) > 0 and samples.stamps[:, 0].sum() < SMALL_BYTES * len(
        samples.names
    )
    return 1 if small else len(os.sched_getaffinity(0))
