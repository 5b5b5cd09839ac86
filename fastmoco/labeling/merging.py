"""`fastmoco merge-labels`: write granted labels into a dataset file; its images stay unchanged."""

import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton_format import printable
from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.data.part import write_part
from fastmoco.data.sources.labels import label_texts, labels_of_texts
from fastmoco.data.sources.tables import Table, read_table
from fastmoco.errors import UsageError, nearest_name
from fastmoco.files import read_json_object
from fastmoco.labeling.settings import MergeLabelsConfig
from fastmoco.runs.checkpoint import load_checkpoint, weights_sha256
from fastmoco.runs.checkpoint_files import CheckpointError


@dataclass(kw_only=True, slots=True)
class MergeSummary:
    """The merged dataset file, and how the labels are distributed."""

    path: str
    num_samples: int
    """Images in the written file."""
    num_labeled: int
    """Images with a label, old or new."""
    num_granted: int
    num_requested: int
    granted_per_class: dict[str, int]
    fingerprint: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """For people; with the range of labels per class, as uneven labels may do harm."""
        counts = sorted(self.granted_per_class.values())
        empty = sum(count == 0 for count in counts)
        classes = f"{counts[0]:,} to {counts[-1]:,} per class" if counts else "no classes"
        classes += f", {empty} classes without any" if empty else ""
        return (
            f"{self.path}: {self.num_samples:,} images, {self.num_labeled:,} labeled; "
            f"{self.num_granted:,} of {self.num_requested:,} requested labels granted ({classes})"
        )


@dataclass(slots=True)
class _Request:
    """A finished request."""

    folder: Path
    facts: dict[str, Any]
    """Entries of ``request.json``."""
    paths: dict[int, str]
    """Name of each requested image, by its sample id."""


def merge_labels(folder: Path, cfg: MergeLabelsConfig) -> MergeSummary:
    """Write a dataset file with the labels that were granted for a request.

    Stored images are copied byte by byte. Nothing is written until all labels are checked.

    Args:
        folder: Folder of the request.
        cfg: From `load_config`.

    Raises:
        UsageError: If an option is missing, the folder holds no finished request, the request is of
            another dataset, or a label is for an image that was not requested, names an unknown
            class, or is the second one of its image.
        ValueError: If a file is damaged.
        OSError: If a file cannot be read or written; an existing output file then stays.
    """
    start = time.monotonic()
    labels_path, data, out = _checked(cfg)
    asked = _read_request(folder)
    with open_dataset(data) as dataset:
        _check_dataset(asked, dataset)
        table = read_table(labels_path, ["sample_id", "path", "label"])
        granted = _granted(asked, table, frozenset(dataset.classes))
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
        raise UsageError("labels is not set; give labels=FILE.csv with sample_id (or path), label")
    if cfg.data.train is None:
        raise UsageError("data.train is not set; give the dataset that the request was made from")
    if cfg.out is None or cfg.out.suffix != ".beton":
        raise UsageError(f"out must name the .beton file to write, got {cfg.out}")
    return cfg.labels, cfg.data.train, cfg.out


def _read_request(folder: Path) -> _Request:
    advice = "make the request again"
    types = {"dataset_fingerprint": str, "run": str, "checkpoint_sha256": str, "step": int}
    try:
        facts = read_json_object(folder / "request.json", types, advice=advice)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"{folder} holds no finished request; give the output folder of `fastmoco request`"
        ) from error
    table = read_table(folder / "request.csv", ["sample_id", "path"])
    ids, paths = table.column("sample_id"), table.column("path")
    for row, text in enumerate(ids):
        if not text.isdecimal():
            where = f"{table.path}: {table.place(row)}"
            raise ValueError(f"{where} has the sample_id {text!r}, not a number; {advice}")
    return _Request(folder, facts, dict(zip(map(int, ids), paths, strict=True)))


def _check_dataset(asked: _Request, dataset: Dataset) -> None:
    """Check that the requested images have the same ids in a dataset.

    The dataset is the request's own, or one with the same images, such as the result of an earlier
    merge.

    Raises:
        UsageError: If an image is missing, has another name or has no checksum.
    """
    same = asked.facts["dataset_fingerprint"] == dataset.fingerprint
    if same and max(asked.paths, default=-1) < len(dataset):
        return
    for sample, path in asked.paths.items():
        name = printable(dataset.name(sample)) if sample < len(dataset) else "missing"
        if name != path or not dataset.has_checksums:
            raise UsageError(
                f"{dataset.path} is not the dataset of the request in {asked.folder}: its sample "
                f"{sample} is {name}, the requested one is {path}; set data.train to that dataset"
            )


def _granted(asked: _Request, table: Table, known: Collection[str]) -> dict[int, tuple[str, str]]:
    """Label of each labeled image by its id, with the file and line that it comes from.

    `known` are the dataset's classes.

    Raises:
        UsageError: If an image was not requested or has two labels, or there are no labels.
    """
    texts = label_texts(table.column("label"), table.path, known)
    by_path = {path: sample for sample, path in asked.paths.items()}
    ids = table.columns.get("sample_id")
    ids = ids and label_texts(ids, table.path)  # pandas writes them as 3.0 where some are missing
    paths = table.columns.get("path", [""] * len(texts))
    if ids is None and "path" not in table.columns:
        table.column("sample_id")  # raises an error that lists the columns
    found: dict[int, tuple[str, str]] = {}
    for row, text in enumerate(texts):
        if text in ("", "-1"):  # requested but not granted
            continue
        where = f"{table.path}: {table.place(row)}"
        sample = _requested(asked, by_path, ids[row] if ids else "", paths[row], where)
        if sample in found:
            before, first = found[sample]
            raise UsageError(
                f"{where} labels sample {sample} as {text}, {first.rpartition(': ')[2]} labels it "
                f"as {before}; keep one of them"
            )
        found[sample] = (text, where)
    if not found:
        raise UsageError(f"{table.path} grants no labels; fill in its column label")
    return found


def _requested(
    asked: _Request, by_path: Mapping[str, int], text: str, path: str, where: str
) -> int:
    """Id of the image that a row is about: by `text`, its sample_id, or without one by its path."""
    if not text:
        if path not in by_path:
            raise UsageError(f"{where} is about {path}, which {asked.folder} did not request")
        return by_path[path]
    sample = int(text) if text.isdecimal() else -1
    if sample not in asked.paths:
        raise UsageError(f"{where} is about sample {text}, which {asked.folder} did not request")
    if path and path != asked.paths[sample]:
        raise UsageError(
            f"{where} has sample {sample} as {path}, but it is {asked.paths[sample]}; give the "
            "labels of this request"
        )
    return sample


def _classes(
    dataset: Dataset, cfg: MergeLabelsConfig, granted: Sequence[tuple[str, str]]
) -> list[str]:
    """Class names of the dataset, else of the file in `classes`, else of the labels themselves."""
    if cfg.classes is not None:
        with open_dataset(cfg.classes) as other:
            if dataset.classes and dataset.classes != other.classes:
                raise UsageError(
                    f"classes={cfg.classes} has other classes than {dataset.path}; omit classes"
                )
            return list(other.classes)
    if dataset.classes:
        return list(dataset.classes)
    texts = [text for text, _ in granted]
    return labels_of_texts(texts, cfg.labels, lambda row: granted[row][1].rpartition(": ")[2])[1]


def _numbers(granted: Mapping[int, tuple[str, str]], classes: Sequence[str]) -> dict[int, int]:
    """Class number of each granted image: its label is a class name, else a class number.

    Raises:
        UsageError: If a label is neither.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    found = {}
    for sample, (text, where) in granted.items():
        number = number_of.get(text, int(text) if text.isdecimal() else -1)
        if not 0 <= number < len(classes):
            near = nearest_name(text, list(classes[:50]))
            raise UsageError(f"{where} has the class {text}, which is unknown{near}")
        found[sample] = number
    return found


def _merged(
    dataset: Dataset, numbers: Mapping[int, int], classes: Sequence[str], overwrite: bool
) -> NDArray[np.int64]:
    """Labels of all images, with the granted ones filled in.

    Raises:
        UsageError: If a granted label contradicts an existing one and `overwrite` is false.
    """
    merged = dataset.labels.copy()
    for sample, number in numbers.items():
        old = int(merged[sample])
        if old not in (-1, number) and not overwrite:
            known = classes[old] if old < len(classes) else old
            raise UsageError(
                f"sample {sample} ({printable(dataset.name(sample))}) is already labeled {known} "
                f"in {dataset.path}, now {classes[number]}; set overwrite=true to replace it"
            )
        merged[sample] = number
    return merged


def _warn_of_checkpoint(asked: _Request, run: Path | None) -> None:
    """Warn if the encoder that will use the labels is not the one that requested them.

    Images that were hard for one encoder need not be hard for another.
    """
    try:
        checkpoint = load_checkpoint(run or Path(asked.facts["run"]))
        sha256 = weights_sha256(checkpoint)
    except (CheckpointError, OSError):
        if run is not None:
            raise
        return  # moved or removed since the request: there is no encoder to compare
    if sha256 != asked.facts["checkpoint_sha256"]:
        warnings.warn(
            f"{checkpoint.path} is not the checkpoint that made the request in {asked.folder} "
            f"(step {asked.facts['step']}): images that were hard for that one may be easy "
            "for this one; make a new request for labels that suit it",
            stacklevel=3,
        )
