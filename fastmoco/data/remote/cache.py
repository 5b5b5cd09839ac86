"""Folder of dataset files that came from elsewhere, with a limit on its size.

It belongs to the machine, not to a run: all commands and processes share it. Each state of a set
has a folder of its own, so a set that changes elsewhere replaces nothing here. Where a new set
needs room, the set that was unused for the longest time is removed, but never one that is open.
fsspec's own caches have no limit, no locks and no checksums.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fastmoco.addresses import Address, as_path
from fastmoco.caches import kept_folder
from fastmoco.data.remote.storage import RemoteError, RemoteObject
from fastmoco.data.shards import check_shards
from fastmoco.draws.host import NUM_STREAMS
from fastmoco.errors import UsageError
from fastmoco.files import atomic_write_text, lock_descriptor, locked, read_json_object

FOLDER_VARIABLE = "FASTMOCO_DATA_CACHE"
LIMIT_VARIABLE = "FASTMOCO_DATA_CACHE_GB"
DEFAULT_LIMIT_GB = 200.0
RECORD = "set.json"
LOCK = ".lock"
DIGITS = 12
"""Hex digits at the end of the name of a set's folder."""


@dataclass(frozen=True, slots=True)
class CachedSet:
    """The files of one state of a set, and the folder that has or will have them."""

    folder: Path
    objects: tuple[RemoteObject, ...]

    def path(self, known: RemoteObject) -> Path:
        """Where a file is, once it was read to its end and checked."""
        return self.folder / known.address.name

    def partial(self, known: RemoteObject) -> Path:
        """Where its beginning is."""
        return self.folder / f"{known.address.name}.partial"

    def index(self, known: RemoteObject) -> Path:
        """Where its index is: the file with a hole for its pages."""
        return self.folder / f"{known.address.name}.index"

    @property
    def paths(self) -> list[Path]:
        """Where all files are, in order."""
        return [self.path(known) for known in self.objects]

    @property
    def missing(self) -> list[RemoteObject]:
        """Objects whose files are not there yet."""
        return [known for known in self.objects if not self.path(known).exists()]

    @property
    def num_bytes(self) -> int:
        """Length of all files together, as far as servers say it."""
        return sum(known.num_bytes or 0 for known in self.objects)

    @property
    def index_bytes(self) -> int:
        """What its indexes take of the disk."""
        return sum(map(_length, self.folder.glob("*.index")))

    @property
    def is_streamed(self) -> bool:
        """Whether it has so many files that each comes when it is read."""
        return len(self.objects) >= NUM_STREAMS

    @property
    def stored_bytes(self) -> int:
        """What its folder takes of the disk."""
        return sum(map(_length, self.folder.glob("*.beton*")))

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Within the block no other process writes files of this set."""
        with locked(self.folder / LOCK):
            yield


@dataclass(frozen=True, slots=True)
class DataCache:
    """The folder of all sets."""

    folder: Path
    limit_bytes: int

    @classmethod
    def of_environment(cls) -> Self:
        """The cache that environment variables name, or that of this user.

        Raises:
            UsageError: If a variable is wrong, or no folder can be written.
        """
        named = os.environ.get(FOLDER_VARIABLE)
        home = Path(named).expanduser().absolute() if named else kept_folder()
        if home is None:
            raise UsageError(
                f"no folder can be written for files from elsewhere; set {FOLDER_VARIABLE}=FOLDER"
            )
        given = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT_GB))
        try:
            limit = float(given)
        except ValueError:
            limit = math.nan
        if not 0 < limit < math.inf:
            raise UsageError(f"{LIMIT_VARIABLE} must be a number of GB above 0, got {given}")
        return cls(home if named else home / "data", int(limit * 1e9))

    def set_of(self, objects: Sequence[RemoteObject]) -> CachedSet:
        """The place of a set; nothing is made."""
        first = objects[0].address
        state = "\n".join(f"{known.address} {known.version}" for known in objects)
        digest = hashlib.sha256(state.encode()).hexdigest()[:DIGITS]
        host = re.sub(r"[^\w.-]", "-", first.parts[1])
        return CachedSet(self.folder / f"{host}-{digest}", tuple(objects))

    def former(self, address: Address) -> CachedSet | None:
        """The complete set of a file or pattern that was used last, in whatever state."""
        for known in sorted(self._sets(), key=_last_use, reverse=True):
            if not known.missing and _is_set_of(address, [one.address for one in known.objects]):
                return known
        return None

    @contextmanager
    def used(self, wanted: CachedSet, *, makes_room: bool = True) -> Iterator[None]:
        """Make room for a set, and keep its folder within the block.

        Files that are opened within the block stay as long as they are open, by a lock of their
        own (`BetonFile.hold`).

        Args:
            wanted: The set.
            makes_room: Remove others where it needs room as a whole.

        Raises:
            RemoteError: If the limit or the disk leaves too little room.
            OSError: If the folder cannot be written.
        """
        if not wanted.missing and not os.access(self.folder, os.W_OK):  # somebody else's
            yield
            return
        with ExitStack() as held:
            with locked(self.folder / LOCK):
                if wanted.missing and makes_room:
                    self._make_room(wanted)
                wanted.folder.mkdir(exist_ok=True)
                _write_record(wanted)
                held.enter_context(_held(wanted.folder, shared=True))
            yield

    def make_room_in(
        self, wanted: CachedSet, num_bytes: int, remove: Callable[[], bool], *, of_all: bool
    ) -> int:
        """Make room for a part of a set: by sets that are unused, then by other parts of it.

        Args:
            wanted: The set, which this process keeps.
            num_bytes: What is to be written.
            remove: Removes a part of it that is not needed soon; False if there is none.
            of_all: At last remove shards of other sets that nobody reads now.

        Returns:
            Bytes that are lacking in the end, or 0.
        """
        with locked(self.folder / LOCK):
            return self._free(wanted, num_bytes, remove, of_all=of_all)

    def _free(
        self, wanted: CachedSet, num_bytes: int, remove: Callable[[], bool], *, of_all: bool
    ) -> int:
        others = self._others(wanted)
        streamed = (one for one in others if of_all and one.is_streamed)
        unused = map(_remove_unused, others)
        shards = (remove_unheld(path) for one in streamed for path in one.folder.glob("*.beton"))
        while (lacking := self._lacking(num_bytes)) and (any(unused) or remove() or any(shards)):
            pass
        return lacking

    def _lacking(self, num_bytes: int) -> int:
        """Bytes that must go before so many come."""
        stored = sum(one.stored_bytes for one in self._sets())
        free = shutil.disk_usage(self.folder).free
        return max(0, stored + num_bytes - self.limit_bytes, num_bytes - free)

    def _others(self, wanted: CachedSet) -> list[CachedSet]:
        """Other sets, unused for the longest time first; what is damaged is removed."""
        sets = [one for one in self._sets() if one.folder != wanted.folder]
        for damaged in (one for one in sets if not one.objects):
            _remove_unused(damaged)
        return sorted((one for one in sets if one.objects), key=_last_use)

    def _make_room(self, wanted: CachedSet) -> None:
        here = sum(_length(wanted.partial(one)) for one in wanted.missing)
        needed = sum(one.num_bytes or 0 for one in wanted.missing) - here
        if wanted.num_bytes > self.limit_bytes:
            raise RemoteError(
                f"{wanted.objects[0].address.parent}: {_gigabytes(wanted.num_bytes)} are more than "
                f"the limit of the cache {self.folder}, {_gigabytes(self.limit_bytes)}; set "
                f"{LIMIT_VARIABLE}={math.ceil(wanted.num_bytes / 1e9)} or more"
            )
        lacking = self._free(wanted, needed, lambda: False, of_all=True)
        if needed > (free := shutil.disk_usage(self.folder).free):
            raise RemoteError(
                f"{self.folder}: the disk has {_gigabytes(free)} free, and "
                f"{wanted.objects[0].address.parent} needs {_gigabytes(needed)}; free some space, "
                f"or set {FOLDER_VARIABLE}=FOLDER on another disk"
            )
        if lacking:
            raise RemoteError(
                f"{self.folder}: the cache is full, by sets that other processes use; wait for "
                f"them, or set {LIMIT_VARIABLE} to "
                f"{math.ceil((self.limit_bytes + lacking) / 1e9)} or more"
            )

    def _sets(self) -> Iterator[CachedSet]:
        """All sets of which there is anything; one with a damaged record has no objects.

        Other folders are not ours: a user may name a cache folder that has some.
        """
        for record in sorted(self.folder.glob(f"*-{'[0-9a-f]' * DIGITS}/{RECORD}")):
            with suppress(OSError):  # another process has removed it
                yield _read_record(record)


def _is_set_of(address: Address, found: Sequence[Address]) -> bool:
    """Whether addresses are those of a file, or of all shards that a pattern matches."""
    if "*" not in address.name:
        return [*found] == [address]
    try:
        check_shards(address, [one.name for one in found])
    except ValueError:
        return False
    return all(one.parent == address.parent and one.match(address.name) for one in found)


def _length(path: Path) -> int:
    """Bytes of a file without its holes; 0 if another process has renamed or removed it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0
    return min(found.st_size, 512 * found.st_blocks) if path.suffix == ".index" else found.st_size


def remove_unheld(path: Path) -> bool:
    """Remove a file of a set unless a process holds it; whether it is gone."""
    try:
        with _held(path):
            path.unlink()
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):  # in use, or another user's
        return False
    return True


def _last_use(known: CachedSet) -> float:
    try:
        return (known.folder / RECORD).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _write_record(wanted: CachedSet) -> None:
    """Write the record, or touch a sound one: its time is that of the last use."""
    record = wanted.folder / RECORD
    if record.exists() and _read_record(record).objects:
        os.utime(record)
        return
    objects = [
        {"address": str(one.address), "num_bytes": one.num_bytes, "version": one.version}
        for one in wanted.objects
    ]
    atomic_write_text(record, json.dumps({"objects": objects}, indent=1) + "\n")


def _read_record(record: Path) -> CachedSet:
    """Read the record of a set.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        found: Any = read_json_object(record, {"objects": list}, advice="remove it")["objects"]
        objects = [
            RemoteObject(Address(as_path(one["address"])), one["num_bytes"], one["version"])
            for one in found
        ]
    except (ValueError, TypeError, KeyError):
        objects = []
    return CachedSet(record.parent, tuple(objects))


@contextmanager
def _held(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock on a file or folder that exists, without waiting.

    Raises:
        BlockingIOError: If another process holds it.
    """
    # NFS gives an exclusive lock on a file only to who may write to it.
    mode = os.O_RDONLY if shared or path.is_dir() else os.O_RDWR
    descriptor = os.open(path, mode | os.O_CLOEXEC)
    try:
        lock_descriptor(descriptor, path, wait=False, shared=shared)
        yield
    finally:
        os.close(descriptor)


def _remove_unused(known: CachedSet) -> bool:
    """Remove a set unless a process uses it; whether it was removed.

    Its record goes last: what a kill leaves is a set that later commands know, and remove.
    """
    with ExitStack() as held:
        try:
            held.enter_context(_held(known.folder))
            for path in known.folder.glob("*.beton"):  # also where the record is damaged
                held.enter_context(_held(path))
        except (BlockingIOError, PermissionError):  # in use, or another user's
            return False
        for path in known.folder.iterdir():
            if path.name != RECORD:
                path.unlink()
        shutil.rmtree(known.folder)
    return True


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"
