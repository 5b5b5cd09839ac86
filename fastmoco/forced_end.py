"""End of the program by a signal, also while its main thread is in code that is not Python's.

Python's handlers run on the main thread between two of its instructions. A collective, a compiler
or a read that hangs never comes back to them. So a thread learns of signals by itself
(`signal.set_wakeup_fd`), and ends the process if the main thread has not done so in time.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

GRACE_SECONDS = 5.0
"""Time that the main thread has to end the process itself."""
DOUBLED_SECONDS = 1.0
"""Signals within this time are one: Ctrl-C reaches torchrun and its processes, and torchrun sends
it to them again; so do `timeout` and Slurm."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a program to end."""

_of_program: list["ForcedEnd"] = []  # of the running `fastmoco`; none in a notebook or a test


class Presses:
    """Counts signals; those within `DOUBLED_SECONDS` of the first one are one."""

    def __init__(self) -> None:
        """Start without a signal."""
        self.count, self._first = 0, 0.0

    def add(self) -> int:
        """Count a signal; returns how many there were."""
        now = time.monotonic()
        if not self.count:
            self._first = now
        if not self.count or now - self._first >= DOUBLED_SECONDS:
            self.count += 1
        return self.count


class ForcedEnd:
    """Thread that ends the process after a second signal.

    Attributes:
        first_ends: Whether the first signal ends it, because there is nothing to save.
    """

    def __init__(self, descriptor: int) -> None:
        """Read numbers of signals from a pipe."""
        self.first_ends: Callable[[], bool] = lambda: False
        self._descriptor = descriptor
        self._presses = Presses()

    def work(self) -> None:
        """Wait for signals until the pipe is closed."""
        while numbers := os.read(self._descriptor, 1):
            if numbers[0] in ENDING and (self._presses.add() > 1 or self.first_ends()):
                time.sleep(GRACE_SECONDS)
                with suppress(OSError):  # the terminal is closed
                    os.write(2, b"fastmoco: ended, nothing more was saved\n")
                os._exit(128 + numbers[0])


def force_the_end() -> None:
    """From here on, to the end of the program, a second signal ends it in any case."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    end = ForcedEnd(reading)
    _of_program.append(end)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=end.work, name="fastmoco-signals", daemon=True).start()


@contextmanager
def first_ends_if(nothing_to_save: Callable[[], bool]) -> Iterator[None]:
    """Within the block, the first signal counts like a second one where this is true."""
    for end in _of_program:
        end.first_ends = nothing_to_save
    try:
        yield
    finally:
        for end in _of_program:
            end.first_ends = lambda: False
