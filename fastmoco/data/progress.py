"""Progress of a long run over images, on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastmoco.output import display_stream

LINE_SECONDS = 30.0


@contextmanager
def show_progress(
    total: int, done: int = 0, *, noun: str = "images", title: str = ""
) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr with rates and ETA; without a terminal, a line every 30 seconds.

    Args:
        total: Number of images.
        done: Images that an earlier run has processed.
        noun: What is counted instead of images.
        title: What is done, for each line.

    Yields:
        A function to call with the numbers of images and of bytes processed since the last call.
    """
    title += "  " * bool(title)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{noun}  {{task.fields[rate]}}  ETA"),
        TimeRemainingColumn(),
    )
    console = Console(file=display_stream(sys.stderr))
    start, next_line, images, size = time.monotonic(), LINE_SECONDS, 0, 0
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=total, completed=done, rate="")

        def advance(new_images: int, new_bytes: int) -> None:
            nonlocal images, size, next_line
            images, size = images + new_images, size + new_bytes
            seconds = max(time.monotonic() - start, 1e-9)
            rate = f"{size / 1e6 / seconds:.1f} MB/s"
            if noun != "MB":
                rate = f"{images / seconds:,.0f} {noun}/s  {rate}"
            progress.update(task, advance=new_images, rate=rate)
            if progress.disable and seconds >= next_line:
                next_line = seconds + LINE_SECONDS
                left = timedelta(seconds=round((total - done - images) * seconds / max(images, 1)))
                line = f"{title}{done + images:,}/{total:,} {noun}  {rate}  ETA {left}"
                sys.stderr.write(f"fastmoco: {line}\n")

        yield advance
