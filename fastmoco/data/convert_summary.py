"""Summary of a conversion."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton_format import printable
from fastmoco.data.conversion import ConversionJob, Made, quarantine_path
from fastmoco.data.facts import count_classes, description_text, first_names, plain_values
from fastmoco.data.holdout import Split
from fastmoco.data.quarantine import many_left_out
from fastmoco.data.shards import set_fingerprint
from fastmoco.data.sources import SampleSet
from fastmoco.data.sources.passed_over import Passed
from fastmoco.data.tally import Totals

MAX_CLASSES_PRINTED = 20
TWELVE_BIT = (
    "images of 16 bits whose values stay below 4096, so they are dark; if their range is 12 bits, "
    "multiply the values by 16 and convert again"
)


@dataclass(kw_only=True, slots=True)
class HeldOut:
    """The second file of a conversion with ``holdout``."""

    path: Path
    """The test file; with several shards, the pattern that matches them."""
    num_samples: int
    """Images in it."""
    num_copies: int
    """Images of the source that are copies of another one, on the same side as that one."""
    untested: list[str]
    """Classes without a test image."""


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
    passed_over: list[Passed]
    """Files of the source that are no images, by reason."""
    classes: list[str]
    """Class names; ``[]`` if unlabeled."""
    class_counts: dict[str, int]
    """Images of each class in all files made."""
    num_unlabeled: int
    """Images without a label in all files made."""
    num_duplicates: int
    """Images with the same stored bytes as another one, over all files made."""
    num_twelve_bit: int
    """Images of 16 bits per channel that use only the lower 12, and so are dark."""
    num_bytes: int
    """Size of all files made, in bytes."""
    source_bytes: int
    """Bytes read from the source."""
    seconds: float
    """Duration."""
    images_per_second: float
    """Images read, good or bad, per second."""
    fingerprint: str
    """Hex SHA-256 of the file's index; of several files, of their fingerprints."""
    held_out: HeldOut | None = None
    """The test file, if ``holdout`` is set; ``path`` and ``num_samples`` are then of the training
    file, all else is of both."""
    is_part: bool = False
    """Whether it is one shard, whose others are made elsewhere."""

    @property
    def next(self) -> str:
        """The command that trains on the files; "" if others are missing."""
        if self.is_part:
            return ""
        files = {"data.train": self.path}
        if self.held_out:
            files["data.test"] = self.held_out.path
        words = [f"{key}={path}" for key, path in files.items()]
        return shlex.join(["fastmoco", "train", "experiment=own", *words])

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        held_out = plain_values(asdict(self.held_out)) if self.held_out else None
        return plain_values(asdict(self)) | {"held_out": held_out, "next": self.next}

    def to_text(self) -> str:
        """Format as a table, without counts that are zero."""
        read = f"{self.source_bytes / 1e6 / self.seconds:,.1f} MB/s read"
        rows = {"file": self.path, "images": f"{self.num_samples:,}"}
        if self.held_out:
            rows |= {
                "test file": self.held_out.path,
                "test images": f"{self.held_out.num_samples:,}",
            }
        rows |= {
            "classes": _classes_text(self.class_counts, self.num_unlabeled),
            "size": f"{self.num_bytes / 1e6:,.1f} MB",
            "time": f"{self.seconds:,.1f} s",
            "rate": f"{self.images_per_second:,.0f} images/s, {read}",
        }
        remarks = {
            "resumed": (self.num_resumed, "done by the interrupted run"),
            "duplicates": (self.num_duplicates, "with the same bytes as another"),
            "12 bits": (self.num_twelve_bit, TWELVE_BIT),
        }
        if self.held_out:
            remarks |= _remarks(self.held_out)
        remarks["skipped"] = (self.num_quarantined, f"bad images, listed in {self.quarantine_path}")
        rows |= {row.reason: row.to_text() for row in self.passed_over}
        rows |= {name: f"{count:,} {what}" for name, (count, what) in remarks.items() if count}
        if self.next:
            rows["next"] = self.next
        if self.many_left_out:  # the last line is seen
            rows.pop("skipped", None)
            rows["skipped"] = self.many_left_out
        return description_text(rows)

    @property
    def many_left_out(self) -> str:
        """A sentence if more than a tenth of the images is left out, else ``""``."""
        good = self.num_samples + (self.held_out.num_samples if self.held_out else 0)
        bad = self.num_quarantined
        return many_left_out(bad, good + bad, self.quarantine_path)


def _classes_text(counts: Mapping[str, int], num_unlabeled: int) -> str:
    """Class names with their numbers of images; of many classes the first and the last."""
    if not counts:
        return "none"
    listed = [f"{printable(name)} {count:,}" for name, count in counts.items()]
    if len(listed) > MAX_CLASSES_PRINTED:
        few, most = min(counts.values()), max(counts.values())
        half = MAX_CLASSES_PRINTED // 4
        listed = [*listed[:half], "...", *listed[-half:], f"{few:,} to {most:,} images each"]
    if num_unlabeled:
        listed.append(f"no label {num_unlabeled:,}")
    return f"{len(counts):,}: {', '.join(listed)}"


def _remarks(held_out: HeldOut) -> dict[str, tuple[int, str]]:
    names = held_out.untested
    listed = first_names(names)
    alike = "images that look like another one, kept on the same side as that one"
    return {
        "copies": (held_out.num_copies, alike),
        "untested": (len(names), f"classes without a test image (too few that differ): {listed}"),
    }


@dataclass(slots=True)
class Converted:
    """A finished file, or the finished shards of one."""

    target: Path
    """The file that was asked for; shards have its name and a number."""
    jobs: list[ConversionJob]
    made: list[Made] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The file, or the pattern that matches its shards."""
        if len(self.jobs) == 1:
            return self.jobs[0].target
        return self.target.with_name(f"{self.target.stem}-*.beton")

    @property
    def num_stored(self) -> int:
        """Images in it."""
        return sum(one.totals.num_stored for one in self.made)


def summarize(
    parts: Sequence[Converted],
    destination: Path,
    samples: SampleSet,
    split: Split | None,
    seconds: float,
) -> ConvertSummary:
    """Sum up all files of a conversion: one part, or with a split those to train and test on."""
    totals, made = Totals(), [one for part in parts for one in part.made]
    for one in made:
        totals.merge(one.totals)
    targets = [job.target for part in parts for job in part.jobs]
    num_resumed = sum(one.num_resumed for one in made)
    class_counts, num_unlabeled = count_classes(_stored_labels(parts, totals), samples.classes)
    return ConvertSummary(
        path=parts[0].path,
        num_samples=parts[0].num_stored,
        num_resumed=num_resumed,
        num_quarantined=len(totals.quarantined),
        quarantine_path=_lists(dict(zip(targets, made, strict=True)), destination),
        passed_over=list(samples.passed_over.rows.values()),
        classes=samples.classes,
        class_counts=class_counts,
        num_unlabeled=num_unlabeled,
        num_duplicates=totals.num_duplicates,
        num_twelve_bit=totals.num_twelve_bit,
        num_bytes=sum(target.stat().st_size for target in targets),
        source_bytes=totals.source_bytes,
        seconds=seconds,
        images_per_second=(totals.num_done - num_resumed) / seconds,
        fingerprint=set_fingerprint([one.fingerprint for one in made]),
        held_out=_held_out(parts[1], split) if split else None,
        is_part=any(job.cfg.shard for part in parts for job in part.jobs),
    )


def _stored_labels(parts: Sequence[Converted], totals: Totals) -> NDArray[np.int64]:
    """Labels of the images in all files, ``(n,)``: of those made now, without bad images."""
    sets = [job.samples for part in parts for job in part.jobs]
    labels = np.concatenate([one.labels for one in sets])
    bad = {name for name, _ in totals.quarantined}
    if not bad:
        return labels
    return labels[[name not in bad for one in sets for name in one.names]]


def _held_out(part: Converted, split: Split) -> HeldOut:
    return HeldOut(
        path=part.path,
        num_samples=part.num_stored,
        num_copies=sum(map(len, split.copies)),
        untested=split.untested,
    )


def _lists(made: Mapping[Path, Made], destination: Path) -> Path | None:
    """The list of bad images, or the pattern that matches several."""
    lists = [quarantine_path(target) for target, one in made.items() if one.totals.quarantined]
    if len(lists) > 1:
        return quarantine_path(destination.with_name(f"{destination.stem}-*.beton"))
    return lists[0] if lists else None
