"""The .beton format: FFCV's, version 2, plus a section of checksums and names that FFCV skips.

Layout, little-endian, in the order of the file::

    header            24 bytes: version, number of fields, page size, number of samples, table
    descriptors       2 x 1,041 bytes, `image` (type 2) and `label` (type 1): type, name, arguments
    metadata          24 bytes per sample: mode, width, height, offset of the blob; label
    pages             from a multiple of the page size on; no blob straddles two pages
    section           (ours) ends of the names u64, CRC-32 of the blobs u32, names, class names,
                      facts (JSON: channel statistics and counts)
    allocation table  24 bytes per sample, to the end of the file: sample, offset, size

FFCV never reads the image field's arguments, so they point to the section and hold the SHA-256 of
everything but the pages. A blob's CRC-32 covers the blob and then its sample id, which detects
swapped blobs. Names and class names are UTF-8 (undecodable bytes of file names become surrogates).
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmoco.errors import UsageError

FORMAT_VERSION = 2
MODE_JPEG = 0
MODE_RAW = 1
PAGE_BYTES_MIN = 1 << 21
PAGE_BYTES_MAX = 1 << 31
IMAGE_TYPE = 2
LABEL_TYPE = 1
MAGIC = b"fastmoco"
SECTION_VERSION = 2

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_bytes", "<u4"),
        ("num_samples", "<u8"),
        ("table_pointer", "<u8"),
    ]
)
SECTION = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u8"),
        ("pointer", "<u8"),
        ("names_bytes", "<u8"),
        ("classes_bytes", "<u8"),
        ("sha256", "V32"),
        ("facts_bytes", "<u8"),
        ("unused", "V944"),
    ]
)
HEAD = np.dtype(
    [
        ("header", HEADER),
        ("image", [("type", "u1"), ("name", "S16"), ("arguments", SECTION)]),
        ("label", [("type", "u1"), ("name", "S16"), ("arguments", "V1024")]),
    ]
)
METADATA = np.dtype(
    {
        "names": ["mode", "width", "height", "pointer", "label"],
        "formats": ["u1", "<u2", "<u2", "<u8", "<i8"],
        "offsets": [0, 1, 3, 5, 16],
        "itemsize": 24,
    }
)
TABLE = np.dtype([("sample_id", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
ARGUMENTS_OFFSET = HEADER.itemsize + 17
_DIGEST = slice(ARGUMENTS_OFFSET + 40, ARGUMENTS_OFFSET + 72)


class BetonError(ValueError):
    """A .beton file is damaged, cut, or of another format; one line says where and what to do."""


class NotBetonError(BetonError, UsageError):
    """A file is of another format from its first bytes on, as far as they tell."""


def index_digest(head: bytes, parts: Iterable[bytes]) -> bytes:
    """SHA-256 of head, metadata, section and table; the head's own digest counts as zeros."""
    blank = bytearray(head)
    blank[_DIGEST] = bytes(32)
    digest = hashlib.sha256(blank)
    for part in parts:
        digest.update(part)
    return digest.digest()


def bind_checksum(sample_id: int, crc32: int) -> int:
    """CRC-32 of a blob followed by its sample id as a u64, given the CRC-32 of the blob."""
    return zlib.crc32(struct.pack("<Q", sample_id), crc32)


def unbind_checksum(sample_id: int, checksum: int) -> int:
    """Checksum of a blob alone, from its `bind_checksum`: equal blobs have equal ones.

    The CRC-32 of a concatenation is a one-to-one function of the first part's, XOR the second's.
    """
    return checksum ^ zlib.crc32(struct.pack("<Q", sample_id))


def blob_checksum(blob: bytes | memoryview) -> int:
    """Compute what `unbind_checksum` returns from a blob."""
    return unbind_checksum(0, bind_checksum(0, zlib.crc32(blob)))


def is_page_size(page_bytes: int) -> bool:
    """Whether a page size is allowed: a power of two from 2 MiB to 2 GiB."""
    return not page_bytes & (page_bytes - 1) and PAGE_BYTES_MIN <= page_bytes <= PAGE_BYTES_MAX


def align(offset: int, page_bytes: int) -> int:
    """First multiple of ``page_bytes`` at or after ``offset``."""
    return -(-offset // page_bytes) * page_bytes


def encode_text(text: str) -> bytes:
    """Encode as UTF-8, keeping the undecodable bytes of file names."""
    return text.encode("utf-8", "surrogateescape")


def decode_text(raw: bytes) -> str:
    """Inverse of `encode_text`."""
    return raw.decode("utf-8", "surrogateescape")


def printable(name: str) -> str:
    """A file's name as valid UTF-8, for tables; undecodable bytes become U+FFFD."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def sidecar_path(path: Path) -> Path:
    """Path of the JSON file of facts: ``train.beton`` -> ``train.beton.json``."""
    return path.with_name(path.name + ".json")


@dataclass(slots=True)
class Handle:
    """An open file, read by `pread`, whose errors name file and byte.

    Not a memory map: a file that shrinks or a disk that fails raises an error here, but would kill
    a process that maps it. Copying 100 KB costs little beside decoding them.
    """

    path: Path
    descriptor: int
    num_bytes: int

    def close(self) -> None:
        """Close the file; later reads raise BetonError."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Read exactly ``size`` bytes from ``offset``.

        Raises:
            BetonError: If the file is too short, is closed or cannot be read.
        """
        if self.descriptor < 0:
            raise BetonError(f"{self.path}: is closed; open it again")
        try:
            parts = [os.pread(self.descriptor, size, offset)]
            done = len(parts[0])
            while parts[-1] and done < size:  # Linux reads at most 2 GiB at once
                parts.append(os.pread(self.descriptor, size - done, offset + done))
                done += len(parts[-1])
        except OSError as error:
            raise self.problem(f"cannot be read ({error.strerror})", offset) from error
        if done < size:
            raise self.problem("the file ends too early", offset + done)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def chunks(self, *ranges: tuple[int, int], chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        """Yield the bytes of some ranges (start, end), in order and in chunks.

        Raises:
            BetonError: As `read`.
        """
        for start, end in ranges:
            for offset in range(start, end, chunk_bytes):
                yield self.read(offset, min(chunk_bytes, end - offset))

    def problem(self, what: str, byte: int, sample: str = "") -> BetonError:
        """Error for a fault at ``byte``, and in ``sample`` if one is given."""
        where = f"{sample}, byte {byte}" if sample else f"byte {byte}"
        remedy = "restore a good copy, or make the file again with `fastmoco convert`"
        return BetonError(f"{self.path}: {where}: {what}; {remedy}")
