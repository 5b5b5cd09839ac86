"""Standard output and error that do not end a command: in any locale, and after ``| head``."""

import codecs
import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

ESCAPES = "fastmoco.escapes"
"""Error handler of the encoding."""


class _Lasting:
    """A text stream that discards what is written after its pipe or terminal was closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._until_closed():
            self._stream.write(text)
        return len(text)

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


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within the block, write to stdout and stderr whatever can be written.

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
