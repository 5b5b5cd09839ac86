"""Files of a source that are not images of it: how many, for which reason, and the first one."""

from dataclasses import dataclass, field

from fastmoco.errors import one_line

REASONS = {
    "hidden": "files and folders whose name starts with a dot",
    "not images": "files, by name or first bytes",
    "archives": "that are not opened",
    "own folders": "of runs and requests of fastmoco",
    "not files": "pipes, sockets and devices",
    "folder links": "to a folder that is searched anyway",
    "deep folders": "more than 100 folders below each other",
    "other images": "of a key in a tar file whose first image is taken",
    "lone labels": "in a tar file, without an image",
}
"""Each reason, and what it is about."""


@dataclass(kw_only=True, slots=True)
class Passed:
    """What was passed over for one reason."""

    reason: str
    """A key of `REASONS`."""
    count: int
    """Number of files; a folder that is not searched counts as one."""
    first: str
    """Name of the first."""

    def to_text(self) -> str:
        """Count, what it is about, and the first name, on one line."""
        return f"{self.count:,} {REASONS[self.reason]} (first {one_line(self.first)})"


@dataclass(slots=True)
class PassedOver:
    """Table of what was passed over."""

    rows: dict[str, Passed] = field(default_factory=dict)
    """A row for each reason that occurred, in the order of their first files."""

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count files, of which the first has this name."""
        self.rows.setdefault(reason, Passed(reason=reason, count=0, first=name)).count += count

    def merge(self, other: "PassedOver") -> None:
        """Add the counts of another table."""
        for reason, row in other.rows.items():
            self.add(reason, row.first, row.count)

    @property
    def total(self) -> int:
        """Number of files."""
        return sum(row.count for row in self.rows.values())
