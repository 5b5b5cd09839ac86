"""Conversion of a source's images to .beton files: options, split and shards.

`conversion` makes each file.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton_format import encode_text
from fastmoco.data.conversion import LISTED_DUPLICATES, ConversionJob, Made, forget, make_file
from fastmoco.data.convert_summary import Converted, ConvertSummary, summarize
from fastmoco.data.holdout import Split, split_source
from fastmoco.data.settings import Check, ConvertConfig, Encoding, OnError, Statistics
from fastmoco.data.shards import shard_path, shard_samples
from fastmoco.data.sources import SampleSet, SourceOptions, open_source
from fastmoco.data.tally import RECORD_VERSION
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


def convert(source: str, destination: Path, cfg: ConvertConfig) -> ConvertSummary:
    """Convert the images of ``source`` to ``destination``, with facts in ``NAME.beton.json``.

    With ``holdout``, ``NAME-train.beton`` and ``NAME-test.beton`` are made instead.
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
    split, hashes = None, _hashes_target(destination, cfg)
    if cfg.holdout:
        recipe = _recipe(samples, cfg)
        with _naming(source, hashes):
            split = split_source(samples, cfg.holdout, hashes, recipe, cfg.workers)
    parts = [
        Converted(target, _jobs(source, target, some, cfg, facts))
        for target, some, facts in _parts(destination, samples, split)
    ]
    for part in parts:
        part.made = [_make(job, source) for job in part.jobs]
    for target in [hashes, *(job.target for part in parts for job in part.jobs)]:
        with suppress(OSError):  # harmless if it stays: it says that the file is complete
            forget(target)
    return summarize(parts, destination, samples, split, time.monotonic() - start)


def _hashes_target(destination: Path, cfg: ConvertConfig) -> Path:
    """Path that names the journal of hashes; machines that make a shard each have one each."""
    (number, *_), shards = cfg.shards_to_make()
    return shard_path(destination, number, shards) if cfg.shard else destination


def _parts(
    destination: Path, samples: SampleSet, split: Split | None
) -> list[tuple[Path, SampleSet, dict[str, Any]]]:
    """The files to make, their samples, and facts for their JSON files."""
    if split is None:
        return [(destination, samples, {})]
    parts = []
    for name, chosen in (("train", ~split.is_test), ("test", split.is_test)):
        copies = [group for group in split.copies if chosen[group[0]]][:LISTED_DUPLICATES]
        facts = {"part": name, "copies": [[samples.names[i] for i in group] for group in copies]}
        target = destination.with_name(f"{destination.stem}-{name}.beton")
        parts.append((target, _subset(samples, np.flatnonzero(chosen)), facts))
    return parts


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
    source: str, destination: Path, samples: SampleSet, cfg: ConvertConfig, facts: dict[str, Any]
) -> list[ConversionJob]:
    """The shards of a file to make, or the file itself."""
    numbers, shards = cfg.shards_to_make()
    count = len(samples.names)
    if shards > count:
        raise UsageError(f"shards={shards} is more than the {count} images of {source}")
    measured = _measured(count, cfg)
    recipe = _recipe(samples, cfg)
    origin = {"source": source, "options": cfg.recorded(), "fastmoco_version": __version__}
    origin |= facts
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
    with _naming(source, job.target):
        return make_file(job)


@contextmanager
def _naming(source: str, target: Path) -> Iterator[None]:
    """Let errors name the source or the target, and say what to do."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{target}: cannot be written ({error.strerror}); an existing file is unchanged; "
            "fix the cause, then the same command resumes",
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{target}: interrupted; the same command resumes") from None
