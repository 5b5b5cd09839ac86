"""What a command is waiting for, said on stderr while it waits.

Imports no torch: loading it is the first wait.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastmoco.output import display_stream
from fastmoco.ranks import environment_ranks

PLAIN_SECONDS = 2.0
REPEAT_SECONDS = 15.0


@contextmanager
def announced(text: str, *, repeats: bool = False) -> Iterator[None]:
    """Write a line if the block takes some seconds; nothing waits for the thread that does so.

    Args:
        text: What the block does.
        repeats: Write it again with the seconds so far, for a block without progress of its own.
    """
    done = threading.Event()
    threading.Thread(target=_announce, args=(text, done, repeats), daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say what the block does, on the first rank.

    A terminal shows a line with a running clock, which vanishes at the end. Elsewhere a plain line
    is written if the block takes longer than `PLAIN_SECONDS`, so that quick ones write nothing, and
    again with the time so far every `REPEAT_SECONDS`.
    """
    if not environment_ranks().is_first:
        yield
    elif sys.stderr.isatty():
        with _clock(text):
            yield
    else:
        with announced(text, repeats=True):
            yield


@contextmanager
def _clock(text: str) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(file=display_stream(sys.stderr))
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        progress.add_task(text, total=None)
        yield


def _announce(text: str, done: threading.Event, repeats: bool) -> None:
    start, line = time.monotonic(), f"fastmoco: {text} ..."
    if done.wait(PLAIN_SECONDS):
        return
    print(line, file=sys.stderr, flush=True)  # noqa: T201
    while repeats and not done.wait(REPEAT_SECONDS):
        seconds = round(time.monotonic() - start)
        print(f"{line} {seconds} s", file=sys.stderr, flush=True)  # noqa: T201
