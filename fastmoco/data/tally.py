"""What a conversion gathers besides the file itself, so that it can be recorded and taken up."""

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.encode import Encoded
from fastmoco.data.facts import no_moments

RECORD_VERSION = 2  # of `Tally.to_record`; unfinished conversions with other records start anew
# Of each stored image: its place in the source, mode, width, height, bytes, CRC-32 and digest.
Row = tuple[int, int, int, int, int, int, int]


@dataclass(slots=True)
class Tally:
    """Gathered over some consecutive samples of the source.

    Attributes:
        stored: A row for each image that was stored.
        quarantined: Name and reason of each that was not.
        moments: `channel_moments` of the measured ones.
        source_bytes: What was read of the source.
    """

    stored: list[Row] = field(default_factory=list)
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    moments: NDArray[np.int64] = field(default_factory=no_moments)
    source_bytes: int = 0

    def store(self, place: int, image: Encoded) -> None:
        """Counts an image that was stored."""
        size = len(image.blob)
        row = (place, image.mode, image.width, image.height, size, image.crc32, image.digest)
        self.stored.append(row)

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "stored": self.stored,
            "quarantined": self.quarantined,
            "moments": self.moments.tolist(),
            "source_bytes": self.source_bytes,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Tally":
        """The inverse of `to_record`."""
        return cls(
            stored=[(a, b, c, d, e, f, g) for a, b, c, d, e, f, g in record["stored"]],
            quarantined=[(name, reason) for name, reason in record["quarantined"]],
            moments=np.array(record["moments"], np.int64),
            source_bytes=record["source_bytes"],
        )


@dataclass(slots=True)
class Totals:
    """Gathered over a whole file, or several; small, however many samples there are.

    Attributes:
        digests: Of each stored image, as of `Encoded`.
        quarantined: As of `Tally`.
        moments: As of `Tally`.
        source_bytes: As of `Tally`.
    """

    digests: "array[int]" = field(default_factory=lambda: array("Q"))
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    moments: NDArray[np.int64] = field(default_factory=no_moments)
    source_bytes: int = 0

    @property
    def num_stored(self) -> int:
        """Images in the file."""
        return len(self.digests)

    @property
    def num_done(self) -> int:
        """Samples of the source that are dealt with."""
        return len(self.digests) + len(self.quarantined)

    @property
    def num_duplicates(self) -> int:
        """Images whose stored bytes another one has, too."""
        return len(self.digests) - len(np.unique(np.frombuffer(self.digests, np.uint64)))

    def duplicates(self, limit: int) -> list[list[int]]:
        """The stored images of equal bytes by their numbers, at most ``limit`` groups of them."""
        digests = np.frombuffer(self.digests, np.uint64)
        _, group, sizes = np.unique(digests, return_inverse=True, return_counts=True)
        members: dict[int, list[int]] = {}
        for number in np.flatnonzero(sizes[group] > 1).tolist():
            members.setdefault(int(group[number]), []).append(number)
        return list(members.values())[:limit]

    def add(self, tally: Tally) -> None:
        """Adds what was gathered over the samples that follow."""
        self.digests.extend(row[-1] for row in tally.stored)
        self.quarantined += tally.quarantined
        self.moments += tally.moments
        self.source_bytes += tally.source_bytes

    def merge(self, other: "Totals") -> None:
        """Adds another file's."""
        self.digests.extend(other.digests)
        self.quarantined += other.quarantined
        self.moments += other.moments
        self.source_bytes += other.source_bytes
