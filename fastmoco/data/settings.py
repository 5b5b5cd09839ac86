"""Options of `convert`, and the datasets of a run."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from fastmoco.data.beton_format import is_page_size
from fastmoco.data.facts import plain_values
from fastmoco.data.shards import MAX_SHARDS
from fastmoco.ranges import Range, Ranges, check_ranges


class Encoding(StrEnum):
    """Storage format of images."""

    jpeg = "jpeg"
    raw = "raw"


class Check(StrEnum):
    """Check of a JPEG that is copied."""

    decode = "decode"
    header = "header"


class OnError(StrEnum):
    """Reaction to a bad image."""

    quarantine = "quarantine"
    fail = "fail"


class Statistics(StrEnum):
    """Images that the channels' mean and standard deviation are computed from."""

    auto = "auto"
    exact = "exact"
    sample = "sample"
    none = "none"


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Dataset files."""

    train: Path | None = None
    """Training set: a file of fastmoco convert, or a folder or tar shards of JPEGs."""
    test: Path | None = None
    """Test set, in the same forms."""


@dataclass(kw_only=True, slots=True)
class ConvertConfig:
    """Options of `convert`."""

    RANGES: ClassVar[Ranges] = {
        "max_size": Range(1, 32_768),
        "quality": Range(1, 100),
        "workers": Range(0, 1024),
        "shards": Range(1, MAX_SHARDS),
        "page_bytes": Range(1, 1 << 31),
        "holdout": Range(0, 1, below=True),
        "max_bad_fraction": Range(0, 1),
    }

    split: str = ""
    """Split to convert, for sources with splits; empty means train."""
    labels: Path | None = None
    """Labels by image number: a text file with one per line, .npy or .pt; or by path: a text file
    of lines such as cat/1.jpg 3, or FILE.csv:COLUMN."""
    root: Path | None = None
    """Folder of torchvision's datasets; null means data/ in the current folder."""
    download: bool = False
    """Download missing files of torchvision's datasets into that folder."""
    holdout: float = 0.0
    """Fraction of each class to hold out for testing: makes NAME-train.beton and NAME-test.beton.
    Copies of an image, also recompressed or rescaled ones, stay on one side."""
    max_size: int = 512
    """Longest side in pixels; larger images are shrunk to it, antialiased."""
    quality: int = 90
    """JPEG quality, 1 to 100, of images that are not copied unchanged."""
    encoding: Encoding = Encoding.jpeg
    """jpeg, or raw: plain pixels, faster to read but larger; for images up to about 64 pixels."""
    lossless: bool = False
    """Keep the pixels of PNG, BMP, GIF and PPM files, and of arrays, by storing them raw."""
    workers: int = 0
    """Number of threads; 0 means one per usable CPU. The file's bytes do not depend on it."""
    check: Check = Check.decode
    """Check of copied JPEGs. decode: decode each once; header: read only its markers, faster."""
    statistics: Statistics = Statistics.auto
    """Images for channel mean and deviation. exact: all; sample: 10,000; none; auto: all of up to
    50,000 images and 10,000 of more, but with check=header a sixteenth (128 to 10,000). A measured
    JPEG is decoded at full scale, which takes twice the time of a decode at 1/8 scale."""
    on_error: OnError = OnError.quarantine
    """quarantine: skip a bad image and list it in NAME.quarantine.csv; fail: stop at it."""
    max_bad_fraction: float = 0.5
    """Stop when more than this fraction of a file's images is bad."""
    shards: int = 1
    """Number of files, NAME-00000-of-00004.beton and so on; a loader reads them as one."""
    shard: str = ""
    """I/N (I from 0): make only this one of N files, so that N machines can make one each."""
    page_bytes: int = 1 << 23
    """Page size of the file, a power of two from 2 MiB to 2 GiB; no image can be larger."""

    def __post_init__(self) -> None:
        """Refuse values out of range, with a ValueError."""
        check_ranges(self)
        if not is_page_size(self.page_bytes):
            raise ValueError(
                f"page_bytes={self.page_bytes} is not a power of two from 2 MiB to 2 GiB; set for "
                "example page_bytes=8388608"
            )
        if self.shard:
            self.shards_to_make()

    def shards_to_make(self) -> tuple[list[int], int]:
        """Numbers of the shards to make, and the number of all shards.

        Raises:
            ValueError: If ``shard`` is malformed, or disagrees with ``shards``.
        """
        if not self.shard:
            return list(range(self.shards)), self.shards
        number, _, count = self.shard.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 0 <= int(number) < int(count)):
            raise ValueError(f"shard={self.shard} is not I/N with I < N, such as 0/4 for the first")
        if int(count) > MAX_SHARDS or self.shards not in (1, int(count)):
            raise ValueError(f"shard={self.shard} disagrees with shards={self.shards}")
        return [int(number)], int(count)

    def choices(self) -> dict[str, Any]:
        """Options that determine the bytes of a file of given samples, as JSON values."""
        left_out = ("on_error", "max_bad_fraction", "root", "download", "labels", "holdout")
        return {name: value for name, value in self.recorded().items() if name not in left_out}

    def recorded(self) -> dict[str, Any]:
        """Options to record in the JSON file, as JSON values."""
        left_out = ("workers", "shards", "shard")
        values = {name: value for name, value in asdict(self).items() if name not in left_out}
        return plain_values(values)
