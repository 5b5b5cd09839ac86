"""Turn SIGINT and SIGTERM into a request to save and stop."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from fastmoco.errors import Interrupted
from fastmoco.ranks import local_ranks


class StopRequest:
    """Remembers whether SIGINT or SIGTERM arrived, and answers the first one at once.

    Attributes:
        signal_number: Number of the signal, 0 if none.
        nothing_to_save: Whether a first signal ends the process at once, because nothing was
            computed that is not on the disk.
    """

    def __init__(self, promise: str) -> None:
        """Start without a signal; `promise` says what follows a first one."""
        self.signal_number, self.nothing_to_save = 0, False
        self._promise = promise

    def __call__(self, signal_number: int, _: FrameType | None) -> None:
        """Handle a signal: remember the first one; a second one ends the process at once."""
        second, self.signal_number = bool(self.signal_number), signal_number
        if second or self.nothing_to_save:
            raise KeyboardInterrupt
        _say(f"{self._promise}; Ctrl-C again quits without saving")

    def ended(self) -> Interrupted:
        """The error of a process that a signal ended at once."""
        lost = "nothing new was computed" if self.nothing_to_save else "nothing more was saved"
        return Interrupted(self.signal_number, f"stopped, {lost}; the same command resumes")


@contextmanager
def stop_signals(promise: str = "stopping after this step, then saving") -> Iterator[StopRequest]:
    """Within the block, SIGINT and SIGTERM set a `StopRequest` instead of ending the process.

    Only the main thread can handle signals: in another one, the block cannot be stopped by them.

    Args:
        promise: What the block does after a first signal, in a few words for the user.

    Raises:
        Interrupted: After a signal that ended the block at once.
    """
    stop = StopRequest(promise)
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    except KeyboardInterrupt as error:
        if not stop.signal_number:
            raise
        raise stop.ended() from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    """Write a line around Python's buffers: a signal may arrive in the middle of a write to them.

    On a terminal, the line of a progress display is erased first.
    """
    if local_ranks().is_first:
        erased = "\r\x1b[2K" if sys.stderr.isatty() else ""
        with suppress(OSError):  # `2>&1 | head` closed the pipe
            os.write(2, f"{erased}fastmoco: {text}\n".encode())
