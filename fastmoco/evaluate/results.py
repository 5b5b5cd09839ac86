"""Results of evaluation and the files that they are written to."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastmoco.evaluate.feature_cache import folder_of_run
from fastmoco.files import atomic_path, atomic_write_text


def results_folder(run: Path) -> Path:
    """The folder ``evaluation`` in the run folder, or beside a file of weights."""
    return folder_of_run(run) / "evaluation"


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, atomically; if that fails, only warn: the result is also printed."""
    write_text(path, json.dumps(result, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically; only warn if that fails."""
    try:
        atomic_write_text(path, text)
    except OSError as error:
        warnings.warn(f"{path} cannot be written: {error}", stacklevel=2)


_BASELINES = {
    "untrained": "the untrained encoder",
    "pixels": "raw pixels",
    "random": "training from scratch",
}


def better_baselines(top1: float, baselines: Mapping[str, float], num_test: int) -> str:
    """Say which baselines, top-1 in percent by name, are better than `top1`; "" if none is.

    The sentence ends with the standard error of an accuracy on so many test images. A difference
    of less than twice that proves nothing, as in the verdict of `train`.
    """
    better = [
        f"{_BASELINES[name]} ({other:.2f}%)" for name, other in baselines.items() if other > top1
    ]
    if not better:
        return ""
    error = math.sqrt(top1 * (100 - top1) / num_test)
    if max(baselines.values()) - top1 < 2 * error:
        words = ("not clearly above", "too few test images, or too little difference, to tell")
    else:
        words = ("below", "pretraining did not help here")
    return (
        f"{top1:.2f}% is {words[0]} {' and '.join(better)}: {words[1]} (standard error "
        f"{error:.1f} points, {num_test:,} test images)"
    )


@dataclass(kw_only=True, slots=True)
class ClassifierResult:
    """Accuracy of a trained classifier, with its protocol."""

    top1: float
    """Percent of the test images."""
    top5: float
    """Percent of the test images."""
    about: str
    """The protocol in one line."""
    protocol: dict[str, Any]
    """The protocol as JSON values."""
    seconds: float
    """Total time, features included."""
    seconds_training: float
    """Time of the classifier's steps, with its views."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """A row for each epoch: ``epoch, loss_train, learning_rate``, and at times ``top1, top5``."""
    baselines: dict[str, "ClassifierResult"] = field(default_factory=dict)
    """Results of the baselines, by name."""

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object, without the curve."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            **self.protocol,
            "seconds": self.seconds,
            "seconds_training": self.seconds_training,
            "remark": self.remark(),
            "baselines": {name: one.to_json() for name, one in self.baselines.items()},
        }

    def to_text(self) -> str:
        """The result, its baselines and the protocol as a table."""
        rows = {str(self.protocol["init"]): self, **self.baselines}
        lines = [f"{'':<12}{'top-1 %':>9}{'top-5 %':>9}"]
        lines += [f"{name:<12}{one.top1:>9.2f}{one.top5:>9.2f}" for name, one in rows.items()]
        return "\n".join([*lines, *filter(None, [self.about, self.remark()])])

    def remark(self) -> str:
        """Say which baselines are better; "" if none is."""
        others = {name: one.top1 for name, one in self.baselines.items()}
        return better_baselines(self.top1, others, self.protocol["num_test"])

    def write(self, folder: Path) -> None:
        """Write ``result.json``, ``curves.jsonl`` and ``curves.png``, each atomically."""
        write_result(folder / "result.json", self.to_json())
        named = {"": self, **self.baselines}
        rows = [
            {"of": name, **row} if name else row for name, one in named.items() for row in one.curve
        ]
        write_text(folder / "curves.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        try:
            draw_curves(folder / "curves.png", self.curve)
        except OSError as error:
            warnings.warn(f"{folder}/curves.png cannot be written: {error}", stacklevel=2)


def draw_curves(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw training loss and test accuracy over the epochs as a PNG file, replaced atomically."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([row["epoch"] for row in rows], [row["loss_train"] for row in rows])
    left.set_ylabel("training loss, nats")
    measured = [row for row in rows if "top1" in row]
    for name in ("top1", "top5"):
        epochs = [row["epoch"] for row in measured]
        right.plot(epochs, [row[name] for row in measured], marker=".", label=name)
    right.set_ylabel("test accuracy, %")
    right.legend()
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
