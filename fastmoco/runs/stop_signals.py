"""Turn SIGINT and SIGTERM into a request to save and stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Remembers whether SIGINT or SIGTERM arrived.

    Attributes:
        signal_number: Number of the signal, 0 if none.
    """

    def __init__(self) -> None:
        """Start without a signal."""
        self.signal_number = 0

    def __call__(self, signal_number: int, _: FrameType | None) -> None:
        """Handle a signal: remember the first one; a second one ends the process at once."""
        if self.signal_number:
            raise KeyboardInterrupt
        self.signal_number = signal_number


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Within the block, SIGINT and SIGTERM set a `StopRequest` instead of ending the process."""
    stop = StopRequest()
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
