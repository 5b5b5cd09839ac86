"""Stored bytes of a dataset file, read and checked by loops of Numba, without the GIL.

Trade-off: only files with checksums, since bytes that are wrong in any way must be refused here;
`BetonFile.blob` then reads them again, and says what is wrong. Left out: files of FFCV, folders.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from fastmoco.caches import cached_njit
from fastmoco.data.beton import BetonFile
from fastmoco.data.beton_set import BetonSet
from fastmoco.data.dataset import Dataset
from fastmoco.data.jpeg_codes import UINT8

INT64 = npt.NDArray[np.int64]
_POLYNOMIAL = 0xEDB88320  # of CRC-32, as zlib has it
_bytes: Any = types.CPointer(types.uint8)  # type: ignore[no-untyped-call]
# POSIX pread(2): descriptor, buffer, bytes, offset; -1 on errors.
_pread: Any = types.ExternalFunction(
    "pread", types.intp(types.int32, _bytes, types.intp, types.int64)
)


class StoredRows(NamedTuple):
    """Where the images of a dataset are."""

    descriptors: npt.NDArray[np.int32]
    """Open files, ``(F,)``."""
    starts: INT64
    """Number of the first image of each file, ``(F,)``."""
    pointers: INT64
    """Offset of each image in its file, ``(n,)``, bytes."""
    sizes: INT64
    """Length of each image, ``(n,)``, bytes."""
    checksums: npt.NDArray[np.uint32]
    """`beton_format.bind_checksum` of each image, ``(n,)``."""
    modes: UINT8
    """As in `Dataset`, ``(n,)``."""
    heights: npt.NDArray[np.int32]
    """As in `Dataset`, ``(n,)``."""
    widths: npt.NDArray[np.int32]
    """As in `Dataset`, ``(n,)``."""


def stored_rows(dataset: Dataset) -> StoredRows | None:
    """Tell where a dataset's images are; None without files here, or if one has no checksums."""
    if isinstance(dataset, BetonSet):
        files = dataset.files
    elif isinstance(dataset, BetonFile):
        files = (dataset,)
    else:
        return None
    checksums = [file.checksums for file in files if file.checksums is not None]
    if len(checksums) < len(files) or min(file.descriptor for file in files) < 0:
        return None
    return StoredRows(
        np.array([file.descriptor for file in files], np.int32),
        np.cumsum([0, *(len(file) for file in files[:-1])], dtype=np.int64),
        np.concatenate([file.pointers for file in files]),
        dataset.sizes,
        np.concatenate(checksums),
        dataset.modes,
        dataset.heights,
        dataset.widths,
    )


def _crc_tables() -> npt.NDArray[np.uint32]:
    """CRC-32 of each byte, followed by 0 to 7 zero bytes, ``(8, 256)``."""
    tables = np.zeros((8, 256), np.uint32)
    tables[0] = np.arange(256)
    for _ in range(8):
        tables[0] = tables[0] >> 1 ^ np.where(tables[0] & 1, np.uint32(_POLYNOMIAL), 0)
    for zeros in range(1, 8):
        before = tables[zeros - 1]
        tables[zeros] = tables[0][before & 0xFF] ^ (before >> 8)
    return tables


_CRC = _crc_tables()


@cached_njit()
def crc32(data: UINT8, size: int) -> int:
    """CRC-32 of the first ``size`` bytes, as `zlib.crc32`, eight at a time."""
    value, at = np.uint32(0xFFFFFFFF), 0
    while at + 8 <= size:
        for i in range(4):
            value ^= np.uint32(np.uint32(data[at + i]) << np.uint32(8 * i))
        value = np.uint32(
            _CRC[7, value & 0xFF]
            ^ _CRC[6, (value >> 8) & 0xFF]
            ^ _CRC[5, (value >> 16) & 0xFF]
            ^ _CRC[4, value >> 24]
            ^ _CRC[3, data[at + 4]]
            ^ _CRC[2, data[at + 5]]
            ^ _CRC[1, data[at + 6]]
            ^ _CRC[0, data[at + 7]]
        )
        at += 8
    while at < size:
        value = np.uint32(_CRC[0, (value ^ data[at]) & 0xFF] ^ (value >> 8))
        at += 1
    return int(value ^ np.uint32(0xFFFFFFFF))


@cached_njit()
def read_stored(stored: StoredRows, sample_id: int, blob: UINT8) -> int:
    """Read an image's bytes; return their number, or -1 if anything is wrong with them.

    Args:
        stored: Where they are.
        sample_id: Number of the image, within the dataset.
        blob: At least eight bytes longer than the image; overwritten.
    """
    size = stored.sizes[sample_id]
    if size + 8 > len(blob):
        return -1
    file = np.searchsorted(stored.starts, sample_id, side="right") - 1
    offset = stored.pointers[sample_id]
    if _pread(stored.descriptors[file], blob.ctypes, size, offset) != size:
        return -1
    number = sample_id - stored.starts[file]
    for i in range(8):
        blob[size + i] = (number >> (8 * i)) & 0xFF
    return size if crc32(blob, size + 8) == stored.checksums[sample_id] else -1
