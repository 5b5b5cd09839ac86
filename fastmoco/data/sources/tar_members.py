"""Files in a plain tar file: names and places, read header by header.

Links are resolved within the archive, and tar files that were joined by ``cat`` are read to the
end of the last. Compressed archives are refused: reading one image would mean unpacking everything
before it.
"""

import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fastmoco.data.sources.passed_over import PassedOver
from fastmoco.data.sources.samples import BROKEN_LINK, Place

_UNPACK = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\x04\x22\x4d\x18": "unlz4",
}
_BLOCK, _ZEROS_AT_ONCE, _MAX_HEADER = 512, 1 << 20, 1 << 20
_MAX_LINKS = 40  # of a chain, as Linux allows


class _BoundedReads:
    """A file for `tarfile`, which reads as many bytes for a long name as a header claims."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        """Read at most a megabyte, more than any name has."""
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._file.read(size)


def list_members(shard: Path, passed_over: PassedOver) -> list[tuple[str, Place]]:
    """List name and place of each regular file and of each link to one, in the archive's order.

    Args:
        shard: The archive.
        passed_over: Other members are added, except folders.

    Raises:
        ValueError: If the archive is compressed, cut or damaged, or not a tar file.
        OSError: If it cannot be read.
    """
    path = str(shard.absolute())
    found: list[tuple[str, Place]] = []
    links: dict[int, str] = {}  # index in `found`, and the target
    folders: set[str] = set()
    for member in _headers(shard):
        name = member.name.removeprefix("./")
        if member.isdir():
            folders.add(posixpath.normpath(name))
        elif member.issym() or member.islnk():
            base = posixpath.dirname(name) if member.issym() else ""
            links[len(found)] = posixpath.normpath(posixpath.join(base, member.linkname))
            found.append((name, Place(path, 0, 0, BROKEN_LINK)))
        elif member.isreg():
            fault = "is stored in the tar file with holes; unpack it" if member.issparse() else ""
            found.append((name, Place(path, member.offset_data, member.size, fault)))
        else:
            passed_over.add("not files", name)
    return _resolved(found, links, folders, passed_over) if links else found


def _resolved(
    found: list[tuple[str, Place]],
    links: Mapping[int, str],
    folders: set[str],
    passed_over: PassedOver,
) -> list[tuple[str, Place]]:
    """Give each link the place of its target, if the archive holds that; pass over folders."""
    index_of = {posixpath.normpath(name): index for index, (name, _) in enumerate(found)}
    folders |= {posixpath.dirname(name) or "." for name in index_of}
    members = []
    for index, (name, _) in enumerate(found):
        if links.get(index) in folders:
            passed_over.add("folder links", name)
            continue
        members.append((name, found[_target(index, links, index_of)][1]))
    return members


def _target(index: int, links: Mapping[int, str], index_of: Mapping[str, int]) -> int:
    """Where a chain of links ends; a link itself if it leads out of the archive or in a circle."""
    for _ in range(_MAX_LINKS):
        if index not in links:
            break
        index = index_of.get(links[index], index)
    return index


def _headers(shard: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of an archive, and of those that follow it in the same file."""
    _refuse_compressed(shard)
    with shard.open("rb") as file:
        start: int | None = 0
        while start is not None:
            file.seek(start)
            try:
                bounded: Any = _BoundedReads(file)
                with tarfile.open(fileobj=bounded, mode="r:") as archive:
                    while (member := archive.next()) is not None:
                        archive.members.clear()  # type: ignore[attr-defined]  # else memory fills
                        yield member
                    end = archive.offset
            except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
                reason = str(error).partition("\n")[0]
                raise ValueError(
                    f"{shard}: is cut or not a tar file ({reason}); get it again"
                ) from error
            start = _next_archive(file, end, shard)


def _next_archive(file: BinaryIO, end: int, shard: Path) -> int | None:
    """First block after an archive's end mark that is not zero; None if there is none.

    Raises:
        ValueError: If the archive has no end mark.
    """
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise ValueError(f"{shard}: is cut or damaged at byte {end}; get it again")
    position = end + _BLOCK
    while chunk := file.read(_ZEROS_AT_ONCE):
        if rest := chunk.lstrip(b"\0"):
            return (position + len(chunk) - len(rest)) // _BLOCK * _BLOCK
        position += len(chunk)
    return None


def _refuse_compressed(shard: Path) -> None:
    with shard.open("rb") as file:
        start = file.read(8)
    for magic, tool in _UNPACK.items():
        if start.startswith(magic):
            raise ValueError(f"{shard}: is compressed; unpack it first: {tool} {shard}")
