"""`encode_batch` over a source, on threads, in order.

Reading, decoding, resizing, encoding and checksums release the GIL; the rest of Python limits the
rate to some 10,000 photographs per second, which few disks can write. Processes would be faster
still, but take a second to start, copy every image, and must not outlive a kill. Small images
need mostly Python, for which threads would only wait for each other, so one thread encodes them.
"""

import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.encode import EncodedBatch, encode_batch
from fastmoco.data.settings import ConvertConfig
from fastmoco.data.sources import SampleSet

BATCH_SAMPLES = 32
SMALL_BYTES = 8192  # mean size of a source's files below which threads do not help


def encoded_batches(
    samples: SampleSet, measured: NDArray[np.bool_], cfg: ConvertConfig, start: int = 0
) -> Generator[EncodedBatch, None, None]:
    """Encode a source's samples in batches, in order; memory holds four batches more than threads.

    Args:
        samples: The source.
        measured: Which samples' pixels count in the batches' moments, ``(n,)``.
        cfg: Options; with ``workers=0``, small images get one thread, others one per usable CPU.
        start: Index of the first sample.
    """
    jobs = (
        (samples.load, samples.keys[first:last], measured[first:last].tolist(), cfg)
        for first in range(start, len(samples.names), BATCH_SAMPLES)
        for last in [first + BATCH_SAMPLES]
    )
    count = cfg.workers or _choose_workers(samples)
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
    num_bytes = samples.stamps[:, 0].sum()
    small = len(samples.stamps) > 0 and num_bytes < SMALL_BYTES * len(samples.names)
    return 1 if small else len(os.sched_getaffinity(0))
