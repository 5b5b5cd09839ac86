"""What a run folder says about its run, as plain values; nothing is computed again."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastmoco.addresses import as_path
from fastmoco.configuration import config_to_dict
from fastmoco.data.conversion import quarantine_path
from fastmoco.errors import UsageError, one_line
from fastmoco.evaluate.baselines import Baselines, read_baselines
from fastmoco.files import read_json_object
from fastmoco.parsing import plain_cell
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.settings import TrainConfig
from fastmoco.train.verdict import Outcome

HEADER_WORDS = ("run", "device", "data", "model", "start", "optimizer", "training")
"""First words of the lines of a run's header that the report repeats."""
NEEDED = {
    *("step", "epoch", "loss", "loss_floor_ln_k1", "accuracy_top1", "accuracy_top5"),
    *("positive_similarity", "negative_similarity", "feature_deviation"),
    *("images_per_second", "data_wait_fraction"),
}
"""What a row of metrics must have to be drawn; those of other programs may lack some."""
MOST_LEFT_OUT = 50
"""Images that were left out, listed in a report; the file beside the dataset has all."""

Value = TypeVar("Value")


@dataclass(slots=True)
class LeftOut:
    """Images that are not in the dataset, with reasons."""

    path: Path
    count: int
    first: list[tuple[str, str]]
    """Name and reason of the first ones."""


@dataclass(slots=True)
class RecordedRun:
    """Contents of a run folder."""

    folder: RunFolder
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    """Rows of ``metrics.jsonl``."""
    baselines: Baselines | None
    verdict: dict[str, Any] | None
    """None before a run's last step, or that of train.max_steps."""
    header: dict[str, str]
    """Lines of the last header in ``train.log`` by their first word."""
    left_out: LeftOut | None
    knn: dict[str, Any] | None
    """Result of ``fastmoco knn``, if it was measured."""

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.folder.path.resolve().name

    @property
    def advice(self) -> list[tuple[str, str]]:
        """Settings that followed from images and device ("": none), each with its reason."""
        lines = [str(line) for line in self.config.get("advice") or []]
        pairs = [(line, *line.partition(": ")) for line in lines]
        return [(key, why) if "=" in key else ("", line) for line, key, _, why in pairs]

    @property
    def total_steps(self) -> int | None:
        """Steps of all epochs, where train.max_steps may stop the run before; None if unknown."""
        try:
            last, epochs = self.rows[-1], self.config["train"]["epochs"]
            steps: float = last["step"] / last["epoch"] * epochs
            return round(steps)
        except (LookupError, TypeError, ArithmeticError, ValueError):  # none, or another program's
            return None

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, and not only the steps of train.max_steps."""
        total = self.total_steps
        return bool(self.verdict) and (total is None or self.rows[-1]["step"] >= total)

    def data_path(self, split: str) -> Path | None:
        """Path of ``data.train`` or ``data.test`` as the run had it."""
        found = (self.config.get("data") or {}).get(split)
        return as_path(found) if found else None

    def changed_settings(self) -> list[tuple[str, Any, Any]]:
        """Name, value and default of each setting that is not the default."""
        default = flat(config_to_dict(TrainConfig()))
        return [
            (key, value, default.get(key))
            for key, value in flat(self.config).items()
            if key not in ("advice", "run_dir", "name") and value != default.get(key)
        ]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def read_run(path: Path) -> RecordedRun:
    """Read a run folder; parts that are missing or damaged are left out.

    Raises:
        UsageError: If it is no run folder of ``fastmoco train``.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise UsageError(f"{path} has no config.yaml; give a run folder of fastmoco train")
    config = folder.read_config()
    return RecordedRun(
        folder=folder,
        config=config,
        rows=[row for row in _read(read_metrics, folder.metrics) or [] if NEEDED <= row.keys()],
        baselines=_read(read_baselines, folder.baselines),
        verdict=_read(_verdict, folder.verdict),
        header=_read(_last_header, folder.log) or {},
        left_out=_left_out(folder, config),
        knn=_read(_knn, path / "evaluation/knn.json"),
    )


def _read(read: Callable[[Path], Value], path: Path) -> Value | None:
    try:
        return read(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _verdict(path: Path) -> dict[str, Any]:
    types = {"outcome": str, "reasons": list, "advice": list, "figures": dict, "next": str}
    found = read_json_object(path, types, advice="remove it")
    if not found["reasons"] or found["outcome"] not in list(Outcome):
        raise ValueError(f"{path} is no verdict")
    return found


def _knn(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = [found, *found["baselines"].values()]
    if not all(isinstance(row["top1"], float) for row in rows):
        raise ValueError(f"{path} is no result of knn")
    return found


def _last_header(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line[24:].split(maxsplit=1)  # after the time
        if len(words) == 2 and words[0] in HEADER_WORDS:
            if words[0] == "run":
                found = {}
            found[words[0]] = one_line(words[1])
    return found


def _left_out(folder: RunFolder, config: dict[str, Any]) -> LeftOut | None:
    """The list of the run, of a folder that was used as it is, or else of ``convert``."""
    train = (config.get("data") or {}).get("train")
    paths = [folder.quarantine, *([quarantine_path(Path(train))] if train else [])]
    for path in paths:
        if rows := _read(_table, path):
            return LeftOut(path, len(rows), [(row[0], row[1]) for row in rows[:MOST_LEFT_OUT]])
    return None


def _table(path: Path) -> Sequence[Sequence[str]]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return [[*map(plain_cell, row)] for row in csv.reader(file) if len(row) == 2][1:]
