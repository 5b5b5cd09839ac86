"""Notes what a block asks of the disk, in order."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def disk_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect ``sync file``, ``sync folder`` and ``replace`` within the block."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        calls.append("sync folder" if is_folder else "sync file")
        fsync(descriptor)

    def noting_replace(*paths: Any, **options: Any) -> None:
        calls.append("replace")
        replace(*paths, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", noting_fsync)
        patch.setattr(os, "replace", noting_replace)
        yield calls
