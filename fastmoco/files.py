"""Files that are whole or not there at all, locks, and checksums.

A file is written as a temporary file, synced, renamed, and its folder synced.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastmoco.errors import UsageError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target` that replaces it when the block ends well.

    An exception or a kill leaves the old file as it was. The temporary name is fixed, so the
    leftover of a kill is overwritten by the next try.

    Raises:
        OSError: If the file cannot be written; it names the target, as that of a write does not.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial")
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.filename is None:
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries (a rename) to the disk."""
    _sync(folder, os.O_RDONLY)


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system answers that has no locks, as some network ones."""


@contextmanager
def locked(path: Path, *, in_use: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a file within the block; Linux frees it however the process ends.

    Where the file system has no locks, that is said in a warning and the block runs without.

    Args:
        path: The lock file; made, with its folder, if missing, and left there.
        in_use: What to say where another process holds the lock; None waits for it instead.

    Raises:
        UsageError: With `in_use`, if another process holds the lock.
        OSError: If the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            lock_descriptor(descriptor, path, wait=in_use is None)
        except BlockingIOError as error:
            raise UsageError(in_use) from error
        yield
    finally:
        os.close(descriptor)


def lock_descriptor(descriptor: int, path: Path, *, wait: bool) -> None:
    """Lock an open file until it is closed.

    Args:
        descriptor: The file.
        path: Its name, for the warning where the file system has no locks.
        wait: Wait for another process that holds the lock.

    Raises:
        BlockingIOError: Without `wait`, if another process holds the lock.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            f"{path}: this file system has no locks ({error.strerror}); make sure that no other "
            "process writes there",
            stacklevel=2,
        )


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write_text(target: Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json_object(path: Path, keys: Iterable[str], *, mend: str) -> dict[str, Any]:
    """What a JSON file holds.

    Args:
        path: Of the file.
        keys: That it must have.
        mend: What to do where it is damaged, for people.

    Raises:
        ValueError: If it is no JSON object with these keys; one line with its name.
        OSError: If it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {mend}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (it holds no object); {mend}")
    if missing := [key for key in keys if key not in found]:
        raise ValueError(f"{path} is damaged (it lacks {', '.join(missing)}); {mend}")
    return found


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Give a new folder beside `target` that becomes it when the block ends well.

    `target` must be missing or empty. An exception or a kill leaves it so; the leftover of a kill
    is removed by the next try.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            _sync(path, os.O_RDONLY)
        sync_folder(temporary)
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
