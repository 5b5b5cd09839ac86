"""Conversion of a source's images to .beton files: options, shards and a summary.

`conversion` makes each file.
"""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton_format import encode_text
from fastmoco.data.conversion import ConversionJob, Made, forget, make_file, quarantine_path
from fastmoco.data.facts import description_text, plain_values
from fastmoco.data.settings import Check, ConvertConfig, Encoding, OnError, Statistics
from fastmoco.data.shards import set_fingerprint, shard_path, shard_samples
from fastmoco.data.sources import SampleSet, SourceOptions, open_source
from fastmoco.data.tally import RECORD_VERSION, Totals
from fastmoco.draws.streams import hashed_order
from fastmoco.errors import UsageError
from fastmoco.version import __version__

__all__ = [
    "Check",
    "ConvertConfig",
    "ConvertSummary",
    "Encoding",
    "OnError",
    "Statistics",
    "convert",
]

MEASURED_SAMPLES = 50_000  # channel statistics of up to this many images are exact
CHOSEN_SAMPLES = 10_000  # those of more images come from this many
# With check=header: a sixteenth of the images, but enough for a mean within 0.01 or so.
HEADER_SHARE, HEADER_SAMPLES = 16, 128


@dataclass(kw_only=True, slots=True)
class ConvertSummary:
    """Summary of `convert`."""

    path: Path
    """The file; with several shards, the pattern that matches them."""
    num_samples: int
    """Images in it."""
    num_resumed: int
    """Images, good or bad, that an interrupted run had already processed."""
    num_quarantined: int
    """Images that were skipped, listed in ``quarantine_path``."""
    quarantine_path: Path | None
    """Path and reason of each skipped image; with several lists, the pattern that matches them;
    None if there is none."""
    num_ignored: int
    """Files of the source that are hidden or have no image extension."""
    classes: list[str]
    """Class names; ``[]`` if unlabeled."""
    num_duplicates: int
    """Images with the same stored bytes as another one, over all shards made."""
    num_bytes: int
    """Size of the file in bytes."""
    source_bytes: int
    """Bytes read from the source."""
    seconds: float
    """Duration."""
    images_per_second: float
    """Images read, good or bad, per second."""
    fingerprint: str
    """Hex SHA-256 of the file's index; with several shards, of their fingerprints."""

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return plain_values(asdict(self))

    def to_text(self) -> str:
        """Format as a table, without counts that are zero."""
        read = f"{self.source_bytes / 1e6 / self.seconds:,.1f} MB/s read"
        rows = {
            "file": self.path,
            "images": f"{self.num_samples:,}",
            "classes": f"{len(self.classes):,}" if self.classes else "none",
            "size": f"{self.num_bytes / 1e6:,.1f} MB",
            "time": f"{self.seconds:,.1f} s",
            "rate": f"{self.images_per_second:,.0f} images/s, {read}",
        }
        remarks = {
            "resumed": (self.num_resumed, "done by the interrupted run"),
            "duplicates": (self.num_duplicates, "with the same bytes as another"),
            "ignored": (self.num_ignored, "files that are hidden or not images"),
            "skipped": (self.num_quarantined, f"bad images, listed in {self.quarantine_path}"),
        }
        rows |= {name: f"{count:,} {what}" for name, (count, what) in remarks.items() if count}
        return description_text(rows)


def convert(source: str, destination: Path, cfg: ConvertConfig) -> ConvertSummary:
    """Convert the images of ``source`` to ``destination``, with facts in ``NAME.beton.json``.

    An existing file at ``destination`` is replaced atomically at the end. After a kill or a full
    disk, the same call resumes, as long as the source is unchanged.

    Args:
        source: A folder, or whatever else `open_source` accepts.
        destination: Path of the file, ending in ``.beton``; missing folders are created.
        cfg: Options.

    Raises:
        ValueError: If the source holds no usable image, or an option or a name is wrong; with
            ``on_error=fail``, at the first bad image.
        OSError: If the source cannot be listed or a file cannot be written.
        KeyboardInterrupt: If interrupted; the message says that the same command resumes.
    """
    start = time.monotonic()
    if destination.suffix != ".beton" or destination.is_dir():
        raise UsageError(
            f"{destination}: is a folder or does not end in .beton; name a file such as train.beton"
        )
    options = SourceOptions(
        split=cfg.split,
        labels=str(cfg.labels or ""),
        root=str(cfg.root or ""),
        download=cfg.download,
    )
    samples = open_source(source, options)
    _make_folder(destination.parent)
    jobs = _jobs(source, destination, samples, cfg)
    made = [_make(job, source) for job in jobs]
    for job in jobs:
        with suppress(OSError):  # harmless if it stays: it says that the file is complete
            forget(job.target)
    return _summary(jobs, made, destination, samples, time.monotonic() - start)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{folder}: cannot be created ({error.strerror}); name a file in a folder that you may "
            "write to",
        ) from error


def _jobs(
    source: str, destination: Path, samples: SampleSet, cfg: ConvertConfig
) -> list[ConversionJob]:
    """The files to make."""
    numbers, shards = cfg.shards_to_make()
    count = len(samples.names)
    if shards > count:
        raise UsageError(f"shards={shards} is more than the {count} images of {source}")
    measured = _measured(count, cfg)
    recipe = _recipe(samples, cfg)
    origin = {"source": source, "options": cfg.recorded(), "fastmoco_version": __version__}
    if shards == 1:
        return [ConversionJob(destination, samples, measured, cfg, recipe, origin)]
    jobs = []
    for number in numbers:
        chosen = shard_samples(count, number, shards)
        jobs.append(
            ConversionJob(
                shard_path(destination, number, shards),
                _subset(samples, chosen),
                measured[chosen],
                cfg,
                f"{recipe} {number}/{shards}",
                {**origin, "shard": f"{number}/{shards}"},
            )
        )
    return jobs


def _measured(count: int, cfg: ConvertConfig) -> NDArray[np.bool_]:
    """Which samples the channel statistics use; a hash of the index chooses them."""
    chosen = {Statistics.exact: count, Statistics.sample: CHOSEN_SAMPLES, Statistics.none: 0}
    if cfg.statistics is not Statistics.auto:
        wanted = chosen[cfg.statistics]
    elif cfg.check is Check.header:
        wanted = min(max(count // HEADER_SHARE, HEADER_SAMPLES), CHOSEN_SAMPLES)
    else:
        wanted = count if count <= MEASURED_SAMPLES else CHOSEN_SAMPLES
    measured = np.zeros(count, np.bool_)
    measured[hashed_order(count)[:wanted]] = True
    return measured


def _recipe(samples: SampleSet, cfg: ConvertConfig) -> str:
    """Hex digest of everything that determines the file's bytes; equal digests may resume."""
    packages = {name: version(name) for name in ("pillow", "simplejpeg", "torch")}
    versions = {"fastmoco": __version__, "records": RECORD_VERSION, **packages}
    choices = {**versions, **cfg.choices()}
    digest = hashlib.sha256(json.dumps([choices, samples.classes]).encode())
    encode_text("".join(samples.classes))  # fails here rather than at the end
    for name in samples.names:
        digest.update(encode_text(name) + b"\0")
    digest.update(samples.labels.tobytes())
    digest.update(samples.stamps.tobytes())
    return digest.hexdigest()


def _subset(samples: SampleSet, chosen: NDArray[np.int64]) -> SampleSet:
    """Some of the samples, in their order."""
    return replace(
        samples,
        names=[samples.names[index] for index in chosen.tolist()],
        labels=samples.labels[chosen],
        keys=[samples.keys[index] for index in chosen.tolist()],
    )


def _make(job: ConversionJob, source: str) -> Made:
    """Call `make_file`; errors name their file and say what to do."""
    try:
        return make_file(job)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{job.target}: cannot be written ({error.strerror}); an existing file is unchanged; "
            "fix the cause, then the same command resumes",
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{job.target}: interrupted; the same command resumes") from None


def _summary(
    jobs: list[ConversionJob],
    made: list[Made],
    destination: Path,
    samples: SampleSet,
    seconds: float,
) -> ConvertSummary:
    totals = Totals()
    for one in made:
        totals.merge(one.totals)
    paths = [job.target for job in jobs]
    lists = [
        quarantine_path(job.target)
        for job, one in zip(jobs, made, strict=True)
        if one.totals.quarantined
    ]
    pattern = destination.with_name(f"{destination.stem}-*.beton")
    listed = lists[0] if len(lists) == 1 else quarantine_path(pattern)
    num_resumed = sum(one.num_resumed for one in made)
    return ConvertSummary(
        path=paths[0] if len(paths) == 1 else pattern,
        num_samples=totals.num_stored,
        num_resumed=num_resumed,
        num_quarantined=len(totals.quarantined),
        quarantine_path=listed if lists else None,
        num_ignored=samples.num_ignored,
        classes=samples.classes,
        num_duplicates=totals.num_duplicates,
        num_bytes=sum(path.stat().st_size for path in paths),
        source_bytes=totals.source_bytes,
        seconds=seconds,
        images_per_second=(totals.num_done - num_resumed) / seconds,
        fingerprint=set_fingerprint([one.fingerprint for one in made]),
    )
