"""Settings of `fastmoco report` and `runs`; imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from fastmoco.data.settings import DataConfig
from fastmoco.ranges import COUNT_OR_ZERO, Range, Ranges, check_ranges

MOST_IMAGES = 2000
"""Most images of a report: their thumbnails are part of the file."""


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """Options of `fastmoco report`."""

    RANGES: ClassVar[Ranges] = {"images": Range(0, MOST_IMAGES)}

    out: Path | None = None
    """HTML file to write; default: report.html in the run folder, comparison.html for several."""
    data: DataConfig = field(default_factory=DataConfig)
    images: int = 300
    """Images on the map of features, chosen by a hash; 0: no images, which needs no dataset."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers out of range."""
        check_ranges(self)


@dataclass(kw_only=True, slots=True)
class RunsConfig:
    """Options of `fastmoco runs`."""

    RANGES: ClassVar[Ranges] = {"keep": COUNT_OR_ZERO}

    folder: Path = Path("runs")
    """Folder of the run folders."""
    keep: int = 0
    """Remove older checkpoints than the newest N of each run; the best by kNN stays, and so do runs
    that are being trained. 0: remove nothing."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for numbers out of range."""
        check_ranges(self)
