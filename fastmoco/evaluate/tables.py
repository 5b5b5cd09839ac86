"""Several methods in one table: a run beside its baselines, or accuracy against wrong labels."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmoco.configuration import load_config
from fastmoco.errors import UsageError
from fastmoco.evaluate.finetune.classifier import finetune
from fastmoco.evaluate.knn import knn
from fastmoco.evaluate.linear.classifier import linear
from fastmoco.evaluate.results import results_folder, write_result, write_text
from fastmoco.evaluate.settings import (
    EvaluateConfig,
    FeaturesConfig,
    FinetuneConfig,
    KnnConfig,
    LinearConfig,
    Method,
    NoiseTableConfig,
    TableConfig,
)

PRETRAINED, UNTRAINED, PIXELS = "pretrained", "untrained", "raw pixels"


@dataclass(slots=True)
class AccuracyTable:
    """Accuracies by row and column."""

    columns: list[str]
    rows: dict[str, list[float | None]]
    """Percent, one for each column; None where there is none."""
    notes: list[str]
    """The protocol of each row or method."""
    results: dict[str, Any] = field(default_factory=dict)
    """Everything that was found, JSON values."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"columns": self.columns, "rows": self.rows, "results": self.results}

    def to_text(self) -> str:
        """For a terminal."""
        first = max(map(len, self.rows)) + 2
        widths = [max(len(name) + 2, 10) for name in self.columns]
        cells = [[f"{name:>{width}}" for name, width in zip(self.columns, widths, strict=True)]]
        cells += [
            [f"{_cell(value):>{width}}" for value, width in zip(row, widths, strict=True)]
            for row in self.rows.values()
        ]
        names = ["", *self.rows]
        lines = [f"{name:<{first}}{''.join(row)}" for name, row in zip(names, cells, strict=True)]
        return "\n".join([*lines, "", *self.notes])

    def to_markdown(self) -> str:
        """For a page."""
        lines = [f"| top-1 % | {' | '.join(self.columns)} |", "|---|" + "---:|" * len(self.columns)]
        lines += [f"| {name} | {' | '.join(map(_cell, row))} |" for name, row in self.rows.items()]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])

    def write(self, folder: Path, name: str) -> None:
        """Write ``NAME.json`` and ``NAME.md``."""
        write_result(folder / f"{name}.json", self.to_json())
        write_text(folder / f"{name}.md", self.to_markdown())


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def evaluate(run: Path, cfg: EvaluateConfig) -> AccuracyTable:
    """Measure a run by each method, beside raw pixels, the untrained encoder and supervision.

    Fine-tuning from the untrained encoder is the supervised run from scratch.

    Args:
        run: Run folder or checkpoint.
        cfg: Datasets and methods.

    Returns:
        The table; also ``evaluation/evaluate.json`` and ``.md`` in the run folder.

    Raises:
        UsageError: If a dataset is not given or cannot serve, or a setting is out of range.
        CheckpointError: If there is no sound checkpoint.
    """
    _check(cfg, cfg.methods, list(Method))
    table = AccuracyTable([PRETRAINED, UNTRAINED, PIXELS], {}, [])
    for method in cfg.methods:
        if method is Method.knn:
            near = KnnConfig(**_shared(cfg), k=cfg.k, temperature=cfg.temperature, baselines=True)
            neighbors = knn(run, near)
            rest = neighbors.baselines
            row = [neighbors.top1, rest["untrained"]["top1"], rest["pixels"]["top1"]]
            table.notes.append(neighbors.about())
            table.results["knn"] = neighbors.to_json()
        elif method is Method.linear:
            result = linear(run, linear_config(cfg, baselines=True))
            row = [one.top1 for one in (result, *result.baselines.values())]
            table.notes.append(result.about)
            table.results["linear"] = result.to_json()
        else:
            result = finetune(run, finetune_config(cfg, baselines=True))
            row = [result.top1, result.baselines["random"].top1, None]
            table.notes.append(f"{result.about}; untrained is supervised from scratch")
            table.results["finetune"] = result.to_json()
        table.rows[_row_name(method, cfg)] = row
    table.write(results_folder(run), "evaluate")
    return table


def _row_name(method: Method, cfg: EvaluateConfig) -> str:
    if method is Method.knn:
        return f"knn, k={cfg.k}"
    name = f"linear, {cfg.linear_protocol}" if method is Method.linear else "finetune"
    return name if cfg.label_share == 1 else f"{name}, {100 * cfg.label_share:g}% of labels"


def noise_table(run: Path, cfg: NoiseTableConfig) -> AccuracyTable:
    """Accuracy on right labels after learning from wrong ones, for each rate or column.

    Args:
        run: Run folder or checkpoint.
        cfg: Datasets, methods and noises.

    Returns:
        The table; also ``evaluation/noise-table.json`` and ``.md`` in the run folder.

    Raises:
        UsageError: As `evaluate`; or if a noise is no rate and no column.
        CheckpointError: If there is no sound checkpoint.
    """
    _check(cfg, cfg.methods, [Method.linear, Method.finetune])
    columns = [f"{method}, {of}" for method in cfg.methods for of in _STARTS[method]]
    table = AccuracyTable(columns, {}, [])
    for noise in cfg.noises:
        folder = results_folder(run) / "noise" / _file_name(noise)
        row: list[float | None] = []
        results: dict[str, Any] = {}
        for method in cfg.methods:
            given = {"baselines": True, "label_noise": noise, "out": folder / method}
            if method is Method.linear:
                result = linear(run, linear_config(cfg, **given), pixels=False)
                others = [result.baselines["untrained"].top1]
            else:
                result = finetune(run, finetune_config(cfg, **given))
                others = [result.baselines["random"].top1]
            row += [result.top1, *others]
            results[method.value] = result.to_json()
            if noise == cfg.noises[0]:
                table.notes.append(result.about)
        table.rows[f"noise {noise}"] = row
        table.results[noise] = results
    table.write(results_folder(run), "noise-table")
    return table


_STARTS = {
    Method.linear: (PRETRAINED, UNTRAINED),
    Method.finetune: (PRETRAINED, "supervised from scratch"),
}


def _file_name(noise: str) -> str:
    return re.sub(r"[^\w.]+", "-", noise).strip("-.") or "0"


def _check(cfg: TableConfig, methods: Sequence[Method], allowed: Sequence[Method]) -> None:
    """Before anything is computed."""
    if not methods or any(method not in allowed for method in methods):
        raise UsageError(f"methods must be some of [{','.join(allowed)}]")
    linear_config(cfg)


def _shared(cfg: FeaturesConfig) -> dict[str, Any]:
    """What every method reads alike."""
    names = ("data", "pipeline", "features", "device", "precision", "global_batch_size", "cache")
    return {name: getattr(cfg, name) for name in names}


def linear_config(cfg: TableConfig, **given: Any) -> LinearConfig:
    """A linear protocol on a table's data; its batch size is the protocol's own."""
    found = load_config(LinearConfig, [f"protocol={cfg.linear_protocol}"])
    shared = _shared(cfg)
    del shared["global_batch_size"]
    for name, value in (shared | given).items():
        setattr(found, name, value)
    found.seed, found.label_share = cfg.seed, cfg.label_share
    found.train.epochs = cfg.linear_epochs or found.train.epochs
    return found


def finetune_config(cfg: TableConfig, **given: Any) -> FinetuneConfig:
    """Fine-tuning on a table's data."""
    found = FinetuneConfig(**_shared(cfg), seed=cfg.seed, label_share=cfg.label_share, **given)
    found.train.epochs = cfg.finetune_epochs
    return found
