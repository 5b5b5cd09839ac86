"""Labels that evaluation learns from: their checks, stratified parts and noise.

Every choice is a pure function of the seed and the sample's id, so parts are nested: the 1% part is
inside the 10% part, and labels that are wrong at a rate of 0.2 are also wrong at 0.4.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastmoco.data.beton_format import printable
from fastmoco.data.dataset import Dataset
from fastmoco.data.facts import first_names
from fastmoco.data.sources.label_files import split_table_name
from fastmoco.data.sources.labels import label_texts
from fastmoco.data.sources.table_paths import rows_of_images
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

    Where both name their classes, the names decide: ``test.labels`` is replaced by the numbers of
    the training set's classes. A class without a test image is allowed, with a warning.

    Raises:
        UsageError: If a dataset has unlabeled images, or the test set has a class that the training
            set lacks.
    """
    for which, one in (("train", train), ("test", test)):
        _refuse_unlabeled(which, one)
    if train.classes and test.classes != train.classes[: len(test.classes)]:
        test.labels = _numbers_in_training(train, test)
    learned, measured = (set(np.unique(one.labels).tolist()) for one in (train, test))
    names = train.classes or test.classes
    count = max(len(names), max(learned | measured) + 1)
    names = [*names, *(str(number) for number in range(len(names), count))]
    if missing := measured - learned:
        raise _class_without_training(names[min(missing)])
    if untested := [names[number] for number in sorted(learned - measured)]:
        warnings.warn(
            f"data.test has no image of {len(untested):,} of {len(learned):,} classes "
            f"({first_names(untested)}); the accuracy is over the others",
            stacklevel=2,
        )
    return Classes(count, names)


def _refuse_unlabeled(which: str, dataset: Dataset) -> None:
    unlabeled = np.flatnonzero(dataset.labels < 0)
    if len(unlabeled):
        first = printable(dataset.name(int(unlabeled[0])))
        raise UsageError(
            f"data.{which} has images without a label ({len(unlabeled):,} of {len(dataset):,}, "
            f"first {first}); put each image into the folder of its class, "
            "or elsewhere, or give labels=FILE, and run fastmoco convert again"
        )


def _numbers_in_training(train: Dataset, test: Dataset) -> INT64:
    """Labels of the test set as numbers of the training set's classes of the same names.

    Raises:
        UsageError: If a class with test images is unknown there, or two classes have one name.
    """
    number_of = {name: number for number, name in enumerate(train.classes)}
    largest = int(test.labels.max())
    names = [*test.classes, *(str(one) for one in range(len(test.classes), largest + 1))]
    odd = [names[one] for one in np.unique(test.labels) if names[one] not in number_of]
    if number_of.keys().isdisjoint(names) or len(number_of) < len(train.classes):
        raise UsageError(
            f"data.train and data.test have different classes (such as {[*odd, *names][0]}); "
            "convert both from folders of the same classes"
        )
    if odd:
        raise _class_without_training(odd[0])
    numbers = np.array([number_of.get(name, -1) for name in names], np.int64)
    return numbers[test.labels]


def _class_without_training(name: str) -> UsageError:
    return UsageError(
        f"class {name} of data.test has no image in data.train; both must have the same classes"
    )


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
    texts = label_texts(table.column(column), path, frozenset(classes.names))
    names = [dataset.name(sample_id) for sample_id in range(len(dataset))]
    wanted = [texts[row] for row in rows_of_images(table, texts, names, Path("train"))]
    number_of = {name: number for number, name in enumerate(classes.names)}
    if odd := next((text for text in wanted if text not in number_of), None):
        raise UsageError(
            f"label_noise={path}:{column} has the class {odd!r}, which data.train has not; "
            f"its classes are {', '.join(classes.names[:5])}, ..."
        )
    return np.array([number_of[text] for text in wanted], np.int64)
