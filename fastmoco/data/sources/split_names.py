"""Names of folders that hold a split of a dataset, not a class."""

import re
from collections.abc import Sequence

_KINDS = {
    **dict.fromkeys(("train", "training", "trainset", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "valset", "dev"), "val"),
    **dict.fromkeys(("eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[^\W\d_]+")


def split_folders(names: Sequence[str]) -> list[str]:
    """Choose the folders that hold splits; ``[]`` if all may be classes.

    Splits are named alike but for the word of the split, whatever its case: ``Training`` and
    ``Testing``, ``seg_train`` and ``seg_test``, ``train2017`` and ``val2017``. One such folder
    beside others may be a class (COCO has a class ``train``), two different ones are not.

    Args:
        names: Names of the folders side by side.
    """
    groups: dict[tuple[str, ...], dict[str, frozenset[str]]] = {}
    for name in names:
        words = [word.lower() for word in _WORD.findall(_CAMEL.sub("_", name))]
        if kinds := frozenset(_KINDS[word] for word in words if word in _KINDS):
            others = tuple(word for word in words if word not in _KINDS)
            groups.setdefault(others, {})[name] = kinds
    for found in groups.values():
        if len(set(found.values())) > 1 or len(found) == len(names):
            return list(found)
    return []
