"""SIGINT and SIGTERM as a request to save and stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether SIGINT or SIGTERM came.

    Attributes:
        signal_number: The signal, or 0.
    """

    def __init__(self) -> None:
        """No signal yet."""
        self.signal_number = 0

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        """Signal handler: remember the first; a second ends the process at once."""
        del frame
        if self.signal_number:
            raise KeyboardInterrupt
        self.signal_number = signal_number


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Within the block, SIGINT and SIGTERM ask the loop to save and stop."""
    stop = StopRequest()
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
