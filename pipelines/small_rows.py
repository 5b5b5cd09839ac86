"""Views of small images, several rows in one call without the GIL.

Trade-off: an image of 32 pixels is read, decoded and cropped in the time that Python takes to call
the three functions for it, and threads wait for each other meanwhile. So all of it is here once
more, in loops that Numba compiles. They do what `beton_loader` does, bit for bit, and leave to it
what they do not: large images, JPEGs that are not plain (`jpeg_codes`), and whatever is wrong.
"""

import threading
from typing import Self

import numpy as np
import numpy.typing as npt

from fastmoco.caches import cached_njit
from fastmoco.data.beton_format import MODE_RAW
from fastmoco.data.dataset import Dataset
from fastmoco.data.jpeg_codes import PAD_BYTES, UINT8
from fastmoco.data.jpeg_pixels import MAX_SIDE, Room, decode_plain, make_room
from fastmoco.data.stored_rows import INT64, StoredRows, read_stored, stored_rows
from fastmoco.pipelines.prefetch import Slot
from fastmoco.pipelines.resize import crop_and_resize_views

MAX_BYTES = 3 * MAX_SIDE * MAX_SIDE


class SmallRows:
    """Function that fills rows of a slot, of all images that it can."""

    def __init__(self, stored: StoredRows) -> None:
        """Note where the images are."""
        self._stored = stored
        self._memory = threading.local()

    @classmethod
    def of(cls, dataset: Dataset) -> Self | None:
        """Serve a dataset if most of its images are small and `stored_rows` finds them."""
        stored = stored_rows(dataset)
        if stored is None:
            return None
        small = np.maximum(stored.heights, stored.widths) <= MAX_SIDE
        return cls(stored) if small.mean() > 0.5 else None

    def __call__(self, slot: Slot, rows: range, reading: INT64) -> list[int]:
        """Fill rows; return those that are left.

        Args:
            slot: A batch.
            rows: Consecutive rows of it.
            reading: Number of the row that is read, counted from the first, ``(1,)``; overwritten.
        """
        if not hasattr(self._memory, "mine"):
            blob, pixels = np.empty(MAX_BYTES + PAD_BYTES, np.uint8), np.empty(MAX_BYTES, np.uint8)
            self._memory.mine = make_room(MAX_BYTES), blob, pixels
        part = slice(rows.start, rows.stop)
        ids = slot.host.sample_id.numpy()[part]
        done = np.zeros(len(rows), np.bool_)
        _fill(
            self._stored,
            ids,
            slot.boxes[part],
            slot.pixels[part],
            reading,
            done,
            *self._memory.mine,
        )
        return (
            []
            if done.all()
            else [row for row, is_done in zip(rows, done, strict=True) if not is_done]
        )


@cached_njit()
def _fill(
    stored: StoredRows,
    ids: INT64,
    boxes: npt.NDArray[np.int32],
    out: UINT8,
    reading: INT64,
    done: npt.NDArray[np.bool_],
    room: Room,
    blob: UINT8,
    pixels: UINT8,
) -> None:
    """Read, decode and crop images.

    Args:
        stored: Where they are.
        ids: Their numbers, ``(N,)``.
        boxes: ``(N, V, 4)``: top, left, height, width.
        out: ``(N, V, size, size, 3)``; overwritten.
        reading: See `SmallRows.__call__`.
        done: Whether each is in ``out``, ``(N,)``; overwritten.
        room: Overwritten.
        blob: Overwritten.
        pixels: Overwritten.
    """
    for row in range(len(ids)):
        reading[0] = row
        sample_id = ids[row]
        height, width = int(stored.heights[sample_id]), int(stored.widths[sample_id])
        if max(height, width) > MAX_SIDE:
            continue
        size = read_stored(stored, sample_id, blob)
        if size < 0:
            continue
        if stored.modes[sample_id] == MODE_RAW:
            image = blob[: 3 * height * width].reshape(height, width, 3)
        else:
            image = pixels[: 3 * height * width].reshape(height, width, 3)
            if not decode_plain(blob, size, room, image):
                continue
        crop_and_resize_views(image, boxes[row], out[row])
        done[row] = True
