"""Makes a .beton file of a source's images: parallel, atomic, and the same bytes each time.

Workers load and encode batches of samples; this process writes them in the source's order, so that
neither their number nor their speed shows in the file. A bad image is left out and listed.
"""

import csv
import io
import json
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco import __version__
from fastmoco.data.beton_format import encode_text, sidecar_path
from fastmoco.data.beton_writer import BetonWriter
from fastmoco.data.encode import EncodeOptions
from fastmoco.data.facts import channel_statistics, describe_contents, plain_values
from fastmoco.data.sources import SampleSet, open_source
from fastmoco.data.workers import encoded_batches, show_progress
from fastmoco.files import atomic_path, atomic_write_text

MEASURED_SAMPLES = 50_000  # up to here channel statistics are exact
CHOSEN_SAMPLES = 10_000  # beyond, they come from this many


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


@dataclass(kw_only=True, slots=True)
class ConvertConfig:
    """Options of `convert`."""

    split: str = "train"
    """Which part of a source that has splits (builtin:textures: train, test)."""

    max_size: int = 512
    """Longest side in pixels; larger images are shrunk to it, antialiased."""

    quality: int = 90
    """JPEG quality, 1 to 100, of images that are not copied as they are."""

    encoding: Encoding = Encoding.jpeg
    """jpeg, or raw: pixels as they are, faster to read and larger; for images up to about 64."""

    workers: int = 0
    """Processes; 0 means one for each usable CPU. The file's bytes do not depend on it."""

    check: Check = Check.decode
    """decode: a copied JPEG is decoded once; header: only its markers are read, which is faster."""

    on_error: OnError = OnError.quarantine
    """quarantine: leave a bad image out and list it in NAME.quarantine.csv; fail: stop at it."""

    page_bytes: int = 1 << 23
    """Page size of the file, a power of two from 2 MiB to 2 GiB; no stored image can be larger."""

    def __post_init__(self) -> None:
        """Refuses values out of range.

        Raises:
            ValueError: If a number is out of its range.
        """
        for name, low, high in (("max_size", 1, 32_768), ("quality", 1, 100), ("workers", 0, 1024)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} is not in {low}..{high}")


@dataclass(kw_only=True, slots=True)
class ConvertSummary:
    """What `convert` did.

    Attributes:
        path: The file.
        num_samples: Images in it.
        num_quarantined: Images left out, listed in ``quarantine_path``.
        quarantine_path: Path and reason of each image left out; None if there is none.
        num_ignored: Files of the source that are hidden or of no image's extension.
        classes: Class names; ``[]`` if unlabeled.
        num_duplicates: Images whose stored bytes another one has, too.
        num_bytes: Size of the file.
        source_bytes: What was read of the source.
        seconds: Time taken.
        images_per_second: Images read, good or bad, per second.
        fingerprint: Hex SHA-256 of the file's index.
    """

    path: Path
    num_samples: int
    num_quarantined: int
    quarantine_path: Path | None
    num_ignored: int
    classes: list[str]
    num_duplicates: int
    num_bytes: int
    source_bytes: int
    seconds: float
    images_per_second: float
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return plain_values(asdict(self))

    def to_text(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.path}: {self.num_samples:,} images, {self.num_bytes / 1e6:,.1f} MB, "
            f"{len(self.classes)} classes",
            f"{self.seconds:.1f} s, {self.images_per_second:,.0f} images/s, "
            f"{self.source_bytes / 1e6 / self.seconds:,.1f} MB/s read",
        ]
        if self.num_duplicates:
            lines.append(f"{self.num_duplicates:,} images are exact duplicates of another")
        if self.num_ignored:
            lines.append(f"{self.num_ignored:,} files were passed over: hidden, or no images")
        if self.quarantine_path:
            lines.append(f"{self.num_quarantined:,} bad images left out: {self.quarantine_path}")
        return "\n".join(lines)


@dataclass(slots=True)
class _Tally:
    """What is gathered over the samples while they are written."""

    quarantined: list[tuple[str, str]] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    source_bytes: int = 0


def convert(source: str, destination: Path, cfg: ConvertConfig) -> ConvertSummary:
    """Makes ``destination`` and, beside it, ``NAME.beton.json`` of the images of ``source``.

    A file that stands at ``destination`` is replaced in one step at the end, or not at all.

    Args:
        source: A folder, or ``builtin:textures``.
        destination: The file to make, ending in ``.beton``; missing folders are made.
        cfg: Options.

    Raises:
        ValueError: If the source holds no usable image, or an option or a name is wrong; with
            ``on_error=fail``, at the first bad image.
        OSError: If the source cannot be listed or the file cannot be written.
    """
    start = time.monotonic()
    if destination.suffix != ".beton" or destination.is_dir():
        raise ValueError(f"{destination}: name the file to make, one that ends in .beton")
    samples = open_source(source, cfg.split)
    destination.parent.mkdir(parents=True, exist_ok=True)
    tally = _Tally()
    try:
        capacity = len(samples.names)
        with BetonWriter(destination, capacity=capacity, page_bytes=cfg.page_bytes) as writer:
            _write_samples(writer, samples, cfg, tally)
            if not writer.num_samples:
                raise _nothing_left(source, tally)
            fingerprint = writer.finish(samples.classes)
            facts = _facts(writer, samples, source, cfg, tally, fingerprint)
            quarantine_path = _write_companions(destination, facts, tally)
            writer.commit()
    except OSError as error:
        raise _explained(error, destination) from error
    if quarantine_path is None:
        _quarantine_path(destination).unlink(missing_ok=True)
    seconds = time.monotonic() - start
    return ConvertSummary(
        path=destination,
        num_samples=writer.num_samples,
        num_quarantined=len(tally.quarantined),
        quarantine_path=quarantine_path,
        num_ignored=samples.num_ignored,
        classes=samples.classes,
        num_duplicates=facts["num_duplicates"],
        num_bytes=destination.stat().st_size,
        source_bytes=tally.source_bytes,
        seconds=seconds,
        images_per_second=capacity / seconds,
        fingerprint=fingerprint,
    )


def _write_samples(
    writer: BetonWriter, samples: SampleSet, cfg: ConvertConfig, tally: _Tally
) -> None:
    """Encodes all samples and adds the good ones to ``writer``, the rest to ``tally``."""
    options = EncodeOptions(
        max_size=cfg.max_size,
        quality=cfg.quality,
        raw=cfg.encoding is Encoding.raw,
        prove=cfg.check is Check.decode,
        page_bytes=cfg.page_bytes,
    )
    measured = _measured(len(samples.names))
    batches = encoded_batches(samples, measured, options, cfg.workers)
    done = 0
    with closing(batches), show_progress(len(samples.names)) as advance:
        for batch in batches:
            for image in batch.images:
                name, label = samples.names[done], int(samples.labels[done])
                done += 1
                if isinstance(image, str):
                    _set_aside(name, image, cfg.on_error, tally)
                    continue
                writer.add(
                    image.blob,
                    mode=image.mode,
                    width=image.width,
                    height=image.height,
                    label=label,
                    name=name,
                    crc32=image.crc32,
                )
                tally.digests.append(image.digest)
            tally.histogram += batch.histogram
            tally.source_bytes += batch.source_bytes
            advance(len(batch.images), batch.source_bytes)


def _measured(count: int) -> NDArray[np.bool_]:
    """Which samples channel statistics come from: all, or some chosen by a hash of the place."""
    if count <= MEASURED_SAMPLES:
        return np.ones(count, bool)
    keys = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    chosen = np.zeros(count, bool)
    chosen[np.argpartition(keys, CHOSEN_SAMPLES)[:CHOSEN_SAMPLES]] = True
    return chosen


def _set_aside(name: str, reason: str, on_error: OnError, tally: _Tally) -> None:
    if on_error is OnError.fail:
        raise ValueError(f"{name}: {reason}; on_error=quarantine leaves such images out")
    tally.quarantined.append((name, reason))


def _nothing_left(source: str, tally: _Tally) -> ValueError:
    name, reason = tally.quarantined[0]
    return ValueError(
        f"{source}: none of its {len(tally.quarantined)} images can be used; the first, {name}: "
        f"{reason}"
    )


def _facts(
    writer: BetonWriter,
    samples: SampleSet,
    source: str,
    cfg: ConvertConfig,
    tally: _Tally,
    fingerprint: str,
) -> dict[str, Any]:
    """The contents of ``NAME.beton.json``; the number of workers is none of them."""
    metadata = writer.metadata
    options = {name: value for name, value in asdict(cfg).items() if name != "workers"}
    return {
        "fastmoco_version": __version__,
        "fingerprint": fingerprint,
        **describe_contents(
            metadata["label"], metadata["width"], metadata["height"], samples.classes
        ),
        **channel_statistics(tally.histogram),
        "num_duplicates": len(tally.digests) - len(np.unique(tally.digests)),
        "num_quarantined": len(tally.quarantined),
        "source": source,
        "options": options,
    }


def _write_companions(destination: Path, facts: dict[str, Any], tally: _Tally) -> Path | None:
    """Writes the facts and, if any image was left out, the list of those; gives its path.

    They go first: a run that is killed before the file itself is in place leaves facts of another
    fingerprint, which readers ignore, and never a new file without its normalization.
    """
    atomic_write_text(sidecar_path(destination), json.dumps(facts, indent=1) + "\n")
    if not tally.quarantined:
        return None
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows([("path", "reason"), *tally.quarantined])
    with atomic_path(_quarantine_path(destination)) as temporary:
        temporary.write_bytes(encode_text(rows.getvalue()))  # file names may hold any bytes
    return _quarantine_path(destination)


def _quarantine_path(destination: Path) -> Path:
    """``train.beton`` -> ``train.quarantine.csv``."""
    return destination.with_suffix(".quarantine.csv")


def _explained(error: OSError, destination: Path) -> OSError:
    """The same error in one line that names the file and what stands now."""
    if error.errno is None:
        return error
    return OSError(
        error.errno,
        f"{destination}: cannot be written ({error.strerror}); what stood there is untouched",
    )
