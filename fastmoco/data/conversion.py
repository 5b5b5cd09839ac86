"""Conversion of a list of samples to one .beton file: in order, atomic, resumable.

Threads load and encode batches of samples. The batches are written in the source's order, so the
file depends neither on the number of threads nor on their speed. Each second a journal records
what the unfinished file holds. The journal stays until the complete conversion is done (`forget`),
so that finished shards are not made again.
"""

import json
import time
import warnings
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.data.beton_format import sidecar_path
from fastmoco.data.beton_writer import BetonWriter
from fastmoco.data.encode import EncodedBatch
from fastmoco.data.facts import channel_statistics, describe_contents
from fastmoco.data.journal import Journal, Record, journal_path
from fastmoco.data.progress import show_progress
from fastmoco.data.quarantine import write_quarantine
from fastmoco.data.settings import ConvertConfig, OnError
from fastmoco.data.sources import SampleSet
from fastmoco.data.tally import Row, Tally, Totals
from fastmoco.data.workers import encoded_batches
from fastmoco.files import atomic_write_text

LISTED_DUPLICATES = 1000  # groups of images; all are counted
RECORD_SECONDS = 1.0  # of work that a kill loses; the journal grows by some 0.1 MB per second


@dataclass(slots=True)
class ConversionJob:
    """A file to make."""

    target: Path
    """Path of the file."""
    samples: SampleSet
    """Samples of the file."""
    measured: NDArray[np.bool_]
    """Which samples count in the channel statistics, ``(n,)``."""
    cfg: ConvertConfig
    """Options."""
    recipe: str
    """Hex digest of everything that determines the file's bytes."""
    origin: dict[str, Any]
    """Facts for the JSON file, which do not affect the file's bytes."""


@dataclass(kw_only=True, slots=True)
class Made:
    """A finished file."""

    totals: Totals
    """Totals over its samples."""
    fingerprint: str
    """Hex SHA-256 of the file's index."""
    num_resumed: int
    """Samples that an interrupted run had already processed."""


def make_file(job: ConversionJob) -> Made:
    """Make ``job.target``, ``NAME.beton.json`` and, for bad images, ``NAME.quarantine.csv``.

    Raises:
        ValueError: If no image is usable; with ``on_error=fail``, at the first bad image.
        OSError: If a file cannot be written; finished work is kept if it can be resumed.
    """
    cfg = job.cfg
    writer = BetonWriter(
        job.target, capacity=len(job.samples.names), page_bytes=cfg.page_bytes, resume=True
    )
    try:
        with writer, Journal(journal_path(job.target), job.recipe) as journal:
            return _Conversion(job, writer, journal).run()
    except BaseException:
        if not writer.keep_partial:
            forget(job.target)
        raise


def forget(target: Path) -> None:
    """Remove a target's journal."""
    journal_path(target).unlink(missing_ok=True)


def quarantine_path(target: Path) -> Path:
    """Path of the list of bad images: ``train.beton`` -> ``train.quarantine.csv``."""
    return target.with_suffix(".quarantine.csv")


class _Conversion:
    """Conversion of one file."""

    def __init__(self, job: ConversionJob, writer: BetonWriter, journal: Journal) -> None:
        self.job, self.writer, self.journal = job, writer, journal
        self.totals = Totals()
        self.pending = Tally()  # since the journal's last record

    def run(self) -> Made:
        """Do the work that is left."""
        finished = self._resume()
        num_resumed = self.totals.num_done
        if not finished:
            self._encode_rest()
            finished = self._complete()
        self._describe()
        return Made(totals=self.totals, fingerprint=finished, num_resumed=num_resumed)

    def _resume(self) -> str:
        """Resume an interrupted run; return the fingerprint if the file is complete."""
        if self.journal.is_foreign:
            warnings.warn(
                f"{self.job.target}: discarding an unfinished conversion of other images or "
                "options; starting from the first image",
                stacklevel=6,
            )
        finished = str(self.journal.last.get("fingerprint", ""))
        if finished and _is_complete(self.job.target, finished):
            self.journal.replay(lambda record: self._accept(record, is_complete=True))
            return finished
        self.journal.replay(lambda record: self._accept(record, is_complete=False))
        self.writer.keep_partial = self.journal.num_records > 0
        if not self.writer.keep_partial:
            self.writer.restart()
        return ""

    def _accept(self, record: Record, *, is_complete: bool) -> bool:
        """Count a record's samples, in an unfinished file only if it really holds them."""
        if "fingerprint" in record:
            return is_complete
        tally = Tally.from_record(record)
        held = self.writer.num_samples
        if not is_complete and not all(self._recall(row) for row in tally.stored):
            # The file lacks blobs that the journal lists, as after a power cut.
            self.writer.rewind(held)
            return False
        self.totals.add(tally)
        return True

    def _recall(self, row: Row) -> bool:
        index, mode, width, height, size, crc32, _ = row
        return self.writer.recall(
            size,
            mode=mode,
            width=width,
            height=height,
            label=int(self.job.samples.labels[index]),
            name=self.job.samples.names[index],
            crc32=crc32,
        )

    def _encode_rest(self) -> None:
        """Encode the remaining samples and add the good ones to the file."""
        samples, done = self.job.samples, self.totals.num_done
        for name, reason in self.totals.quarantined[:1]:
            self._fail_if_asked(name, reason)
        batches = encoded_batches(samples, self.job.measured, self.job.cfg, done)
        recorded = time.monotonic()
        with closing(batches), show_progress(len(samples.names), done) as advance:
            for batch in batches:
                self._add(batch, done)
                done += len(batch.images)
                advance(len(batch.images), batch.source_bytes)
                if time.monotonic() - recorded >= RECORD_SECONDS:
                    self._record()
                    recorded = time.monotonic()
        self._record()

    def _add(self, batch: EncodedBatch, start: int) -> None:
        """Add a batch to file and tally; ``start`` is the index of its first sample."""
        samples = self.job.samples
        for index, image in enumerate(batch.images, start):
            name = samples.names[index]
            if isinstance(image, str):
                self.pending.quarantined.append((name, image))
                self._fail_if_asked(name, image)
                continue
            self.writer.add(
                image.blob,
                mode=image.mode,
                width=image.width,
                height=image.height,
                label=int(samples.labels[index]),
                name=name,
                crc32=image.crc32,
            )
            self.pending.store(index, image)
        self.pending.moments += batch.moments
        self.pending.source_bytes += batch.source_bytes

    def _record(self) -> None:
        """Record in the journal what the file holds now."""
        self.writer.flush()
        self.journal.append(self.pending.to_record())
        self.writer.keep_partial = True
        self.totals.add(self.pending)
        self.pending = Tally()

    def _fail_if_asked(self, name: str, reason: str) -> None:
        """Stop at a bad image, or if there are too many of them.

        Raises:
            ValueError: By ``on_error`` and ``max_bad_fraction``.
        """
        cfg, count = self.job.cfg, len(self.job.samples.names)
        if cfg.on_error is OnError.fail:
            raise ValueError(f"{name}: {reason}; on_error=quarantine skips bad images")
        bad = len(self.totals.quarantined) + len(self.pending.quarantined)
        if count > bad > cfg.max_bad_fraction * count:
            raise ValueError(
                f"{bad} of its {count} images are bad so far, more than max_bad_fraction="
                f"{cfg.max_bad_fraction:g}; the last is {name}: {reason}; fix them, or set "
                "max_bad_fraction=1 to go on without them"
            )

    def _complete(self) -> str:
        """Finish the file, replace the target, and return the fingerprint.

        The list of bad images comes first and the JSON file last: a kill in between leaves each
        file complete, and no file without its list.
        """
        totals = self.totals
        if not totals.num_stored:
            self.writer.keep_partial = False
            name, reason = totals.quarantined[0]
            raise ValueError(
                f"none of its {len(totals.quarantined)} images is usable; the first is {name}: "
                f"{reason}"
            )
        facts = {
            **channel_statistics(totals.moments),
            "num_duplicates": totals.num_duplicates,
            "num_quarantined": len(totals.quarantined),
        }
        fingerprint = self.writer.finish(self.job.samples.classes, facts)
        self.journal.append({"fingerprint": fingerprint})
        if totals.quarantined:
            write_quarantine(quarantine_path(self.job.target), totals.quarantined)
        self.writer.commit()
        return fingerprint

    def _describe(self) -> None:
        """Write the JSON file of facts, and remove an outdated list of bad images.

        Needed even if the target was complete: the earlier run may have ended in between.
        """
        target = self.job.target
        if not self.totals.quarantined:
            quarantine_path(target).unlink(missing_ok=True)
        with BetonFile.open(target) as beton:
            contents = describe_contents(beton.labels, beton.widths, beton.heights, beton.classes)
            described = {"fingerprint": beton.fingerprint, **contents, **beton.facts}
            groups = self.totals.duplicates(LISTED_DUPLICATES)
            described["duplicates"] = [[beton.name(i) for i in group] for group in groups]
        text = json.dumps(described | self.job.origin, indent=1) + "\n"
        atomic_write_text(sidecar_path(target), text)


def _is_complete(target: Path, fingerprint: str) -> bool:
    """Whether the target already has this fingerprint."""
    try:
        with BetonFile.open(target) as beton:
            return beton.fingerprint == fingerprint
    except (BetonError, OSError):
        return False
