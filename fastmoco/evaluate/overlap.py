"""Refusal of test images that are also training images, which would make an accuracy too high."""

from fastmoco.data.dataset import Dataset
from fastmoco.data.shared_images import count_shared
from fastmoco.errors import UsageError

MAX_SHARED = 0.01
"""Largest allowed fraction; CIFAR-10 and ImageNet have fewer such images."""


def check_overlap(
    train: Dataset,
    test: Dataset,
    *,
    is_allowed: bool,
    option: str = "allow_overlap",
    instead: str = "use fastmoco knn with leave_one_out=true",
) -> int:
    """Count the test images that are also in the training set, byte for byte.

    Args:
        train: The images that a classifier learns from.
        test: The images that it is measured on.
        is_allowed: Whether any number is allowed.
        option: Name of the option that allows it, for the message.
        instead: What to do with one set of images, for the message.

    Raises:
        UsageError: If there are more than `MAX_SHARED`, or both are the same set.
    """
    if train.fingerprint != test.fingerprint:
        shared = count_shared(train, test)
        check_shared(shared, len(test), is_allowed=is_allowed, option=option)
        return shared
    if not is_allowed:
        raise UsageError(
            f"data.train and data.test are the same images, {test.path}, so the answers would be "
            f"known; {instead}, or give other images as data.test (fastmoco convert FOLDER "
            "set.beton holdout=0.2 makes both files)"
        )
    return len(test)


def check_shared(shared: int, count: int, *, is_allowed: bool, option: str) -> None:
    """Refuse more than `MAX_SHARED` of `count` test images, unless the option allows them.

    Raises:
        UsageError: If they are refused.
    """
    if shared > MAX_SHARED * count and not is_allowed:
        raise UsageError(
            f"{shared:,} of the {count:,} images of data.test ({100 * shared / count:.2f}%) are "
            f"also in data.train, so their answers would be known; at most {100 * MAX_SHARED:g}% "
            f"is allowed; give other images, or set {option}=true"
        )


def shared_text(shared: int) -> str:
    """The shared images as the end of a protocol's line; "" if there is none."""
    return f", {shared:,} of them also in data.train" if shared else ""
