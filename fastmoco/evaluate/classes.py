"""Accuracy per class, and the confusion matrix."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastmoco.errors import one_line

MAX_PRINTED = 20
"""Most classes whose table is printed by default."""


def class_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Number of classes that rank before the right one, ``(n,)``; lower classes win ties.

    NaN ranks first: a classifier that diverged is never right.

    Args:
        scores: ``(n, C)``, the greater the better.
        labels: ``(n,)`` int64.
    """
    right = scores.gather(1, labels[:, None])
    number = torch.arange(scores.shape[1], device=scores.device)
    equal_before = (scores == right) & (number < labels[:, None])
    return (~(scores <= right) | equal_before).sum(1)


def top_accuracies(ranks: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent, from the ranks of `class_ranks`."""
    top1, top5 = (100 * (ranks < bound).double().mean().item() for bound in (1, 5))
    return top1, top5


@dataclass(slots=True)
class ClassTable:
    """A confusion matrix with class names."""

    names: list[str]
    confusion: list[list[int]]
    """Number of images by class (row) and prediction (column)."""

    @classmethod
    def count(cls, names: list[str], labels: Tensor, predicted: Tensor) -> "ClassTable":
        """Count the predictions of all images; labels and predictions are ``(n,)`` int64."""
        size = len(names)
        counts = torch.bincount(labels * size + predicted, minlength=size * size)
        return cls(names, counts.view(size, size).tolist())

    def to_json(self) -> dict[str, Any]:
        """The number of images and top-1 in percent of each class, and the matrix, as JSON."""
        rows = [
            {"name": name, "images": sum(row), "top1": _percent(row, number)}
            for number, (name, row) in enumerate(zip(self.names, self.confusion, strict=True))
        ]
        return {"classes": rows, "confusion": self.confusion}

    def to_text(self) -> str:
        """The same as a table: one line per class, ending in its row of the matrix."""
        names = [one_line(name) for name in self.names]
        width = max(5, *(len(name) for name in names))
        digits = max(4, *(len(str(count)) + 1 for row in self.confusion for count in row))
        head = "".join(f"{number:>{digits}}" for number in range(len(self.names)))
        lines = [f"{'':>4} {'class':<{width}}{'images':>8}{'top-1 %':>9}  {head}  taken for"]
        for number, (name, row) in enumerate(zip(names, self.confusion, strict=True)):
            right = _percent(row, number)
            shown = f"{right:>9.2f}" if right is not None else f"{'-':>9}"
            cells = "".join(f"{count:>{digits}}" for count in row)
            lines.append(f"{number:>4} {name:<{width}}{sum(row):>8}{shown}  {cells}")
        return "\n".join(lines)


def _percent(row: list[int], number: int) -> float | None:
    return 100 * row[number] / sum(row) if sum(row) else None
