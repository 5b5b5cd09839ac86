"""A set of many shards elsewhere, of which only the index is brought when it is opened.

Where fewer shards than streams make a set, a batch reads all of them, and the files are all brought
before instead (`opening`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fastmoco.addresses import Address
from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.data.beton_set import BetonSet
from fastmoco.data.remote.arrivals import Arrivals
from fastmoco.data.remote.cache import CachedSet
from fastmoco.data.remote.index import StreamedHandle
from fastmoco.data.remote.storage import RemoteError
from fastmoco.draws.streams import INT64


class StreamedSet(BetonSet):
    """Shards that come when they are read, and ahead of it where the order is known."""

    def __init__(
        self, address: Address, place: CachedSet, arrivals: Arrivals, kept: ExitStack
    ) -> None:
        """Read the indexes, which are in the cache.

        Args:
            address: The pattern.
            place: The set's part of the cache.
            arrivals: Brings the shards.
            kept: Keeps the folder; closed with the set.

        Raises:
            RemoteError: If an index is damaged; it is removed.
        """
        files = []
        for number, known in enumerate(place.objects):
            index = place.index(known)
            if not index.exists():  # of a complete set in somebody else's cache
                index = place.path(known)
            try:
                handle = StreamedHandle.of(known, index, partial(arrivals.shard, number))
                files.append(BetonFile(handle))
            except BetonError as error:
                with suppress(PermissionError):
                    index.unlink()
                raise RemoteError(
                    f"{str(error).partition('; ')[0]}; its index is removed here; give the same "
                    "command again; if that says the same, put a good copy there, made by "
                    "`fastmoco convert`"
                ) from error
        super().__init__(address, files)
        self._arrivals, self._kept = arrivals, kept

    @property
    def waits(self) -> bool:
        """Whether a reader waits for a shard."""
        return self._arrivals.waiting > 0

    def plan(self, epochs: Iterator[INT64], at_once: int) -> None:
        """Bring shards ahead of the reads of some epochs; see `Arrivals.plan`.

        Raises:
            RemoteError: If the cache's limit is too low for the shards of a batch.
        """
        self._arrivals.plan(epochs, self.shard_ends, at_once)

    def close(self) -> None:
        """Close the set; its shards stay in the cache."""
        self._arrivals.close()
        self._kept.close()

    def blob(self, sample_id: int) -> memoryview:
        """See `BetonFile.blob`."""
        found = super().blob(sample_id)
        self._arrivals.count_read(sample_id)
        return found

    def decode(self, sample_id: int) -> NDArray[np.uint8]:
        """See `BetonFile.decode`."""
        found = super().decode(sample_id)
        self._arrivals.count_read(sample_id)
        return found
