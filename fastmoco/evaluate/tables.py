"""Tables of several methods: a run and its baselines, or accuracy with wrong labels."""

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
from fastmoco.waiting import announced

PRETRAINED, UNTRAINED, PIXELS = "pretrained", "untrained", "raw pixels"


@dataclass(slots=True)
class AccuracyTable:
    """Accuracies by row and column."""

    columns: list[str]
    rows: dict[str, list[float | None]]
    """Percent, one value for each column; None for an empty cell."""
    notes: list[str]
    """The protocol of each row or method."""
    results: dict[str, Any] = field(default_factory=dict)
    """All results as JSON values."""

    def to_json(self) -> dict[str, Any]:
        """The table and all results as a JSON object."""
        return {"columns": self.columns, "rows": self.rows, "results": self.results}

    def to_text(self) -> str:
        """The table as aligned text."""
        first = max(map(len, self.rows)) + 2
        widths = [max(len(name) + 2, 10) for name in self.columns]
        cells = {"": self.columns, **{name: map(_cell, row) for name, row in self.rows.items()}}
        lines = []
        for name, row in cells.items():
            text = "".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
            lines.append(f"{name:<{first}}{text}")
        return "\n".join([*lines, "", *self.notes])

    def to_markdown(self) -> str:
        """The table in Markdown."""
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
    """Measure a run by each method, together with raw pixels and the untrained encoder.

    Fine-tuning from the untrained encoder is the supervised run from scratch.

    Args:
        run: Run folder or checkpoint.
        cfg: Datasets and methods.

    Returns:
        The table; also written to ``evaluation/evaluate.json`` and ``.md`` in the run folder.

    Raises:
        UsageError: If a dataset is missing or unsuitable, or a setting is out of range.
        CheckpointError: If there is no checkpoint, or it is damaged.
    """
    _check(cfg, cfg.methods, list(Method))
    table = AccuracyTable([PRETRAINED, UNTRAINED, PIXELS], {}, [])
    for number, method in enumerate(cfg.methods, start=1):
        with announced(f"{number} of {len(cfg.methods)}: {method}"):
            row, note, found = _measure(run, cfg, method)
        table.rows[_row_name(method, cfg)], table.results[method.value] = row, found
        table.notes += filter(None, [note, found["remark"]])
    table.write(results_folder(run), "evaluate")
    return table


def _measure(
    run: Path, cfg: EvaluateConfig, method: Method
) -> tuple[list[float | None], str, dict[str, Any]]:
    """Accuracies of the encoders, a note on the protocol, and the complete result."""
    if method is Method.knn:
        near = KnnConfig(**_shared(cfg), k=cfg.k, temperature=cfg.temperature)
        neighbors = knn(run, near)
        rest = neighbors.baselines
        tops = [neighbors.top1, rest["untrained"]["top1"], rest["pixels"]["top1"]]
        return tops, neighbors.about(), neighbors.to_json()
    if method is Method.linear:
        linear_result = linear(run, linear_config(cfg))
        tops = [one.top1 for one in (linear_result, *linear_result.baselines.values())]
        return tops, linear_result.about, linear_result.to_json()
    result = finetune(run, finetune_config(cfg))
    note = f"{result.about}; untrained is supervised from scratch"
    return [result.top1, result.baselines["random"].top1, None], note, result.to_json()


def _row_name(method: Method, cfg: EvaluateConfig) -> str:
    if method is Method.knn:
        return f"knn, k={cfg.k}"
    name = f"linear, {cfg.linear_protocol}" if method is Method.linear else "finetune"
    return name if cfg.label_share == 1 else f"{name}, {100 * cfg.label_share:g}% of labels"


def noise_table(run: Path, cfg: NoiseTableConfig) -> AccuracyTable:
    """Measure accuracy on clean labels after learning from wrong ones, for each noise.

    Args:
        run: Run folder or checkpoint.
        cfg: Datasets, methods and noises.

    Returns:
        The table; also written to ``evaluation/noise-table.json`` and ``.md`` in the run folder.

    Raises:
        UsageError: As in `evaluate`; also if a noise is neither a rate nor a column of a table.
        CheckpointError: If there is no checkpoint, or it is damaged.
    """
    _check(cfg, cfg.methods, [Method.linear, Method.finetune])
    columns = [f"{method}, {of}" for method in cfg.methods for of in _STARTS[method]]
    table = AccuracyTable(columns, {}, [])
    for noise in cfg.noises:
        folder = results_folder(run) / "noise" / _file_name(noise)
        row: list[float | None] = []
        results: dict[str, Any] = {}
        for method in cfg.methods:
            given = {"label_noise": noise, "out": folder / method}
            if method is Method.linear:
                result = linear(run, linear_config(cfg, **given), pixels=False)
            else:
                result = finetune(run, finetune_config(cfg, **given))
            row += [result.top1, *(baseline.top1 for baseline in result.baselines.values())]
            results[method.value] = result.to_json()
            if noise == cfg.noises[0]:
                table.notes.append(result.about)
            if remark := result.remark():
                table.notes.append(f"noise {noise}, {method}: {remark}")
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
    """Refuse methods and protocols that do not exist, before anything is computed."""
    if not methods or any(method not in allowed for method in methods):
        given = ",".join(methods)
        raise UsageError(f"methods must be some of [{','.join(allowed)}], got [{given}]")
    linear_config(cfg)


def _shared(cfg: FeaturesConfig) -> dict[str, Any]:
    """The options that all methods share."""
    names = (
        "data", "pipeline", "features", "device", "precision", "global_batch_size", "cache",
        "allow_overlap",
    )  # fmt: skip
    return {name: getattr(cfg, name) for name in names}


def linear_config(cfg: TableConfig, **given: Any) -> LinearConfig:
    """The linear protocol of a table; the batch size is the protocol's."""
    found = load_config(LinearConfig, [f"protocol={cfg.linear_protocol}"])
    shared = _shared(cfg)
    del shared["global_batch_size"]
    for name, value in (shared | given).items():
        setattr(found, name, value)
    found.seed, found.label_share = cfg.seed, cfg.label_share
    found.train.epochs = cfg.linear_epochs or found.train.epochs
    return found


def finetune_config(cfg: TableConfig, **given: Any) -> FinetuneConfig:
    """The fine-tuning of a table."""
    found = FinetuneConfig(**_shared(cfg), seed=cfg.seed, label_share=cfg.label_share, **given)
    found.train.epochs = cfg.finetune_epochs
    return found
