"""`fastmoco merge-labels`: granted labels into a dataset file, whose images stay as they are."""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton_format import printable
from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.data.part import write_part
from fastmoco.data.sources.labels import labels_of_texts
from fastmoco.data.sources.tables import Table, read_table
from fastmoco.errors import UsageError, nearest_name
from fastmoco.files import read_json_object
from fastmoco.labeling.settings import MergeLabelsConfig

REQUEST_KEYS = ("dataset_fingerprint", "run", "checkpoint_sha256", "step")
"""What `fastmoco merge-labels` needs of ``request.json``."""


@dataclass(kw_only=True, slots=True)
class MergeSummary:
    """What was merged."""

    path: str
    num_samples: int
    """In the file that was written."""
    num_labeled: int
    """Of them, with a label."""
    num_granted: int
    num_requested: int
    granted_per_class: dict[str, int]
    fingerprint: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """For people; how evenly the labels fell, as uneven ones may do harm."""
        counts = sorted(self.granted_per_class.values())
        empty = sum(count == 0 for count in counts)
        classes = f"{counts[0]:,} to {counts[-1]:,} a class" if counts else "no classes"
        classes += f", {empty} classes without any" if empty else ""
        return (
            f"{self.path}: {self.num_samples:,} images, {self.num_labeled:,} labeled; "
            f"{self.num_granted:,} of {self.num_requested:,} requested labels granted ({classes})"
        )


@dataclass(slots=True)
class _Request:
    """What was asked for."""

    folder: Path
    facts: dict[str, Any]
    """`request.json`."""
    paths: dict[int, str]
    """Name of each requested image by its id."""


def merge_labels(folder: Path, cfg: MergeLabelsConfig) -> MergeSummary:
    """Write a dataset file with the labels that were granted on a request.

    Stored images are copied byte by byte. Nothing is written before all labels are checked.

    Args:
        folder: Of the request.
        cfg: From `load_config`.

    Raises:
        UsageError: If an option is missing; if a label is of an image that was not requested, of
            an unknown class, or the second of its image.
        ValueError: If the request is none, or of another dataset, or a file is damaged.
        OSError: If a file cannot be read or written; what stood there before stays.
    """
    start = time.monotonic()
    labels_path, data, out = _checked(cfg)
    asked = _read_request(folder)
    with open_dataset(data) as dataset:
        _check_dataset(asked, dataset)
        granted = _granted(asked, read_table(labels_path, ["sample_id", "path", "label"]))
        classes = _classes(dataset, cfg, list(granted.values()))
        numbers = _numbers(granted, classes)
        merged = _merged(dataset, numbers, classes, cfg.overwrite)
        _warn_of_checkpoint(asked, cfg.run)
        ids = np.flatnonzero(merged >= 0) if cfg.only_labeled else np.arange(len(dataset))
        origin = {"source": str(data), "request": str(folder), "labels": str(labels_path)}
        fingerprint = write_part(
            out, dataset, ids, labels=merged[ids], classes=classes, origin=origin
        )
    counts = np.bincount(list(numbers.values()), minlength=len(classes)).tolist()
    return MergeSummary(
        path=str(out),
        num_samples=len(ids),
        num_labeled=int((merged >= 0).sum()),
        num_granted=len(numbers),
        num_requested=len(asked.paths),
        granted_per_class=dict(zip(classes, counts, strict=True)),
        fingerprint=fingerprint,
        seconds=time.monotonic() - start,
    )


def _checked(cfg: MergeLabelsConfig) -> tuple[Path, Path, Path]:
    if cfg.labels is None:
        raise UsageError("labels is not set; add labels=FILE.csv, with sample_id (or path), label")
    if cfg.data.train is None:
        raise UsageError("data.train is not set; give the dataset that was requested from")
    if cfg.out is None or cfg.out.suffix != ".beton":
        raise UsageError(f"out={cfg.out} must name the file to write, one that ends in .beton")
    return cfg.labels, cfg.data.train, cfg.out


def _read_request(folder: Path) -> _Request:
    again = "make the request again"
    try:
        facts = read_json_object(folder / "request.json", REQUEST_KEYS, mend=again)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{folder} holds no finished request of `fastmoco request`") from error
    table = read_table(folder / "request.csv", ["sample_id", "path"])
    ids, paths = table.column("sample_id"), table.column("path")
    for row, text in enumerate(ids):
        if not text.isdecimal():
            place = f"{table.path}: {table.place(row)}"
            raise ValueError(f"{place} has the sample_id {text!r}, which is no number; {again}")
    return _Request(folder, facts, dict(zip(map(int, ids), paths, strict=True)))


def _check_dataset(asked: _Request, dataset: Dataset) -> None:
    """The dataset of the request, or one that has the same images under their ids.

    Such as one that earlier labels were merged into.
    """
    same = asked.facts["dataset_fingerprint"] == dataset.fingerprint
    if same and max(asked.paths, default=-1) < len(dataset):
        return
    for sample, path in asked.paths.items():
        name = printable(dataset.name(sample)) if sample < len(dataset) else "missing"
        if name != path or not dataset.has_checksums:
            raise UsageError(
                f"{dataset.path} is not the dataset that {asked.folder} was made of: its sample "
                f"{sample} is {name}, there it was {path}; give that dataset as data.train"
            )


def _granted(asked: _Request, table: Table) -> dict[int, tuple[str, str]]:
    """Label and its place in the table, of each image that has one there.

    Raises:
        UsageError: If an image was not requested, or has two labels.
    """
    texts = [text.strip() for text in table.column("label")]
    by_path = {path: sample for sample, path in asked.paths.items()}
    ids = table.columns.get("sample_id")
    paths = table.columns.get("path", [""] * len(texts))
    if ids is None and "path" not in table.columns:
        table.column("sample_id")  # says which columns there are
    found: dict[int, tuple[str, str]] = {}
    for row, text in enumerate(texts):
        if text in ("", "-1"):  # asked for, not granted
            continue
        place = f"{table.path}: {table.place(row)}"
        sample = _requested(asked, by_path, ids[row].strip() if ids else "", paths[row], place)
        if sample in found:
            before, first = found[sample]
            raise UsageError(
                f"{place} labels sample {sample} as {text}, {first.rpartition(': ')[2]} has it as "
                f"{before}; keep one of them"
            )
        found[sample] = (text, place)
    if not found:
        raise UsageError(f"{table.path} grants no labels; nothing is written")
    return found


def _requested(
    asked: _Request, by_path: Mapping[str, int], text: str, path: str, place: str
) -> int:
    """Which image a row is about."""
    if not text:
        if path not in by_path:
            raise UsageError(f"{place} is about {path}, which {asked.folder} did not request")
        return by_path[path]
    sample = int(text) if text.isdecimal() else -1
    if sample not in asked.paths:
        raise UsageError(f"{place} is about sample {text}, which {asked.folder} did not request")
    if path and path != asked.paths[sample]:
        raise UsageError(
            f"{place} has sample {sample} as {path}, but it is {asked.paths[sample]}; are these "
            "the labels of another request?"
        )
    return sample


def _classes(
    dataset: Dataset, cfg: MergeLabelsConfig, granted: Sequence[tuple[str, str]]
) -> list[str]:
    """Of the dataset, of the file that is named for it, or those of the labels themselves."""
    if cfg.classes is not None:
        with open_dataset(cfg.classes) as other:
            if dataset.classes and dataset.classes != other.classes:
                raise UsageError(
                    f"classes={cfg.classes} has other classes than {dataset.path}; leave it out"
                )
            return list(other.classes)
    if dataset.classes:
        return list(dataset.classes)
    texts = [text for text, _ in granted]
    return labels_of_texts(texts, cfg.labels, lambda row: granted[row][1].rpartition(": ")[2])[1]


def _numbers(granted: Mapping[int, tuple[str, str]], classes: Sequence[str]) -> dict[int, int]:
    """Class of each granted image: by name or, where no class is called so, by number.

    Raises:
        UsageError: If it is neither.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    found = {}
    for sample, (text, place) in granted.items():
        number = number_of.get(text, int(text) if text.isdecimal() else -1)
        if not 0 <= number < len(classes):
            raise UsageError(
                f"{place} has the class {text}, which is unknown"
                f"{nearest_name(text, list(classes[:50]))}"
            )
        found[sample] = number
    return found


def _merged(
    dataset: Dataset, numbers: Mapping[int, int], classes: Sequence[str], overwrite: bool
) -> NDArray[np.int64]:
    """All labels, the granted ones among them.

    Raises:
        UsageError: If one contradicts a label that is there.
    """
    merged = dataset.labels.copy()
    for sample, number in numbers.items():
        old = int(merged[sample])
        if old not in (-1, number) and not overwrite:
            known = classes[old] if old < len(classes) else old
            raise UsageError(
                f"sample {sample} ({printable(dataset.name(sample))}) is labeled already in "
                f"{dataset.path}: {known}, now {classes[number]}; overwrite=true takes the new one"
            )
        merged[sample] = number
    return merged


def _warn_of_checkpoint(asked: _Request, run: Path | None) -> None:
    """Say so where the encoder that will use the labels is not the one that asked for them.

    What was hard for it need not be hard for another.
    """
    from fastmoco.runs.checkpoint import CheckpointError, find_checkpoint, weights_sha256

    try:
        found = find_checkpoint(run or Path(asked.facts["run"]))
        sha256 = weights_sha256(found)
    except (CheckpointError, OSError):
        if run is not None:
            raise
        return  # moved or removed since: there is no other one at hand
    if sha256 != asked.facts["checkpoint_sha256"]:
        warnings.warn(
            f"{found} is not the checkpoint that {asked.folder} was made with (step "
            f"{asked.facts['step']}): what that one found hard, this one may not; request anew for "
            "labels that fit it",
            stacklevel=3,
        )
