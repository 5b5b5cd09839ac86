"""Labels that evaluation learns from: their checks, stratified parts and noise.

Every choice is a pure function of the seed and the sample's id, so parts are nested: the 1% part is
inside the 10% part, and labels that are wrong at a rate of 0.2 are also wrong at 0.4.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastmoco.data.dataset import Dataset
from fastmoco.data.sources.labels import split_table_name
from fastmoco.data.sources.tables import read_table
from fastmoco.draws.host import draw_keys
from fastmoco.draws.streams import INT64, Stream
from fastmoco.errors import UsageError


@dataclass(slots=True)
class Classes:
    """The classes of a task."""

    count: int
    names: list[str]
    """One name per class; its number if the datasets do not name it."""


def missing_set(which: str) -> UsageError:
    """The error for a dataset that is not set, ``train`` or ``test``."""
    advice = f"add a labeled dataset, data.{which}=FILE.beton"
    if which == "test":
        advice += (
            "; fastmoco convert FOLDER set.beton holdout=0.2 makes one, and fastmoco knn with "
            "leave_one_out=true needs none"
        )
    return UsageError(f"data.{which} is not set; {advice}")


def check_labels(train: Dataset, test: Dataset) -> Classes:
    """Check that a classifier can learn from one dataset and be measured on the other.

    Raises:
        UsageError: If a dataset has unlabeled images, class names differ, or the test set has a
            class that the training set lacks.
    """
    found = [set(np.unique(one.labels).tolist()) for one in (train, test)]
    for which, numbers in zip(("train", "test"), found, strict=True):
        if min(numbers) < 0:
            raise UsageError(
                f"data.{which} has images without a label; convert it from class folders or from a "
                "table with labels (fastmoco convert)"
            )
    # With numbered classes each dataset names only the classes up to its own last one.
    shared = min(len(train.classes), len(test.classes))
    if train.classes[:shared] != test.classes[:shared]:
        odd = sorted(set(train.classes) ^ set(test.classes)) or train.classes
        raise UsageError(
            f"data.train and data.test have different classes (such as {odd[0]}); "
            "convert both from folders of the same classes"
        )
    names = max(train.classes, test.classes, key=len)
    count = max(len(names), max(found[0] | found[1]) + 1)
    names = [*names, *(str(number) for number in range(len(names), count))]
    if missing := found[1] - found[0]:
        one = min(missing)
        raise UsageError(
            f"class {names[one]} of data.test has no image in data.train; both must have the same "
            "classes"
        )
    return Classes(count, names)


def stratified_part(labels: INT64, share: float, seed: int) -> INT64:
    """Choose a fraction of every class, at least one image each.

    Args:
        labels: ``(n,)``.
        share: Fraction in (0, 1].
        seed: Seed of the choice.

    Returns:
        Ids in ascending order, int64.
    """
    return np.sort(_first_of_classes(labels, share, seed, Stream.LABELED_PART))


def hold_out(labels: INT64, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Choose the images to hold out of training, ``(n,)`` bool: a fraction of every class.

    They serve to choose a setting. A class of one image keeps it.
    """
    held = np.zeros(len(labels), bool)
    held[_first_of_classes(labels, share, seed, Stream.HELD_OUT, spare=1)] = True
    return held


def _first_of_classes(
    labels: INT64, share: float, seed: int, stream: Stream, spare: int = 0
) -> INT64:
    """Take the images of least hash in every class: at least one, but at most all but `spare`."""
    order = np.argsort(_hashes(len(labels), seed, stream), kind="stable")
    order = order[np.argsort(labels[order], kind="stable")]
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    takes = np.minimum(np.maximum(1, np.rint(share * counts).astype(np.int64)), counts - spare)
    chosen = [order[start : start + take] for start, take in zip(starts, takes, strict=True)]
    return np.concatenate(chosen)


def symmetric_noise(labels: INT64, rate: float, num_classes: int, seed: int) -> INT64:
    """Replace each label, with probability `rate`, by another class; all others are equally likely.

    Args:
        labels: ``(n,)``, 0 or more.
        rate: Probability in [0, 1].
        num_classes: C, at least 2.
        seed: Seed of all draws.

    Returns:
        ``(n,)`` int64.
    """
    wrong = _uniforms(len(labels), seed, Stream.WRONG_LABEL) < rate
    chosen = _uniforms(len(labels), seed, Stream.WRONG_CLASS)
    step = 1 + (chosen * (num_classes - 1)).astype(np.int64)
    return np.where(wrong, (labels + step) % num_classes, labels)


def _hashes(count: int, seed: int, stream: Stream) -> npt.NDArray[np.uint64]:
    return draw_keys(seed, int(stream), np.arange(count)).view(np.uint64)


def _uniforms(count: int, seed: int, stream: Stream) -> npt.NDArray[np.float64]:
    """Draw uniform numbers in [0, 1) with 53 random bits."""
    return (_hashes(count, seed, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def noisy_labels(dataset: Dataset, noise: str, classes: Classes, seed: int) -> INT64:
    """Return the labels to learn from, ``(n,)`` int64.

    Args:
        dataset: The training set.
        noise: ``""``: the dataset's labels; a number: `symmetric_noise` of that rate; or
            ``FILE.csv:COLUMN`` (TSV, Parquet), a table with a column ``path``, such as Imagenette's
            ``noisy_imagenette.csv:noisy_labels_25``.
        classes: The result of `check_labels`.
        seed: Seed of the symmetric noise.

    Raises:
        UsageError: If `noise` is none of these, or the table lacks an image or has other classes.
    """
    if not noise:
        return dataset.labels
    if table := split_table_name(noise):
        return _labels_of_table(dataset, *table, classes)
    try:
        rate = float(noise)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise UsageError(
            f"label_noise must be a rate in [0, 1] or a column of a table, got {noise}; "
            "set it to 0.25 or to FILE.csv:COLUMN, for example"
        )
    if classes.count < 2:
        raise UsageError("label_noise needs two classes or more, but data.train has one")
    return symmetric_noise(dataset.labels, rate, classes.count, seed)


def _labels_of_table(dataset: Dataset, path: Path, column: str, classes: Classes) -> INT64:
    """Read labels by the images' relative paths, with or without a leading ``train/``."""
    table = read_table(path, ["path", column])
    rows = {name: row for row, name in enumerate(table.column("path"))}
    below = {name.partition("/")[2]: row for name, row in rows.items() if name.startswith("train/")}
    texts, wanted = table.column(column), []
    for sample_id in range(len(dataset)):
        name = dataset.name(sample_id)
        row = rows.get(name, below.get(name))
        if row is None:
            raise UsageError(f"label_noise={path}:{column} has no row for {name} of data.train")
        wanted.append(texts[row].strip())
    number_of = {name: number for number, name in enumerate(classes.names)}
    if odd := next((text for text in wanted if text not in number_of), None):
        raise UsageError(
            f"label_noise={path}:{column} has the class {odd!r}, which data.train has not; "
            f"its classes are {', '.join(classes.names[:5])}, ..."
        )
    return np.array([number_of[text] for text in wanted], np.int64)
