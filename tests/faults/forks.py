"""Cases that run in a fork, so that what ends the process or never ends is counted as well."""

import json
import os
import resource
import selectors
import signal
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tests.faults.ledger import LIMIT_SECONDS, Part

SPARE_BYTES = 8 << 30
"""Address space beside what the process has: what a hostile header asks for is refused there."""


@dataclass(frozen=True)
class Case:
    """What became of one case; see `Part.add`."""

    outcome: str
    seconds: float
    place: str = ""
    example: str = ""


def run_cases(part: Part, count: int, case: Callable[[int], Case]) -> None:
    """Run ``case(0)`` to ``case(count - 1)`` in a fork; after a crash or a hang, in another one."""
    done = 0
    while done < count:
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads
            child = os.fork()
        if not child:
            os.close(reading)
            _work(writing, range(done, count), case)
        os.close(writing)
        found, is_hung = _collect(reading, child)
        for one in found:
            part.add(one.outcome, one.seconds, place=one.place, example=one.example)
        done += len(found)
        _, status = os.waitpid(child, 0)
        if done < count:
            what = "hung" if is_hung else "crashed"
            part.add(what, LIMIT_SECONDS * is_hung, example=f"case {done}: wait status {status}")
            done += 1


def _work(writing: int, numbers: range, case: Callable[[int], Case]) -> None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + SPARE_BYTES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            os.write(writing, json.dumps(asdict(case(number))).encode() + b"\n")
    finally:
        os._exit(1)


def _collect(reading: int, child: int) -> tuple[list[Case], bool]:
    """The cases that a child finished, and whether it was killed because it hung."""
    data, is_hung = b"", False
    with selectors.DefaultSelector() as selector, os.fdopen(reading, "rb", buffering=0) as pipe:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(LIMIT_SECONDS + 30):
                is_hung = True
                os.kill(child, signal.SIGKILL)
                break
            if not (new := pipe.read(1 << 16)):
                break
            data += new
    return [Case(**json.loads(line)) for line in data.split(b"\n")[:-1]], is_hung
