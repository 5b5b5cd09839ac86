"""Writes .beton files, streaming and atomically (`beton_format` has the layout).

Memory holds one page, and 60 bytes and the name of each sample. All goes into ``NAME.partial``
beside the target, which takes the target's place, in one step, only when it is whole and on disk.
What a killed run leaves is overwritten by the next.
"""

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton_format import (
    FORMAT_VERSION,
    HEAD,
    IMAGE_TYPE,
    LABEL_TYPE,
    MAGIC,
    METADATA,
    PAGE_BYTES_MAX,
    PAGE_BYTES_MIN,
    SECTION_VERSION,
    TABLE,
    align,
    bind_checksum,
    encode_text,
    index_digest,
)
from fastmoco.files import sync_folder


class BetonWriter:
    """A context in which a .beton file comes to be; without `commit` nothing is left of it.

    Args:
        path: The target; a file that stands there stays as it is until `commit`.
        capacity: The most samples that `add` will be called for; room for their metadata precedes
            the pages.
        page_bytes: Page size, a power of two from 2 MiB to 2 GiB; the longest possible blob.

    Raises:
        ValueError: If ``page_bytes`` is no such number.
        OSError: If the temporary file cannot be made, or another process is writing it.
    """

    def __init__(self, path: Path, *, capacity: int, page_bytes: int = 1 << 23) -> None:
        if page_bytes & (page_bytes - 1) or not PAGE_BYTES_MIN <= page_bytes <= PAGE_BYTES_MAX:
            raise ValueError(f"page_bytes={page_bytes} is no power of two from 2 MiB to 2 GiB")
        self.path = path
        self.page_bytes = page_bytes
        self.num_samples = 0
        self._metadata = np.zeros(capacity, METADATA)
        self._table = np.zeros(capacity, TABLE)
        self._checksums = np.zeros(capacity, "<u4")
        self._name_ends = np.zeros(capacity, "<u8")
        self._names = bytearray()
        self._page = bytearray()
        self._page_start = align(HEAD.itemsize + METADATA.itemsize * capacity, page_bytes)
        self._temporary = path.with_name(path.name + ".partial")
        self._descriptor = _open_alone(self._temporary)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._descriptor >= 0:
            self._temporary.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def metadata(self) -> NDArray[np.void]:
        """What is stored of each sample so far, a view of dtype METADATA."""
        return self._metadata[: self.num_samples]

    def add(
        self, blob: bytes, *, mode: int, width: int, height: int, label: int, name: str, crc32: int
    ) -> None:
        """Appends a sample.

        Args:
            blob: The image as stored, of 1 to ``page_bytes`` bytes.
            mode: MODE_JPEG or MODE_RAW.
            width: In pixels.
            height: In pixels.
            label: Class, or -1.
            name: The image's relative name in its source.
            crc32: CRC-32 of ``blob``.

        Raises:
            OSError: If it cannot be written.
        """
        if not 0 < len(blob) <= self.page_bytes:
            raise ValueError(f"{name}: {len(blob)} bytes do not fit page_bytes={self.page_bytes}")
        if len(self._page) + len(blob) > self.page_bytes:
            self._flush_page()
        sample, pointer = self.num_samples, self._page_start + len(self._page)
        self._metadata[sample] = (mode, width, height, pointer, label)
        self._table[sample] = (sample, pointer, len(blob))
        self._checksums[sample] = bind_checksum(sample, crc32)
        self._names += encode_text(name)
        self._name_ends[sample] = len(self._names)
        self._page += blob
        self.num_samples += 1

    def finish(self, classes: Sequence[str]) -> str:
        """Writes the index around the pages and brings all to the disk.

        Returns:
            The fingerprint, hex.

        Raises:
            OSError: If it cannot be written.
        """
        self._flush_page()
        count, pages_end = self.num_samples, self._page_start
        class_names = encode_text("\0".join(classes))
        section = b"".join(
            [
                self._name_ends[:count].tobytes(),
                self._checksums[:count].tobytes(),
                bytes(self._names),
                class_names,
            ]
        )
        head = np.zeros((), HEAD)
        head["header"] = (FORMAT_VERSION, 2, self.page_bytes, count, pages_end + len(section))
        head["image"]["type"], head["image"]["name"] = IMAGE_TYPE, b"image"
        head["label"]["type"], head["label"]["name"] = LABEL_TYPE, b"label"
        arguments = head["image"]["arguments"]
        arguments["magic"], arguments["version"] = MAGIC, SECTION_VERSION
        arguments["pointer"] = pages_end
        arguments["names_bytes"] = len(self._names)
        arguments["classes_bytes"] = len(class_names)
        metadata, table = self._metadata[:count].tobytes(), self._table[:count].tobytes()
        digest = index_digest(head.tobytes(), (metadata, section, table))
        arguments["sha256"] = np.void(digest)
        self._write(section + table, pages_end)
        self._write(head.tobytes() + metadata, 0)
        os.fsync(self._descriptor)
        return digest.hex()

    def commit(self) -> None:
        """Puts the finished file in the target's place.

        Raises:
            OSError: If that fails; the old file then stands.
        """
        os.replace(self._temporary, self.path)
        os.close(self._descriptor)
        self._descriptor = -1
        sync_folder(self.path.parent)

    def _flush_page(self) -> None:
        """Writes the page that is being filled, padded with zeros, and starts the next."""
        if self._page:
            self._write(self._page.ljust(self.page_bytes, b"\0"), self._page_start)
            self._page_start += self.page_bytes
            self._page.clear()

    def _write(self, data: bytes | bytearray, offset: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._descriptor, view, offset)
            view, offset = view[done:], offset + done


def _open_alone(path: Path) -> int:
    """Opens the temporary file empty, unless another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The other one may have put the file in place between the two calls above.
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise BlockingIOError
        os.ftruncate(descriptor, 0)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError | FileNotFoundError):
            raise OSError(f"{path}: another process is writing it; wait for its end") from error
        raise
    return descriptor
