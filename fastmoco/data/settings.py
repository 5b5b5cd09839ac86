"""The options of `convert`."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fastmoco.data.beton_format import is_page_size
from fastmoco.data.facts import plain_values
from fastmoco.data.shards import MAX_SHARDS


class Encoding(StrEnum):
    """How images are stored."""

    jpeg = "jpeg"
    raw = "raw"


class Check(StrEnum):
    """How a JPEG that is copied is checked."""

    decode = "decode"
    header = "header"


class OnError(StrEnum):
    """What a bad image leads to."""

    quarantine = "quarantine"
    fail = "fail"


class Statistics(StrEnum):
    """Which images the channels' mean and standard deviation come from."""

    auto = "auto"
    exact = "exact"
    sample = "sample"
    none = "none"


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Dataset files."""

    train: Path | None = None
    """Dataset file to learn from (fastmoco convert makes one); train also takes JPEGs as they lie
    in a folder or in tar shards."""
    test: Path | None = None
    """Dataset file to evaluate on; needed by evaluation and by the monitor."""


@dataclass(kw_only=True, slots=True)
class ConvertConfig:
    """Options of `convert`."""

    split: str = ""
    """Which part of a source that has splits; train where none is named."""

    labels: Path | None = None
    """Labels of numbered images: a text file of one a line, .npy or .pt; or FILE.csv:COLUMN."""

    root: Path | None = None
    """Folder in which torchvision's sets lie; by default data/ in the current one."""

    download: bool = False
    """Get what is missing of torchvision's sets from the internet, into that folder."""

    max_size: int = 512
    """Longest side in pixels; larger images are shrunk to it, antialiased."""

    quality: int = 90
    """JPEG quality, 1 to 100, of images that are not copied as they are."""

    encoding: Encoding = Encoding.jpeg
    """jpeg, or raw: pixels as they are, faster to read and larger; for images up to about 64."""

    lossless: bool = False
    """Keep the pixels of PNG, BMP, GIF and PPM sources, and of arrays, by storing those raw."""

    workers: int = 0
    """Threads; 0 means one for each usable CPU. The file's bytes do not depend on it."""

    check: Check = Check.decode
    """decode: a copied JPEG is decoded once; header: only its markers are read, which is faster."""

    statistics: Statistics = Statistics.auto
    """Channel mean and deviation: exact from all images, sample from 10,000, none, or auto: exact
    up to 50,000 images, but from a sixteenth of them (128 to 10,000) with check=header. Measured
    JPEGs are decoded in full, which takes twice the time of a decode at 1/8 scale."""

    on_error: OnError = OnError.quarantine
    """quarantine: leave a bad image out and list it in NAME.quarantine.csv; fail: stop at it."""

    shards: int = 1
    """Number of files, NAME-00000-of-00004.beton and so on, which a loader takes together."""

    shard: str = ""
    """I/N (I from 0): make only this one of N files, as when N machines make one each."""

    page_bytes: int = 1 << 23
    """Page size of the file, a power of two from 2 MiB to 2 GiB; no stored image can be larger."""

    def __post_init__(self) -> None:
        """Refuses values out of range.

        Raises:
            ValueError: If a number is out of its range.
        """
        limits = {
            "max_size": (1, 32_768),
            "quality": (1, 100),
            "workers": (0, 1024),
            "shards": (1, MAX_SHARDS),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} is not in {low}..{high}")
        if not is_page_size(self.page_bytes):
            raise ValueError(
                f"page_bytes={self.page_bytes} is no power of two from 2 MiB to 2 GiB, such as "
                "8388608"
            )
        if self.shard:
            self.shards_to_make()

    def shards_to_make(self) -> tuple[list[int], int]:
        """Numbers of the shards to make, and of how many.

        Raises:
            ValueError: If ``shard`` is not such as 0/4, or disagrees with ``shards``.
        """
        if not self.shard:
            return list(range(self.shards)), self.shards
        number, _, count = self.shard.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 0 <= int(number) < int(count)):
            raise ValueError(f"shard={self.shard} is not such as 0/4 (the first of four) or 3/4")
        if int(count) > MAX_SHARDS or self.shards not in (1, int(count)):
            raise ValueError(f"shard={self.shard} disagrees with shards={self.shards}")
        return [int(number)], int(count)

    def choices(self) -> dict[str, Any]:
        """All that decides the bytes of a file of given samples, as JSON values."""
        left_out = ("on_error", "root", "download", "labels")
        return {name: value for name, value in self.told().items() if name not in left_out}

    def told(self) -> dict[str, Any]:
        """What people should know of how a file came to be, as JSON values."""
        left_out = ("workers", "shards", "shard")
        told = {name: value for name, value in asdict(self).items() if name not in left_out}
        return plain_values(told)
