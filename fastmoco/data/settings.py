"""Options of `convert`, and the datasets of a run."""

import difflib
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from fastmoco.addresses import Address
from fastmoco.data.beton_format import is_page_size
from fastmoco.data.facts import plain_values
from fastmoco.data.shards import MAX_SHARDS
from fastmoco.errors import UsageError
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
    """Training set: a file of fastmoco convert, here or https:// or s3://, or a folder or tar
    shards of JPEGs."""
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
    """Split to convert, where there are several; empty = train."""
    labels: Path | None = None
    """Labels by image number (text, .npy, .pt) or by path (text, FILE.csv:COLUMN)."""
    root: Path | None = None
    """Folder of torchvision's datasets; null = data/."""
    download: bool = False
    """Download torchvision's datasets into that folder."""
    holdout: float = 0.0
    """Fraction of each class for a test file: NAME-train.beton, NAME-test.beton."""
    max_size: int = 512
    """Longest side in pixels; larger images are shrunk."""
    quality: int = 90
    """JPEG quality of images that are encoded again."""
    encoding: Encoding = Encoding.jpeg
    """raw: pixels, faster to read but larger; for images up to about 64 pixels."""
    lossless: bool = False
    """Store PNG, BMP, GIF, PPM and arrays without loss, as pixels."""
    workers: int = 0
    """Threads; 0 = one per CPU."""
    check: Check = Check.decode
    """Check of copied JPEGs: decode each, or only read its header (faster)."""
    statistics: Statistics = Statistics.auto
    """Images measured for mean and deviation: all (exact), 10,000 (sample), none, or auto."""
    on_error: OnError = OnError.quarantine
    """Bad images: list them in NAME.quarantine.csv, or stop at the first."""
    max_bad_fraction: float = 0.5
    """Stop when more than this fraction of a file's images is bad."""
    shards: int = 1
    """Number of files, NAME-00000-of-00004.beton and so on."""
    shard: str = ""
    """I/N (I from 0): make only this one of N files."""
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


def check_data(cfg: Any) -> None:
    """Refuse datasets of ``cfg.data`` that do not exist, before torch is loaded.

    Raises:
        UsageError: At the first, naming the nearest file.
    """
    data = getattr(cfg, "data", None)
    for name in ("train", "test"):
        path = getattr(data, name, None)
        if isinstance(path, Address):
            from fastmoco.data.remote.opening import check_address

            check_address(path)
        if path is None or path.exists() or any(sign in str(path) for sign in "*:"):
            continue
        beside = path.parent.glob(f"*{path.suffix}") if path.parent.is_dir() else ()
        stems = {one.stem: one for one in beside}
        if near := difflib.get_close_matches(path.stem, stems, n=1, cutoff=0.7):
            hint = f"did you mean {stems[near[0]]}?"
        elif name == "test":
            hint = "`fastmoco convert FOLDER photos.beton holdout=0.2` makes training and test file"
        else:
            hint = "make it: fastmoco convert FOLDER train.beton"
        raise UsageError(f"data.{name}={path}: no such file or directory; {hint}")
