"""What a command is waiting for, said on stderr while it waits.

Imports no torch: loading it is the first wait.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fastmoco.output import display_stream
from fastmoco.ranks import environment_ranks

PLAIN_SECONDS = 2.0


@contextmanager
def announced(text: str) -> Iterator[None]:
    """Write a line if the block, which may show progress of its own, takes some seconds."""
    timer = threading.Timer(PLAIN_SECONDS, _print, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say what the block does, on the first rank.

    A terminal shows a line with a running clock, which vanishes at the end. Elsewhere a plain line
    is written if the block takes longer than `PLAIN_SECONDS`, so that quick ones write nothing.
    """
    if not environment_ranks().is_first:
        yield
    elif sys.stderr.isatty():
        with _clock(text):
            yield
    else:
        with announced(text):
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


def _print(text: str) -> None:
    print(f"fastmoco: {text} ...", file=sys.stderr, flush=True)  # noqa: T201
