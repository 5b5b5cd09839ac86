"""Images that two datasets share, byte for byte."""

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.dataset import Dataset


def count_shared(train: Dataset, test: Dataset) -> int:
    """Count the images of `test` whose stored bytes are also those of an image of `train`.

    Only images with equal sizes, in bytes and in pixels, are compared, by a CRC-32, so a file of
    JPEGs is not read at all and a folder in small part. Of raw images, which have equal sizes, one
    pair in 4 billion agrees by chance.

    Raises:
        ValueError: If bytes that must be read are damaged.
        OSError: If they cannot be read.
    """
    sizes = [_sizes(one) for one in (train, test)]
    checked = [np.flatnonzero(np.isin(sizes[i], sizes[1 - i])) for i in range(2)]
    keys = [_keys(one, ids) for one, ids in zip((train, test), checked, strict=True)]
    return int(np.isin(keys[1], keys[0]).sum())


def _sizes(dataset: Dataset) -> NDArray[np.uint64]:
    """Bytes, height and width of each image as one number, ``(n,)``."""
    rows = [column.astype(np.uint64) for column in (dataset.sizes, dataset.heights, dataset.widths)]
    return rows[0] << np.uint64(32) | rows[1] << np.uint64(16) | rows[2]


def _keys(dataset: Dataset, ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Checksum and bytes of some images as one number, ``(n,)``."""
    checksums = np.array([dataset.checksum(i) for i in ids.tolist()], np.uint64)
    return checksums << np.uint64(32) | dataset.sizes[ids].astype(np.uint64)
