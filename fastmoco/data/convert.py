"""Makes .beton files of a source's images: options, shards and what came of it.

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

MEASURED_SAMPLES = 50_000  # up to here channel statistics are exact
CHOSEN_SAMPLES = 10_000  # beyond, they come from this many
# Where only headers are checked: a sixteenth, but as many as give a mean within 0.01 or so.
HEADER_SHARE, HEADER_SAMPLES = 16, 128


@dataclass(kw_only=True, slots=True)
class ConvertSummary:
    """What `convert` did.

    Attributes:
        path: The file; of several shards the pattern that matches them.
        num_samples: Images in it.
        num_resumed: Images, good or bad, that an interrupted run had dealt with already.
        num_quarantined: Images left out, listed in ``quarantine_path``.
        quarantine_path: Path and reason of each image left out; of several lists the pattern that
            matches them; None if there is none.
        num_ignored: Files of the source that are hidden or of no image's extension.
        classes: Class names; ``[]`` if unlabeled.
        num_duplicates: Images whose stored bytes another one has, too; over all shards made.
        num_bytes: Size of the file.
        source_bytes: What was read of the source.
        seconds: Time taken.
        images_per_second: Images read, good or bad, per second.
        fingerprint: Hex SHA-256 of the file's index; of several shards, of theirs.
    """

    path: Path
    num_samples: int
    num_resumed: int
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
        """A table for people; what is zero is left out."""
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
            "taken up": (self.num_resumed, "done by the run that was interrupted"),
            "duplicates": (self.num_duplicates, "with the same bytes as another"),
            "passed over": (self.num_ignored, "files that are hidden or no images"),
            "left out": (self.num_quarantined, f"bad images, listed in {self.quarantine_path}"),
        }
        rows |= {name: f"{count:,} {what}" for name, (count, what) in remarks.items() if count}
        return description_text(rows)


def convert(source: str, destination: Path, cfg: ConvertConfig) -> ConvertSummary:
    """Makes ``destination`` and, beside it, ``NAME.beton.json`` of the images of ``source``.

    A file that stands at ``destination`` is replaced in one step at the end, or not at all. After
    a kill or a full disk, the same call goes on where it was, as long as the source is unchanged.

    Args:
        source: What `open_source` takes, such as a folder.
        destination: The file to make, ending in ``.beton``; missing folders are made.
        cfg: Options.

    Raises:
        ValueError: If the source holds no usable image, or an option or a name is wrong; with
            ``on_error=fail``, at the first bad image.
        OSError: If the source cannot be listed or a file cannot be written.
        KeyboardInterrupt: If interrupted; the text says what the same call will do.
    """
    start = time.monotonic()
    if destination.suffix != ".beton" or destination.is_dir():
        raise UsageError(f"{destination}: name the file to make, one that ends in .beton")
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
        with suppress(OSError):  # all is done; one that stays tells the next run just that
            forget(job.target)
    return _summary(jobs, made, destination, samples, time.monotonic() - start)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{folder}: cannot be made a folder ({error.strerror}); name a file in a folder that "
            "you may write to",
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
    origin = {"source": source, "options": cfg.told(), "fastmoco_version": __version__}
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
    """Which samples channel statistics come from; some are chosen by a hash of the place."""
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
    """Hex digest of all that decides the file's bytes: an interrupted run of it may go on."""
    packages = {name: version(name) for name in ("pillow", "simplejpeg", "torch")}
    versions = {"fastmoco": __version__, "records": RECORD_VERSION, **packages}
    choices = {**versions, **cfg.choices()}
    digest = hashlib.sha256(json.dumps([choices, samples.classes]).encode())
    encode_text("".join(samples.classes))  # fails now, not when the file is finished
    for name in samples.names:
        digest.update(encode_text(name) + b"\0")
    digest.update(samples.labels.tobytes())
    digest.update(samples.stamps.tobytes())
    return digest.hexdigest()


def _subset(samples: SampleSet, chosen: NDArray[np.int64]) -> SampleSet:
    """Some of the samples, in their order."""
    places = chosen.tolist()
    return replace(
        samples,
        names=[samples.names[place] for place in places],
        labels=samples.labels[chosen],
        keys=[samples.keys[place] for place in places],
    )


def _make(job: ConversionJob, source: str) -> Made:
    """`make_file`, whose errors say what they are about and what stands now."""
    try:
        return make_file(job)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{job.target}: cannot be written ({error.strerror}); what stood there is untouched, "
            "and once that is mended the same command goes on where this one was",
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{job.target}: interrupted; the same command goes on where this one was"
        ) from None


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
