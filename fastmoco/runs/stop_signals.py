"""Turn signals into requests to save, or to save and stop.

SIGINT, SIGTERM and SIGHUP stop; SIGUSR1 saves, for the block that asks for it.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from fastmoco.errors import Interrupted
from fastmoco.forced_end import ENDING, Presses, first_ends_if
from fastmoco.ranks import local_ranks

NOTHING, LATE, SAVE = 0, 1, 2
"""Answers of `StopRequest.take`; `LATE` is for callers that also save by time."""


class WaitStopped(KeyboardInterrupt):
    """A signal ended a wait for data: the state is that after the last step."""


class StopRequest:
    """Remembers the signals that arrived, and answers the first one at once.

    Attributes:
        signal_number: Number of the signal that asks to stop, 0 if none.
        saves_asked: Number of signals that asked for a checkpoint.
        nothing_to_save: Whether a first signal ends the process at once, because nothing was
            computed that is not on the disk.
    """

    def __init__(self, promise: str) -> None:
        """Start without a signal; `promise` says what follows a first one."""
        self.signal_number, self.nothing_to_save, self.saves_asked = 0, False, 0
        self._promise, self._presses = promise, Presses()
        self._saves_done, self._ends_wait = 0, False

    def __call__(self, signal_number: int, _: FrameType | None) -> None:
        """Handle a signal: remember the first one; a second one ends the process at once."""
        if signal_number == signal.SIGUSR1:
            self.saves_asked += 1
            return
        presses, self.signal_number = self._presses.add(), signal_number
        if presses > 1 or self.nothing_to_save:
            raise KeyboardInterrupt
        _say(f"{self._promise}; Ctrl-C again quits without saving")
        if self._ends_wait:
            raise WaitStopped

    @contextmanager
    def ending_wait(self, *, alone: bool) -> Iterator[None]:
        """Within the block, which waits for data and changes no state, a signal ends the wait.

        Args:
            alone: Whether no other rank waits for this one; several must stop after one step.

        Raises:
            WaitStopped: After a first signal.
        """
        self._ends_wait = alone
        try:
            yield
        finally:
            self._ends_wait = False

    def take(self) -> int:
        """What to do after this step: `NOTHING`, `SAVE`, or above it the signal to stop for.

        Of several ranks' answers, the largest holds. A save is asked for once.
        """
        before, self._saves_done = self._saves_done, self.saves_asked
        if self.signal_number:
            return SAVE + self.signal_number
        return SAVE if self._saves_done > before else NOTHING

    def ended(self) -> Interrupted:
        """The error of a process that a signal ended at once."""
        lost = "nothing new was computed" if self.nothing_to_save else "nothing more was saved"
        return Interrupted(self.signal_number, f"stopped, {lost}; the same command resumes")


@contextmanager
def stop_signals(
    promise: str = "stopping after this step, then saving", *, saves: bool = False
) -> Iterator[StopRequest]:
    """Within the block, signals set a `StopRequest` instead of ending the process.

    SIGHUP stays ignored where it was, under ``nohup``. Only the main thread can handle signals: in
    another one, the block cannot be stopped by them.

    Args:
        promise: What the block does after a first signal, in a few words for the user.
        saves: Whether the block saves after SIGUSR1.

    Raises:
        Interrupted: After a signal that ended the block at once.
    """
    stop = StopRequest(promise)
    numbers = [*ENDING, signal.SIGUSR1] if saves else [*ENDING]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        with first_ends_if(lambda: stop.nothing_to_save):
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
