"""Times contenders beside each other so that warm-up, drift and noise do not pass for speed.

What can share a process runs in mirrored blocks, A B then B A (`measure_blocks`); what cannot, such
as code that leaks or sets global state, runs in child processes whose order is turned around each
round (`alternate`), and streams of images in children that are frozen while others run
(`measure_streams`). In all, one contender runs twice under two names (A/A): where equal code
differs by as much as a gain, the gain is not shown. Left out: any correction for clocks that change
within a round.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.child import KeptChild, Unavailable

Work = Callable[[], object]
Timer = Callable[[Work, int], float]
Result = TypeVar("Result")
Target = tuple[str, Mapping[str, Any]]
"""``MODULE:FUNCTION`` and its keyword arguments."""

FEW_REPEATS = 8  # below, quartiles mean little and the spread is from the least to the greatest


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is timed.

    Attributes:
        steps: Calls in one block; each round has two blocks of every contender.
        rounds: Mirrored rounds, after one block of each contender that is not counted.
    """

    steps: int
    rounds: int


CPU_PLAN = Plan(steps=3, rounds=5)
GPU_PLAN = Plan(steps=50, rounds=10)


@dataclass(frozen=True, slots=True)
class Summary:
    """A median with its spread.

    Attributes:
        median: Of all repeats.
        low: The least repeat, or the first quartile.
        high: The greatest repeat, or the third quartile.
        spread: Which of the two: ``min-max`` below `FEW_REPEATS` repeats, else ``quartiles``.
        repeats: How many.
    """

    median: float
    low: float
    high: float
    spread: str
    repeats: int


def again(name: str) -> str:
    """The name under which a contender runs for the second time."""
    return f"{name} (again)"


def measure_blocks(
    contenders: Mapping[str, Work], repeated: str, plan: Plan, timer: Timer
) -> dict[str, list[float]]:
    """Times all contenders in this process, in blocks ``A B C  C B A``.

    Args:
        contenders: By name, what one step is.
        repeated: The contender that also runs as `again`, for the noise floor.
        plan: How much.
        timer: `host_timer` or `cuda_timer`.

    Returns:
        Seconds per step of each contender and of ``again(repeated)``, a figure for each round.
    """
    works = dict(contenders) | {again(repeated): contenders[repeated]}
    for work in works.values():
        timer(work, plan.steps)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(plan.rounds):
        total = dict.fromkeys(works, 0.0)
        for name in (*works, *reversed(works)):
            total[name] += timer(works[name], plan.steps)
        for name in works:
            seconds[name].append(total[name] / (2 * plan.steps))
    return seconds


def alternate(
    contenders: Mapping[str, Callable[[], Result]], repeated: str, rounds: int
) -> tuple[dict[str, list[Result]], dict[str, str]]:
    """Runs contenders that measure themselves, such as child processes: A B, B A, A B and so on.

    A child process starts cold each time, as its users do; what is warm-up to it (imports), it
    leaves out of its own measurement.

    Args:
        contenders: By name, a function that runs it once and gives what it measured.
        repeated: The contender that also runs as `again`, for the noise floor; unless the
            contenders have one of that name.
        rounds: How often.

    Returns:
        A result for each round of each contender and of ``again(repeated)``; and, by name, the
        reason why a contender is not among them. It is not tried again once it is unavailable.
    """
    runs = dict(contenders)
    runs.setdefault(again(repeated), contenders[repeated])
    results: dict[str, list[Result]] = {name: [] for name in runs}
    reasons: dict[str, str] = {}
    for name in _turning(list(runs), rounds):
        if name in reasons:
            continue
        try:
            results[name].append(runs[name]())
        except Unavailable as error:
            reasons[name] = str(error)
    return {name: found for name, found in results.items() if name not in reasons}, reasons


def measure_streams(
    targets: Mapping[str, Target], repeated: str, *, rounds: int, seconds: float
) -> tuple[dict[str, list[dict[str, float]]], dict[str, str]]:
    """How many images streams give in child processes that take turns, each alone on the machine.

    Args:
        targets: By name, a function that gives an endless iterator of the images of each batch.
        repeated: The one of which a second child runs as `again`, for the noise floor.
        rounds: How often each is measured.
        seconds: For how long.

    Returns:
        For each round ``images``, ``seconds`` and ``peak_bytes``, the most memory of the child and
        all that it started, and in the first ``first_batch_seconds``, from the making of the stream
        on; and the reasons of those that are unavailable, as `alternate`.
    """
    with ExitStack() as stack:
        children = {
            name: stack.enter_context(closing(KeptChild(*target)))
            for name, target in {**targets, again(repeated): targets[repeated]}.items()
        }
        waiting, num_cpus = list(children.values()), len(os.sched_getaffinity(0))
        while some := waiting[:num_cpus]:  # imports, which nobody measures, on all CPUs
            for child in some:
                child.start()
            for child in some:
                child.prepare()
            waiting = waiting[num_cpus:]
        runs = {name: partial(_measure_stream, child, seconds) for name, child in children.items()}
        return alternate(runs, repeated, rounds)


def _measure_stream(child: KeptChild, seconds: float) -> dict[str, float]:
    done = child.measure(seconds)
    return {**done.value, "peak_bytes": float(done.peak_bytes)}


def _turning(names: list[str], rounds: int) -> Iterator[str]:
    for number in range(rounds):
        yield from names if number % 2 == 0 else reversed(names)


def host_timer(clock: Callable[[], float] = time.perf_counter) -> Timer:
    """Times a block of steps by a clock of the host that counts seconds."""

    def seconds(work: Work, steps: int) -> float:
        start = clock()
        for _ in range(steps):
            work()
        return clock() - start

    return seconds


def cuda_timer(work: Work, steps: int) -> float:
    """Seconds that a block of steps takes on the current CUDA device, by its own events."""
    start, stop = _event(), _event()
    torch.cuda.synchronize()
    start.record()
    for _ in range(steps):
        work()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def device_peak_bytes(work: Work) -> int:
    """The most memory that torch holds on the current CUDA device during one step."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def random_images(shape: Sequence[int], device: torch.device, seed: int = 0) -> torch.Tensor:
    """Uniform uint8 noise: zeros would be quicker than images are (less power, better clocks)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, tuple(shape), generator=generator, dtype=torch.uint8).to(device)


def summarize(values: Sequence[float]) -> Summary:
    """The median of all repeats with their spread."""
    if len(values) < FEW_REPEATS:
        low, high, spread = min(values), max(values), "min-max"
    else:
        low, high = np.quantile(values, [0.25, 0.75]).tolist()
        spread = "quartiles"
    return Summary(float(np.median(values)), low, high, spread, len(values))


def speedup(base_seconds: Sequence[float], seconds: Sequence[float]) -> Summary:
    """``base / other``, round by round: above 1 where the other is faster.

    Ratios within a round are free of the drift between rounds.
    """
    return summarize([base / other for base, other in zip(base_seconds, seconds, strict=True)])


def is_shown(ratio: Summary, same: Summary) -> bool:
    """Whether a gain (or a loss) stands out from what equal code shows.

    Args:
        ratio: `speedup` of a contender.
        same: `speedup` of the contender that ran twice over itself, the A/A ratio.

    Returns:
        True if the median's distance from 1 exceeds the A/A spread, widened to hold 1, and the
        ratio's own spread does not hold 1. Of two repeats twice that spread must be exceeded: equal
        code with normal noise would else be called different in 13% of cases, so in 4%, from three
        on in under 3%. What ran once has no spread and is never shown (it would be wrong in half).
    """
    noise = max(same.high, 1.0) - min(same.low, 1.0)
    if ratio.repeats == 2:
        noise *= 2
    apart = not ratio.low <= 1.0 <= ratio.high
    return ratio.repeats > 1 and apart and abs(ratio.median - 1.0) > noise
