"""Heartbeats of several ranks: which of them hangs, and at what, long before a collective gives up.

A thread of each rank writes what its main thread does to the store of the process group. Rank 0
reads all of them, the others read rank 0's, so that a run of 500 ranks asks for 1,000 values in
`BEAT_SECONDS`, not for 250,000. The step pays one assignment a phase, and no collective, host read
or lock.

Time counts in beats of the thread that looks, so that a machine that slept is not taken for a hang.
A read that hangs ends its own rank (`pipelines/reads.py`), so reading has no limit here.

Left out: one rank alone. Hung reads are noticed there, too; a hung device is not.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Protocol

from fastmoco.errors import Interrupted
from fastmoco.ranks import Ranks
from fastmoco.runs.distributed import own_store
from fastmoco.train.data_wait import write_stacks

HANG_SECONDS = 120.0
"""Time without a move after which a rank counts as hung, from the end of the first step."""
SLOW_STEPS = 10
"""A step may take this many times as long as the fastest one, if that is more."""
BEAT_SECONDS = 5.0
ALARM = "alarm"
"""Key of what a rank found, for the others to end by, too."""


class Phase(IntEnum):
    """Parts of a step, in order: the ranks wait for the one that is least advanced."""

    reading = 0
    computing = 1
    measuring = 2
    saving = 3


WORDS = {
    Phase.reading: "reading data",
    Phase.computing: "computing, or exchanging with other ranks",
    Phase.measuring: "measuring",
    Phase.saving: "saving",
}


class Store(Protocol):
    """The part of torch's stores that is used here."""

    def set(self, key: str, value: str) -> object:
        """Set a value."""

    def get(self, key: str) -> bytes:
        """Get a value, and wait until there is one."""

    def check(self, keys: list[str]) -> bool:
        """Whether all of the keys have values."""


class Place(NamedTuple):
    """Where the main thread of a rank is; the smaller one is less advanced."""

    step: int
    """Number of the step, from 1."""
    phase: Phase
    is_long: bool = False
    """Whether it may take as long as the process group allows: compiling, measuring, saving."""

    def __str__(self) -> str:
        """``step 7, reading data``."""
        return f"step {self.step}, {WORDS[self.phase]}"


class Activity:
    """What the main thread does; it alone writes it.

    Attributes:
        place: Where it is.
        fastest_seconds: Duration of the fastest step; None before the first one is done.
    """

    def __init__(self, steps_done: int) -> None:
        """Start before a step, which may compile."""
        self.place = Place(steps_done + 1, Phase.reading, is_long=True)
        self.fastest_seconds: float | None = None
        self._began = time.monotonic()

    def reach(self, step: int, phase: Phase) -> None:
        """Note that the main thread has come to a phase of a step."""
        is_long = phase is not Phase.computing or self.fastest_seconds is None
        self.place = Place(step, phase, is_long)
        if phase is Phase.computing:
            self._began = time.monotonic()

    def step_done(self) -> None:
        """Note that a step is done, on all ranks."""
        took = time.monotonic() - self._began
        self.fastest_seconds = min(took, self.fastest_seconds or took)


AT_END = Place(1 << 62, Phase.saving, is_long=True)
"""Where a rank is that no other waits for."""


NOWHERE = Place(0, Phase.reading, is_long=True)
"""Where a rank is that has not written yet."""


@dataclass(slots=True)
class _Seen:
    """What another rank wrote last, and for how many beats of this rank it is the same."""

    beat: str = ""
    place: Place = NOWHERE
    silent: int = 0
    unmoved: int = 0

    def add(self, report: str) -> None:
        beat, step, phase, is_long = report.split()
        place = Place(int(step), Phase(int(phase)), bool(int(is_long)))
        self.silent = self.silent + 1 if beat == self.beat else 0
        self.unmoved = self.unmoved + 1 if place == self.place else 0
        self.beat, self.place = beat, place


class Watch:
    """Writes the heartbeats of this rank and looks at those of others."""

    def __init__(self, activity: Activity, ranks: Ranks, store: Store) -> None:
        """Look at all ranks from rank 0, at rank 0 from the others."""
        self._activity, self._ranks, self._store = activity, ranks, store
        watched = range(ranks.world_size) if ranks.is_first else [0]
        self._seen = {rank: _Seen() for rank in watched}
        self._beats = self._unanswered = 0

    def beat(self) -> str:
        """Write a heartbeat, look at the others; returns what hangs, or ``""``."""
        try:
            self._write(self._activity.place)
            if self._store.check([ALARM]):
                return self._store.get(ALARM).decode()
            for rank, seen in self._seen.items():
                if self._store.check([str(rank)]):
                    seen.add(self._store.get(str(rank)).decode())
            self._unanswered = 0
        except RuntimeError:  # torch's DistStoreError and DistNetworkError
            self._unanswered += 1
        finding = self._finding()
        if finding:
            with suppress(RuntimeError):
                self._store.set(ALARM, finding)
        return finding

    def leave(self) -> None:
        """Write that no other rank needs to wait for this one."""
        with suppress(RuntimeError):
            self._write(AT_END)

    def still_doing(self) -> str:
        """What rank 0 has been doing for another `HANG_SECONDS`, without a limit; or ``""``."""
        own, period = self._seen[0], round(HANG_SECONDS / BEAT_SECONDS)
        if not (self._ranks.is_first and own.place.is_long and own.unmoved):
            return ""
        seconds = own.unmoved * BEAT_SECONDS
        return "" if own.unmoved % period else f"{own.place}, for {seconds:g} s by now"

    def _write(self, place: Place) -> None:
        self._beats += 1
        report = f"{self._beats} {place.step} {place.phase.value} {int(place.is_long)}"
        self._store.set(str(self._ranks.rank), report)

    def _finding(self) -> str:
        fastest = self._activity.fastest_seconds
        if fastest is None:
            return ""
        silence = HANG_SECONDS / BEAT_SECONDS
        if self._unanswered >= silence:
            return f"the process that connects the ranks has not answered for {HANG_SECONDS:g} s"
        least = min(seen.place for seen in self._seen.values())
        patience = max(HANG_SECONDS, SLOW_STEPS * fastest) / BEAT_SECONDS
        for rank, seen in self._seen.items():
            # Code that saves or measures may hold Python's lock, and this rank's thread with it.
            is_silent = seen.silent >= silence and seen.place.phase < Phase.measuring
            is_stuck = seen.unmoved >= patience and seen.place == least and not least.is_long
            if is_silent or (is_stuck and self._ranks.is_first):
                seconds = (seen.silent if is_silent else seen.unmoved) * BEAT_SECONDS
                return f"rank {rank} has not moved for {seconds:g} s; it last did: {seen.place}"
        return ""


@contextmanager
def watched(
    activity: Activity, ranks: Ranks, stacks: Path, end: Callable[[int], None] = os._exit
) -> Iterator[None]:
    """Within the block, end this process with exit code 1 if a rank hangs; one rank is not watched.

    Args:
        activity: What this rank does.
        ranks: Ranks that train.
        stacks: File for what the threads of this process do then.
        end: Ends the process although its main thread waits for a collective.
    """
    if not ranks.several:
        yield
        return
    store = own_store("heartbeats", timedelta(seconds=HANG_SECONDS / 2))
    watch, stopping = Watch(activity, ranks, store), threading.Event()
    failed = False

    def work() -> None:
        while not stopping.wait(BEAT_SECONDS):
            if finding := watch.beat():
                write_stacks(stacks)
                _say(
                    f"rank {ranks.rank}: {finding}; the last checkpoint stays, the same command "
                    f"resumes; what the threads of this rank did: {stacks}"
                )
                end(1)
                return
            if doing := watch.still_doing():
                _say(doing)
        if not failed:
            watch.leave()

    thread = threading.Thread(target=work, name="fastmoco-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    except Interrupted:
        raise
    except BaseException:
        failed = True  # others may wait for this rank on their devices: they end after the limit
        raise
    finally:
        stopping.set()
        thread.join(2 * BEAT_SECONDS)


def _say(text: str) -> None:
    """Write a line by no lock that the main thread may hold."""
    with suppress(OSError):
        os.write(2, f"fastmoco: {text}\n".encode(errors="surrogateescape"))
