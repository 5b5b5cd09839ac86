"""Makes one .beton file of a list of samples: in order, atomically, going on after a kill.

Threads load and encode batches of samples; they are written in the source's order, so that neither
the number of threads nor their speed shows in the file. Each second it notes in a journal what the
unfinished file holds. The journal stays until the whole conversion is done (`forget`), so that of
several shards those that are done are not made again.
"""

import csv
import io
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
from fastmoco.data.beton_format import encode_text, sidecar_path
from fastmoco.data.beton_writer import BetonWriter
from fastmoco.data.encode import EncodedBatch, EncodeOptions
from fastmoco.data.facts import channel_statistics, describe_contents
from fastmoco.data.journal import Journal, Record, journal_path
from fastmoco.data.progress import show_progress
from fastmoco.data.settings import Check, ConvertConfig, Encoding, OnError
from fastmoco.data.sources import SampleSet
from fastmoco.data.tally import Row, Tally, Totals
from fastmoco.data.workers import encoded_batches
from fastmoco.files import atomic_path, atomic_write_text

LISTED_DUPLICATES = 1000  # groups of images; more are counted only
RECORD_SECONDS = 1.0  # what a kill costs, and the journal's rate: some 0.1 MB a second


@dataclass(slots=True)
class ConversionJob:
    """A file to make.

    Attributes:
        target: The file.
        samples: What goes into it.
        measured: Which samples count in the channel statistics, ``(n,)``.
        cfg: Options.
        recipe: Hex digest of all that decides the file's bytes.
        origin: Facts for people, which the file's bytes do not depend on.
    """

    target: Path
    samples: SampleSet
    measured: NDArray[np.bool_]
    cfg: ConvertConfig
    recipe: str
    origin: dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Made:
    """A file that was made.

    Attributes:
        totals: What was gathered over it.
        fingerprint: Hex SHA-256 of the file's index.
        num_resumed: Samples that an interrupted run had already dealt with.
    """

    totals: Totals
    fingerprint: str
    num_resumed: int


def make_file(job: ConversionJob) -> Made:
    """Makes ``job.target``, ``NAME.beton.json`` and, for bad images, ``NAME.quarantine.csv``.

    Raises:
        ValueError: If no image can be used; with ``on_error=fail``, at the first bad image.
        OSError: If a file cannot be written; what was done so far is kept where it is worth it.
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
    """Removes a target's journal."""
    journal_path(target).unlink(missing_ok=True)


def quarantine_path(target: Path) -> Path:
    """``train.beton`` -> ``train.quarantine.csv``."""
    return target.with_suffix(".quarantine.csv")


class _Conversion:
    """One file in the making."""

    def __init__(self, job: ConversionJob, writer: BetonWriter, journal: Journal) -> None:
        self.job, self.writer, self.journal = job, writer, journal
        self.totals = Totals()
        self.pending = Tally()  # since the journal's last record

    def run(self) -> Made:
        """Does what is left of it."""
        finished = self._take_up()
        num_resumed = self.totals.num_done
        if not finished:
            self._encode_rest()
            finished = self._complete()
        self._describe()
        return Made(totals=self.totals, fingerprint=finished, num_resumed=num_resumed)

    def _take_up(self) -> str:
        """Goes on where an interrupted run was; the fingerprint where all is done already."""
        if self.journal.is_foreign:
            warnings.warn(
                f"{self.job.target}: an unfinished conversion of other images or options is given "
                "up, this one starts anew",
                stacklevel=6,
            )
        finished = str(self.journal.last.get("fingerprint", ""))
        if finished and _stands(self.job.target, finished):
            self.journal.replay(lambda record: self._accept(record, in_place=True))
            return finished
        self.journal.replay(lambda record: self._accept(record, in_place=False))
        self.writer.keep_partial = self.journal.num_records > 0
        if not self.writer.keep_partial:
            self.writer.restart()
        return ""

    def _accept(self, record: Record, *, in_place: bool) -> bool:
        """Counts a record's samples; those of an unfinished file only if it really holds them."""
        if "fingerprint" in record:
            return in_place
        tally = Tally.from_record(record)
        held = self.writer.num_samples
        if not in_place and not all(self._recall(row) for row in tally.stored):
            # The file lacks what the journal tells of, as after a power cut.
            self.writer.rewind(held)
            return False
        self.totals.add(tally)
        return True

    def _recall(self, row: Row) -> bool:
        place, mode, width, height, size, crc32, _ = row
        return self.writer.recall(
            size,
            mode=mode,
            width=width,
            height=height,
            label=int(self.job.samples.labels[place]),
            name=self.job.samples.names[place],
            crc32=crc32,
        )

    def _encode_rest(self) -> None:
        """Encodes the samples that are left and adds the good ones to the file."""
        samples, done = self.job.samples, self.totals.num_done
        if self.totals.quarantined:
            self._fail_if_asked(*self.totals.quarantined[0])
        batches = encoded_batches(
            samples, self.job.measured, _encode_options(self.job.cfg), self.job.cfg.workers, done
        )
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
        """Adds a batch, whose first sample is ``start`` in the source, to file and tally."""
        samples = self.job.samples
        for place, image in enumerate(batch.images, start):
            name = samples.names[place]
            if isinstance(image, str):
                self._fail_if_asked(name, image)
                self.pending.quarantined.append((name, image))
                continue
            self.writer.add(
                image.blob,
                mode=image.mode,
                width=image.width,
                height=image.height,
                label=int(samples.labels[place]),
                name=name,
                crc32=image.crc32,
            )
            self.pending.store(place, image)
        self.pending.moments += batch.moments
        self.pending.source_bytes += batch.source_bytes

    def _record(self) -> None:
        """Notes in the journal what the file holds by now."""
        self.writer.flush()
        self.journal.append(self.pending.to_record())
        self.writer.keep_partial = True
        self.totals.add(self.pending)
        self.pending = Tally()

    def _fail_if_asked(self, name: str, reason: str) -> None:
        if self.job.cfg.on_error is OnError.fail:
            raise ValueError(f"{name}: {reason}; on_error=quarantine leaves such images out")

    def _complete(self) -> str:
        """Finishes the file and puts it in its place, with its companions; the fingerprint.

        The list of bad images comes first and the facts for people last: a kill in between leaves
        either file whole, and no file without its list.
        """
        totals = self.totals
        if not totals.num_stored:
            self.writer.keep_partial = False
            name, reason = totals.quarantined[0]
            raise ValueError(
                f"none of its {len(totals.quarantined)} images can be used; the first, {name}: "
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
            _write_quarantine(self.job.target, totals.quarantined)
        self.writer.commit()
        return fingerprint

    def _describe(self) -> None:
        """Writes the facts for people, and removes a list of bad images that is out of date.

        Also where the file was in its place already: the run before may have ended in between.
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


def _stands(target: Path, fingerprint: str) -> bool:
    """Whether the file of this fingerprint is in its place already."""
    try:
        with BetonFile.open(target) as beton:
            return beton.fingerprint == fingerprint
    except (BetonError, OSError):
        return False


def _encode_options(cfg: ConvertConfig) -> EncodeOptions:
    return EncodeOptions(
        max_size=cfg.max_size,
        quality=cfg.quality,
        raw=cfg.encoding is Encoding.raw,
        lossless=cfg.lossless,
        prove=cfg.check is Check.decode,
        page_bytes=cfg.page_bytes,
    )


def _write_quarantine(target: Path, quarantined: list[tuple[str, str]]) -> None:
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows([("path", "reason"), *quarantined])
    with atomic_path(quarantine_path(target)) as temporary:
        temporary.write_bytes(encode_text(rows.getvalue()))  # file names may hold any bytes
