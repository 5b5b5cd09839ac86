"""Standard output and error of a command: in any locale, after ``| head``, without control codes.

All that a command prints passes `_Lasting`. Names of files, classes and tensors may hold escape
sequences, which would command a terminal: they are escaped here. Only displays that move the cursor
themselves write around it, by `display_stream`.
"""

import codecs
import errno
import io
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from fastmoco.errors import without_controls

ESCAPES = "fastmoco.escapes"
"""Error handler of the encoding."""
_CONTROL_BYTES = re.compile("[\udc80-\udc9f]")
"""Bytes of file names that some terminals take for control codes."""


class _Lasting:
    """A text stream without control codes; it drops what follows the end of pipe or terminal."""

    def __init__(self, stream: TextIO, *, is_display: bool = False) -> None:
        self._stream, self._is_display = stream, is_display

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._until_closed():
            self._stream.write(text if self._is_display else self._escaped(text))
        return len(text)

    def _escaped(self, text: str) -> str:
        text = without_controls(text)
        return _CONTROL_BYTES.sub(_escape, text) if self._stream.isatty() else text

    def display(self) -> "_Lasting":
        """The same stream for a display, which moves the cursor."""
        return _Lasting(self._stream, is_display=True)

    def flush(self) -> None:
        with self._until_closed():
            self._stream.flush()

    @contextmanager
    def _until_closed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.EPIPE and not self._lost_terminal(error):
                raise
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def _lost_terminal(self, error: OSError) -> bool:
        is_terminal = stat.S_ISCHR(os.fstat(self._stream.fileno()).st_mode)
        return error.errno == errno.EIO and is_terminal


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def display_stream(stream: TextIO) -> TextIO:
    """The stream for progress lines and colors of a library; give it no names as they are."""
    return cast("TextIO", stream.display()) if isinstance(stream, _Lasting) else stream


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within the block, write to stdout and stderr whatever can be written, escaped.

    A closed pipe or terminal discards the rest. On stdout, bytes of file names stay as they are,
    and characters that the locale lacks are escaped, as Python does on stderr. A closed descriptor
    discards all.
    """
    codecs.register_error(ESCAPES, _bytes_or_escapes)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ESCAPES)
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        ours = [_Lasting(stream or nowhere) for stream in before]
        sys.stdout, sys.stderr = (cast("TextIO", stream) for stream in ours)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            for stream in ours:
                with suppress(OSError):  # such as a full disk; Python reports it at its end
                    stream.flush()


def _bytes_or_escapes(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
