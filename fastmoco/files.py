"""Atomic writes of files and folders, locks, and checksums.

A file is written under a temporary name, synced and renamed; then its folder is synced.
"""

import errno
import fcntl
import hashlib
import os
import resource
import shutil
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from fastmoco.errors import UsageError
from fastmoco.parsing import parse_json


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`, which replaces `target` if the block succeeds.

    An exception or a kill leaves the old file unchanged. The temporary name is fixed, so the next
    attempt replaces what a killed process left. A link that somebody else made under that name is
    removed, not followed; where it cannot be removed, such as in /tmp, this is an error.

    Raises:
        OSError: If the file cannot be written; its ``filename`` is then set, which a failed write
            does not do itself.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial")
    try:
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
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
    """Sync a folder's entries, such as a rename, to the disk, if its file system can do that."""
    _sync(folder, os.O_RDONLY)


OPEN_OWN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
"""Flags for a file of ours that may exist, such as a lock; a link in its place is refused."""
LACKING = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
"""Error numbers of what a file system cannot do; a failing or full disk gives others."""
NO_LOCKS = (errno.ENOLCK, *LACKING)
"""Error numbers of file systems without locks, such as some network file systems."""


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # CIFS, VirtualBox and some network disks sync files but no folders.
        if error.errno not in LACKING or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, *, in_use: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a file within the block; Linux frees it when the process ends.

    On a file system without locks, the block runs unlocked, with a warning.

    Args:
        path: The lock file; created if missing, like its folder, and not removed.
        in_use: Message of the error if another process holds the lock; None waits for the lock.

    Raises:
        UsageError: With `in_use`, if another process holds the lock.
        OSError: If the file cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, OPEN_OWN, 0o666)
    try:
        try:
            lock_descriptor(descriptor, path, wait=in_use is None)
        except BlockingIOError as error:
            raise UsageError(in_use) from error
        yield
    finally:
        os.close(descriptor)


def lock_descriptor(descriptor: int, path: Path, *, wait: bool, shared: bool = False) -> None:
    """Lock an open file or folder until it is closed.

    Args:
        descriptor: The open file.
        path: Its path, for the warning on a file system without locks.
        wait: Wait if another process holds the lock.
        shared: Let others hold it too who want to share it.

    Raises:
        BlockingIOError: Without `wait`, if another process holds the lock.
    """
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            f"{path}: cannot be locked, because its file system has no locks ({error.strerror}); "
            "make sure that no other process writes to this folder",
            stacklevel=2,
        )


def allow_open_files(count: int) -> None:
    """Let this process have so many files open, as far as the system's hard limit allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))


def regular_file(path: Path) -> Path:
    """The path itself, if it is a file on a disk: a pipe could make its reader wait for ever.

    Raises:
        UsageError: If it is a pipe, a socket, a device or a folder.
        OSError: If it does not exist.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise UsageError(
            f"{path}: is a pipe, socket, device or folder; write what comes from it to a file, and "
            "name that"
        )
    return path


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write_text(target: Path, text: str) -> None:
    """Write a small text file atomically, as UTF-8."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


Types = Mapping[str, type | tuple[type, ...]]


def json_types(schema: type) -> Types:
    """Types of the values of a dataclass's fields in JSON, where a float may be a whole number."""
    hints = get_type_hints(schema)
    plain = {item.name: get_origin(hints[item.name]) or hints[item.name] for item in fields(schema)}
    return {name: (int, float) if kind is float else kind for name, kind in plain.items()}


def read_json_object(path: Path, types: Types, *, advice: str) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Args:
        path: The file.
        types: Keys that the object must have, and the types of their values.
        advice: What the user should do if the file is damaged; the end of the error message.

    Raises:
        ValueError: If the file holds no JSON object with such values; one line that names the file.
        OSError: If the file cannot be read.
    """
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {advice}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (it holds no object); {advice}")
    if missing := [key for key in types if key not in found]:
        raise ValueError(f"{path} is damaged (it lacks {', '.join(missing)}); {advice}")
    for key, kind in types.items():
        if not isinstance(found[key], kind):
            raise ValueError(f"{path} is damaged (its {key} is of a wrong kind); {advice}")
    return found


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, which replaces `target` if the block succeeds.

    `target` must be missing or empty; an exception or a kill leaves it so. The next attempt removes
    what a killed process left.
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
