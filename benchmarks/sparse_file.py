"""Dataset files of millions of images that take no room: an index, and holes for the pixels."""

import zlib
from pathlib import Path

import numpy as np

from fastmoco.data.beton_format import MODE_RAW, bind_checksum
from fastmoco.data.beton_writer import BetonWriter

NUM_CLASSES = 1000


class SparseWriter(BetonWriter):
    """A writer of black images that are never written: the file system reads holes as zeros."""

    def add_black(self, count: int, side: int) -> None:
        """Registers all of the file's samples, named and labeled as ImageNet's.

        Args:
            count: How many; the writer's capacity.
            side: Of each image, in pixels.
        """
        size = 3 * side * side
        rows = np.arange(count)
        per_page = self.page_bytes // size
        pages, places = np.divmod(rows, per_page)
        pointers = self._pages_start + pages * self.page_bytes + places * size
        labels = rows * NUM_CLASSES // count
        for name, column in (("width", side), ("height", side), ("mode", MODE_RAW)):
            self._metadata[name] = column
        self._metadata["pointer"], self._metadata["label"] = pointers, labels
        self._table["sample_id"], self._table["pointer"] = rows, pointers
        self._table["size"] = size
        crc32 = zlib.crc32(bytes(size))
        self._checksums[:] = [bind_checksum(row, crc32) for row in range(count)]
        names = [f"n{label:08}/n{label:08}_{row}.JPEG" for row, label in enumerate(labels.tolist())]
        self._name_ends[:] = np.cumsum([len(name) for name in names])
        self._names += "".join(names).encode()
        self.num_samples = count
        self._pending_start = int(pointers[-1]) + size


def write_sparse(path: Path, count: int, side: int) -> None:
    """Makes such a file.

    Args:
        path: Where.
        count: Images.
        side: Of each, in pixels.
    """
    with SparseWriter(path, capacity=count) as writer:
        writer.add_black(count, side)
        writer.finish([f"n{label:08}" for label in range(NUM_CLASSES)])
        writer.commit()
