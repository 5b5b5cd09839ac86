"""Result of `fastmoco detect`: figures of each trial, their mean and spread, the protocol."""

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastmoco.detection.annotations import SceneSet
from fastmoco.detection.settings import AnnotationFormat, DetectConfig, DetectionTask
from fastmoco.weights.settings import start_name


@dataclass(slots=True)
class DetectResult:
    """Figures of one or more trials, in percent."""

    trials: list[dict[str, Any]]
    """For each seed: ``seed``, ``seconds`` of testing, ``test_fingerprint``, and the figures of
    `Measurement`."""
    protocol: dict[str, Any]
    """What was trained and tested, and with which settings."""

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean, minimum, maximum and sample deviation (0 for one trial) of each figure."""
        columns = [dict(_figures(trial)) for trial in self.trials]
        return {
            name: {
                "mean": statistics.fmean(values),
                "min": min(values),
                "max": max(values),
                "std": statistics.stdev(values) if len(values) > 1 else 0.0,
            }
            for name in columns[0]
            for values in [[column[name] for column in columns]]
        }

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return {**asdict(self), "summary": self.summary()}

    def to_text(self) -> str:
        """A table with one row per seed, their mean and spread, and the protocol below."""
        summary = self.summary()
        names = list(summary)
        lines = [f"{'':<10}" + "".join(f"{name:>15}" for name in names)]
        for trial in self.trials:
            figures = dict(_figures(trial))
            cells = "".join(f"{figures[name]:>15.2f}" for name in names)
            lines.append(f"seed {trial['seed']:<5}{cells}")
        if len(self.trials) > 1:
            for row in ("mean", "std"):
                lines.append(f"{row:<10}" + "".join(f"{summary[n][row]:>15.2f}" for n in names))
        return "\n".join([*lines, protocol_line(self.protocol)])


def _figures(trial: dict[str, Any]) -> list[tuple[str, float]]:
    """All figures but those per class; nested names are joined by an underscore."""
    found: list[tuple[str, float]] = []
    for name, value in trial.items():
        if name in ("seed", "seconds", "per_class", "test_fingerprint"):
            continue
        if isinstance(value, dict):
            found += [(f"{name}_{key}", number) for key, number in value.items()]
        else:
            found.append((name, value))
    return found


def protocol_of(run: Path, cfg: DetectConfig, train: SceneSet, test: SceneSet) -> dict[str, Any]:
    """What a table needs besides its figures: encoder, data, settings, rule of measurement."""
    return {
        "run": str(run),
        "task": cfg.task.value,
        "arch": "fcn" if cfg.task is DetectionTask.segment else cfg.arch.value,
        "init": start_name(cfg.weights),
        "batch_norm": cfg.batch_norm.value,
        "train": train.name,
        "test": test.name,
        "num_train": len(train.scenes),
        "num_test": len(test.scenes),
        "steps": cfg.train.steps,
        "global_batch_size": cfg.global_batch_size,
        "learning_rate": cfg.optimizer.learning_rate,
        "precision": cfg.precision.value,
        "seeds": list(range(cfg.seed, cfg.seed + cfg.trials)),
        "metric": metric_name(cfg),
    }


def metric_name(cfg: DetectConfig) -> str:
    """The rule by which the figures are computed."""
    if cfg.task is DetectionTask.segment:
        return "mean IoU over classes that occur, background included"
    name = "ap: COCO (101 points)"
    if cfg.layout is AnnotationFormat.voc:
        name += "; voc07: VOC 2007 devkit (11 points), difficult objects ignored"
    return name


def protocol_line(protocol: dict[str, Any]) -> str:
    """The protocol in two lines."""
    seeds = ", ".join(str(seed) for seed in protocol["seeds"])
    return (
        f"{protocol['task']} by {protocol['arch']}, backbone {protocol['init']}, batch norm "
        f"{protocol['batch_norm']}; {protocol['steps']} steps of {protocol['global_batch_size']} "
        f"images in {protocol['precision']}, learning rate {protocol['learning_rate']:g}, "
        f"seeds {seeds}\n"
        f"{protocol['num_train']} training images of {protocol['train']}, {protocol['num_test']} "
        f"test images of {protocol['test']}; {protocol['metric']}"
    )
