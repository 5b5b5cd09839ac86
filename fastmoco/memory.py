"""Main memory that this process may use: that of the machine, or less in a container or job.

Docker, Kubernetes and Slurm bound it by control groups (cgroups, version 1 or 2), which
``/proc/meminfo`` does not know.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")


class _Names(NamedTuple):
    """Files of a version of control groups."""

    folder: str
    limit: str
    used: str
    reclaimable: str
    """Key in ``memory.stat`` of file pages that count as used and are dropped when needed."""


VERSION_1 = _Names(
    "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)
VERSION_2 = _Names("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def total_bytes(root: Path = ROOT) -> int:
    """Memory in bytes, used or not."""
    return min([_meminfo(root, "MemTotal"), *(limit for limit, _ in _bounds(root))])


def free_bytes(root: Path = ROOT) -> int:
    """Memory in bytes that can be had without swapping."""
    return max(0, min([_meminfo(root, "MemAvailable"), *(free for _, free in _bounds(root))]))


def _meminfo(root: Path, key: str) -> int:
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    return _table(lines)[f"{key}:"] * 1024


def _bounds(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and free bytes of each control group that this process is in."""
    for names, folder in _groups(root):
        try:
            limit = int((folder / names.limit).read_text(encoding="ascii"))
            used = int((folder / names.used).read_text(encoding="ascii"))
            found = _table((folder / "memory.stat").read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):  # not there, or "max": no limit
            continue
        yield limit, limit - used + found.get(names.reclaimable, 0)


def _groups(root: Path) -> Iterator[tuple[_Names, Path]]:
    """Yield the folders of this process's control groups for memory, from the top.

    A container may see its own group as the top one, under a path that only its host has.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = VERSION_1 if "memory" in controllers.split(",") else VERSION_2
        if names is VERSION_1 or not controllers:
            parts = PurePosixPath(path).parts[1:]
            for depth in range(len(parts) + 1):
                yield names, root.joinpath(names.folder, *parts[:depth])


def _table(lines: list[str]) -> dict[str, int]:
    """Read lines of a name, blanks, a number and maybe a unit."""
    return {words[0]: int(words[1]) for words in map(str.split, lines)}
