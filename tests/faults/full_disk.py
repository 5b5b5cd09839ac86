"""A disk that is full at the n-th write of this process, counted as in `interrupted_convert`."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

OF_OS = ("open", "pwrite", "fsync", "replace")
OF_PATHS = ("write_text", "write_bytes", "open")


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk:
    """Every call that writes counts; the one that is `arm`\\ ed for finds no space, once.

    Of what a call writes, the first half reaches the disk.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = self.calls = 0
        for owner, names in ((os, OF_OS), (Path, OF_PATHS)):
            for name in names:
                monkeypatch.setattr(owner, name, self._wrapped(name, getattr(owner, name)))
        # `writev` of the dataset's writer, as one write.
        monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: os.pwrite(fd, b"".join(parts), at))

    def arm(self, number: int) -> None:
        """Fail at this call from now, counted from 1; 0 = never."""
        self.number, self.calls = number, 0

    @property
    def was_full(self) -> bool:
        """Whether the call was made that failed."""
        return 0 < self.number <= self.calls

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not _creates(args, options):
                return real(*args, **options)
            self.calls += 1
            if self.calls != self.number:
                return real(*args, **options)
            if name in ("write_text", "write_bytes", "pwrite"):
                place, data, *rest = args
                real(place, data[: len(data) // 2], *rest, **options)
            raise no_space()

        return call


def _creates(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether an `os.open` or `Path.open` makes or empties a file."""
    how = args[1] if len(args) > 1 else options.get("mode", "r")
    return bool(how & os.O_CREAT) if isinstance(how, int) else any(c in how for c in "wax")
