"""How many images a stream of batches gives per second."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

CHUNK = 8  # images that a thread works through at a time, as in the loader
# Images in an epoch of a peer, which goes through a small set again and again for that: ImageNet's.
# Most peers stand still between epochs. With the 600 photographs of the small scale, 9 batches,
# that took FFCV a quarter of its time, which nobody with a million images would see.
EPOCH_IMAGES = 1_281_167


def measure_rate(
    batches: Iterator[float], seconds: float, warm_up_batches: int = 4
) -> dict[str, float]:
    """Counts images until the time is over; the last batch is counted whole.

    Args:
        batches: Gives the number of images of each batch; it must not end before.
        seconds: How long.
        warm_up_batches: Not counted, at least 1: what was made ahead, compiled or started in them.

    Returns:
        ``images``, ``seconds``, and ``first_batch_seconds`` from the first call on.
    """
    start = time.perf_counter()
    next(batches)
    first = time.perf_counter() - start
    for _ in range(warm_up_batches - 1):
        next(batches)
    images, start = 0.0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        images += next(batches)
    return {"images": images, "seconds": passed, "first_batch_seconds": first}


def on_all_cpus(count: int, work: Callable[[int], object]) -> Iterator[int]:
    """Batches of work without end, a chunk at a time on each thread, as in the loader.

    Args:
        count: How many samples there are; they come around again.
        work: What is done with each, by its number; it releases the GIL.
    """

    def chunk(start: int) -> None:
        for sample in range(start, start + CHUNK):
            work(sample % count)

    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, CHUNK * 4 * threads, CHUNK)
        ahead = [pool.submit(chunk, start) for start in starts]
        start = CHUNK * len(ahead)
        while True:
            ahead.pop(0).result()
            ahead.append(pool.submit(chunk, start))
            start += CHUNK
            yield CHUNK
