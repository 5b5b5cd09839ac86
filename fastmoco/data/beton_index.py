"""Reader of a .beton file's index, which it checks before any pixel is read.

All checks are vectorized over columns: 1.28 million samples took 0.5 to 0.8 s on a busy 2-core
machine.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton_format import (
    FORMAT_VERSION,
    HEAD,
    IMAGE_TYPE,
    LABEL_TYPE,
    MAGIC,
    METADATA,
    MODE_JPEG,
    MODE_RAW,
    PAGE_BYTES_MAX,
    SECTION_VERSION,
    TABLE,
    Handle,
    NotBetonError,
    align,
    decode_text,
    index_digest,
    is_page_size,
)
from fastmoco.data.images import MAX_PIXELS, MAX_SIDE

_PER_SAMPLE_BYTES = 12  # of the section: end of the name u64, checksum u32


@dataclass(kw_only=True, slots=True)
class Index:
    """Checked index of a .beton file; fields without a comment are those of `Dataset`."""

    page_bytes: int  # length of a page
    metadata_end: int  # byte after the metadata
    pages_end: int  # byte after the pages
    table_pointer: int  # offset of the allocation table
    names_bytes: int  # length of all names; 0 without a section
    labels: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    modes: NDArray[np.uint8]
    pointers: NDArray[np.int64]  # offset of each blob, ``(n,)``
    sizes: NDArray[np.int64]
    checksums: NDArray[np.uint32] | None = None  # of blob and id, ``(n,)``; None in FFCV's files
    classes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def names_pointer(self) -> int:
        """Offset of the names."""
        return self.pages_end + _PER_SAMPLE_BYTES * len(self.labels)


def read_index(handle: Handle) -> Index:
    """Read and check header, descriptors, metadata, section and allocation table.

    Raises:
        BetonError: If any of them is wrong.
    """
    if handle.num_bytes < HEAD.itemsize:
        raise NotBetonError(
            f"{handle.path}: is not a .beton file ({handle.num_bytes} bytes, the shortest has "
            f"{HEAD.itemsize}); name a file made by `fastmoco convert`"
        )
    head_raw = handle.read(0, HEAD.itemsize)
    head = np.frombuffer(head_raw, HEAD)[0]
    _check_header(handle, head["header"])
    ours = _check_fields(handle, head)
    count = int(head["header"]["num_samples"])
    metadata_end = HEAD.itemsize + METADATA.itemsize * count
    metadata = np.frombuffer(handle.read(HEAD.itemsize, METADATA.itemsize * count), METADATA)
    table_pointer = int(head["header"]["table_pointer"])
    table = np.frombuffer(handle.read(table_pointer, TABLE.itemsize * count), TABLE)
    pages_end = int(head["image"]["arguments"]["pointer"]) if ours else table_pointer
    index = Index(
        page_bytes=int(head["header"]["page_bytes"]),
        metadata_end=metadata_end,
        pages_end=pages_end,
        table_pointer=table_pointer,
        names_bytes=int(head["image"]["arguments"]["names_bytes"]),
        labels=metadata["label"].astype(np.int64),
        widths=metadata["width"].astype(np.int32),
        heights=metadata["height"].astype(np.int32),
        modes=metadata["mode"].copy(),
        pointers=_pointers(handle, metadata, pages_end),
        sizes=_sizes(handle, metadata, table, table_pointer),
    )
    _check_images(handle, index)
    _check_layout(handle, index)
    if ours:
        _read_section(handle, index, head["image"]["arguments"])
    hashed = handle.chunks((HEAD.itemsize, metadata_end), (pages_end, handle.num_bytes))
    digest = index_digest(head_raw, hashed)
    if ours and digest != head["image"]["arguments"]["sha256"].tobytes():
        raise handle.problem("the checksum of its index disagrees: labels or sizes changed", 0)
    index.fingerprint = digest.hex()
    return index


def _check_header(handle: Handle, header: Any) -> None:
    """Check version, counts and the resulting extents, before anything is allocated."""
    version, fields = int(header["version"]), int(header["num_fields"])
    if version != FORMAT_VERSION:
        raise NotBetonError(
            f"{handle.path}: is not a .beton file of version {FORMAT_VERSION} (byte 0 says version "
            f"{version}); name a file made by `fastmoco convert`"
        )
    if fields != 2:
        raise handle.problem(f"has {fields} fields, not the two `image` and `label`", 2)
    page_bytes, count = int(header["page_bytes"]), int(header["num_samples"])
    if not is_page_size(page_bytes):
        raise handle.problem(f"page size {page_bytes} is not a power of two, 2 MiB to 2 GiB", 4)
    if not count:
        raise handle.problem("holds no samples", 8)
    table_pointer = int(header["table_pointer"])
    expected = table_pointer + TABLE.itemsize * count
    pages_start = align(HEAD.itemsize + METADATA.itemsize * count, page_bytes)
    if table_pointer < pages_start or expected != handle.num_bytes:
        raise handle.problem(
            f"is cut, unfinished or no .beton file: {count} samples and a table at byte "
            f"{table_pointer} make {expected} bytes, the file has {handle.num_bytes}",
            8,
        )


def _check_fields(handle: Handle, head: Any) -> bool:
    """Check the two field descriptors; True if the arguments point to our section."""
    for name, kind in (("image", IMAGE_TYPE), ("label", LABEL_TYPE)):
        found = head[name]["name"].decode("ascii", "replace"), int(head[name]["type"])
        if found != (name, kind):
            raise handle.problem(
                f"expected field `{name}` of type {kind}, found `{found[0]}` of type {found[1]}", 24
            )
    if any(head["label"]["arguments"].tobytes()):
        raise handle.problem("the label field has arguments, which the format forbids", 1082)
    arguments = head["image"]["arguments"]
    if not any(arguments.tobytes()):
        return False
    if arguments["magic"] != MAGIC or int(arguments["version"]) != SECTION_VERSION:
        raise handle.problem("the image field's arguments are damaged or of a newer fastmoco", 41)
    return True


def _pointers(handle: Handle, metadata: NDArray[np.void], pages_end: int) -> NDArray[np.int64]:
    """Offsets of the blobs, which must be below ``pages_end``."""
    good = metadata["pointer"] < np.uint64(pages_end)
    _require(handle, good, "its image lies beyond the pages", column_offset=5)
    return metadata["pointer"].astype(np.int64)


def _sizes(
    handle: Handle, metadata: NDArray[np.void], table: NDArray[np.void], table_pointer: int
) -> NDArray[np.int64]:
    """Sizes of the blobs by sample; FFCV's table is in the order in which its workers finished."""
    wanted = np.arange(len(table), dtype=np.uint64)
    if not np.array_equal(table["sample_id"], wanted):
        table = table[np.argsort(table["sample_id"], kind="stable")]
        if not np.array_equal(table["sample_id"], wanted):
            sample = int(np.argmin(table["sample_id"] == wanted))
            what = "the allocation table does not have it exactly once"
            raise handle.problem(what, table_pointer, f"sample {sample}")
    agrees = table["pointer"] == metadata["pointer"]
    _require(handle, agrees, "metadata and table disagree on its offset", column_offset=5)
    good = (table["size"] > 0) & (table["size"] <= np.uint64(PAGE_BYTES_MAX))
    _require(handle, good, "the size of its image is impossible", column_offset=5)
    return table["size"].astype(np.int64)


def _check_images(handle: Handle, index: Index) -> None:
    """Check modes, dimensions and their limits; dimensions determine the size of a raw image."""
    known = (index.modes == MODE_JPEG) | (index.modes == MODE_RAW)
    _require(handle, known, "its storage mode is unknown", column_offset=0)
    pixels = index.widths.astype(np.int64) * index.heights
    sane = (pixels > 0) & (pixels <= MAX_PIXELS)
    sane &= (index.widths <= MAX_SIDE) & (index.heights <= MAX_SIDE)
    _require(handle, sane, "its width or height is not in the allowed range", column_offset=1)
    fits = (index.modes != MODE_RAW) | (index.sizes == 3 * pixels)
    _require(handle, fits, "its size is not that of its width and height", column_offset=1)


def _check_layout(handle: Handle, index: Index) -> None:
    """Check that pages are complete, and each blob in one page, without overlap."""
    pages_start = align(index.metadata_end, index.page_bytes)
    if index.pages_end % index.page_bytes or not pages_start < index.pages_end <= (
        index.table_pointer
    ):
        raise handle.problem("its pages do not end where a page ends", index.pages_end)
    ends = index.pointers + index.sizes
    within = (index.pointers >= pages_start) & (ends <= index.pages_end)
    _require(handle, within, "its image lies outside of the pages", column_offset=5)
    whole = index.pointers // index.page_bytes == (ends - 1) // index.page_bytes
    _require(handle, whole, "its image straddles two pages", column_offset=5)
    order: Any = slice(None)
    if not (index.pointers[1:] > index.pointers[:-1]).all():
        order = np.argsort(index.pointers, kind="stable")
    apart = np.ones(len(ends), bool)
    apart[order] = np.append(index.pointers[order][1:] >= ends[order][:-1], True)
    _require(handle, apart, "its image overlaps the next", column_offset=5)


def _read_section(handle: Handle, index: Index, arguments: Any) -> None:
    """Read checksums, class names and facts into ``index``; names stay in the file until needed."""
    count = len(index.labels)
    names_end = index.names_pointer + index.names_bytes
    classes_end = names_end + int(arguments["classes_bytes"])
    if classes_end + int(arguments["facts_bytes"]) != index.table_pointer:
        raise handle.problem("the section of checksums and names has a wrong size", 65)
    index.checksums = np.frombuffer(handle.read(index.pages_end + 8 * count, 4 * count), "<u4")
    classes = decode_text(handle.read(names_end, classes_end - names_end))
    index.classes = classes.split("\0") if classes else []
    try:
        index.facts = _checked_facts(handle.read(classes_end, index.table_pointer - classes_end))
    except (ValueError, TypeError, RecursionError) as error:
        raise handle.problem(f"its facts are damaged ({error})", classes_end) from error


def _checked_facts(raw: bytes) -> dict[str, Any]:
    """Parse and check the facts: training uses the channel statistics."""
    facts = json.loads(raw or b"{}")
    if not isinstance(facts, dict):
        raise ValueError("not a JSON object")
    for key in ("channel_mean", "channel_std"):
        values = facts.get(key, [0.5] * 3)
        if len(values) != 3 or not all(math.isfinite(v) and 0 <= v <= 1 for v in values):
            raise ValueError(f"{key} is not three numbers from 0 to 1")
    for key in ("num_measured_pixels", "num_duplicates", "num_quarantined"):
        value = facts.get(key, 0)
        if not isinstance(value, int) or not 0 <= value < 1 << 63:
            raise ValueError(f"{key} is not a count")
    return facts


def _require(handle: Handle, good: NDArray[np.bool_], what: str, *, column_offset: int) -> None:
    """Raise for the first sample that is not ``good``, at its entry in the metadata."""
    if not good.all():
        sample = int(np.argmin(good))
        byte = HEAD.itemsize + METADATA.itemsize * sample + column_offset
        raise handle.problem(what, byte, f"sample {sample}")
