"""Results that a conversion gathers besides the file itself, so that it can be resumed."""

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.encode import Encoded
from fastmoco.data.facts import no_moments

RECORD_VERSION = 3  # of `Tally.to_record`; conversions with other records cannot be resumed
# A stored image: index in the source, mode, width, height, bytes, CRC-32 and digest.
Row = tuple[int, int, int, int, int, int, int]


@dataclass(slots=True)
class Tally:
    """Results for some consecutive samples of the source."""

    stored: list[Row] = field(default_factory=list)
    """A row for each stored image."""
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of each skipped image."""
    moments: NDArray[np.int64] = field(default_factory=no_moments)
    """`channel_moments` of the measured images."""
    source_bytes: int = 0
    """Bytes read from the source."""
    num_twelve_bit: int = 0
    """Images of 16 bits per channel that use only the lower 12."""

    def store(self, index: int, image: Encoded) -> None:
        """Count a stored image."""
        size = len(image.blob)
        row = (index, image.mode, image.width, image.height, size, image.crc32, image.digest)
        self.stored.append(row)
        self.num_twelve_bit += image.is_twelve_bit

    def to_record(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "stored": self.stored,
            "quarantined": self.quarantined,
            "moments": self.moments.tolist(),
            "source_bytes": self.source_bytes,
            "num_twelve_bit": self.num_twelve_bit,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Tally":
        """Inverse of `to_record`."""
        return cls(
            stored=[(a, b, c, d, e, f, g) for a, b, c, d, e, f, g in record["stored"]],
            quarantined=[(name, reason) for name, reason in record["quarantined"]],
            moments=np.array(record["moments"], np.int64),
            source_bytes=record["source_bytes"],
            num_twelve_bit=record["num_twelve_bit"],
        )


@dataclass(slots=True)
class Totals:
    """Results for one or several complete files; small, however many samples there are."""

    digests: "array[int]" = field(default_factory=lambda: array("Q"))
    """`Encoded.digest` of each stored image."""
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of each skipped image."""
    moments: NDArray[np.int64] = field(default_factory=no_moments)
    """`channel_moments` of the measured images."""
    source_bytes: int = 0
    """Bytes read from the source."""
    num_twelve_bit: int = 0
    """Images of 16 bits per channel that use only the lower 12."""

    @property
    def num_stored(self) -> int:
        """Images in the file."""
        return len(self.digests)

    @property
    def num_done(self) -> int:
        """Processed samples of the source."""
        return len(self.digests) + len(self.quarantined)

    @property
    def num_duplicates(self) -> int:
        """Images with the same stored bytes as another one."""
        return len(self.digests) - len(np.unique(np.frombuffer(self.digests, np.uint64)))

    def duplicates(self, limit: int) -> list[list[int]]:
        """Numbers of the stored images with equal bytes, at most ``limit`` groups."""
        digests = np.frombuffer(self.digests, np.uint64)
        _, group, sizes = np.unique(digests, return_inverse=True, return_counts=True)
        members: dict[int, list[int]] = {}
        for number in np.flatnonzero(sizes[group] > 1).tolist():
            members.setdefault(int(group[number]), []).append(number)
        return list(members.values())[:limit]

    def add(self, tally: Tally) -> None:
        """Add the results for the samples that follow."""
        self.digests.extend(row[-1] for row in tally.stored)
        self.quarantined += tally.quarantined
        self.moments += tally.moments
        self.source_bytes += tally.source_bytes
        self.num_twelve_bit += tally.num_twelve_bit

    def merge(self, other: "Totals") -> None:
        """Add the results of another file."""
        self.digests.extend(other.digests)
        self.quarantined += other.quarantined
        self.moments += other.moments
        self.source_bytes += other.source_bytes
        self.num_twelve_bit += other.num_twelve_bit
