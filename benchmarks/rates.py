"""How many images a stream of batches gives per second."""

import time
from collections.abc import Iterator


def measure_rate(
    batches: Iterator[float], seconds: float, warm_up_batches: int = 4
) -> dict[str, float]:
    """Counts images until the time is over; the last batch is counted whole.

    Args:
        batches: Gives the number of images of each batch; it must not end before.
        seconds: How long.
        warm_up_batches: Not counted: what was made ahead, compiled or started in them.

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
