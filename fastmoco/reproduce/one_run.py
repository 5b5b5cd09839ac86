"""One run of a sweep, in this process: train, measure, and record how it ended."""

import contextlib
import dataclasses
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from fastmoco.configuration import load_config
from fastmoco.data.dataset import open_dataset
from fastmoco.device import describe_device, resolve_device
from fastmoco.errors import DivergedError, Interrupted
from fastmoco.evaluate.knn import knn
from fastmoco.evaluate.linear.classifier import linear
from fastmoco.evaluate.settings import KnnConfig, LinearConfig
from fastmoco.files import locked
from fastmoco.reproduce.cost import cost_of
from fastmoco.reproduce.definition import Definition, Measure
from fastmoco.reproduce.plan import PlannedRun
from fastmoco.reproduce.record import FILE_NAME, RunRecord, Status, read_record
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.train.pretrain import pretrain
from fastmoco.train.settings import TrainConfig

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
NO_BASELINES = ("baselines=false",)  # runs are compared with each other


def do_run(run: PlannedRun, cfg: TrainConfig, definition: Definition, log: Path) -> RunRecord:
    """Train and measure a run, or resume where it stopped.

    Args:
        run: The run.
        cfg: Configuration of the run, from `run_config`.
        definition: Definition of the sweep, at its scale.
        log: Log file of the run; this process holds a lock on it during the run.

    Returns:
        Record of the run, finished or diverged; also written to its folder.

    Raises:
        Interrupted: After SIGINT or SIGTERM, with the state saved.
        UsageError: If another process does the same run.
        Exception: Any other error; its reason is in the record.
    """
    with locked(log, in_use=f"another process is doing run {run.label}; wait for it"):
        record = _taken_up(run, cfg)
        try:
            record.facts = _facts(cfg)
            if definition.trains:
                pretrain(cfg)
                record.facts["parameters"] = _parameters(run.folder)
            record.write(run.folder)
            _measure(record, run, cfg, definition)
            shutil.rmtree(
                run.folder / "features", ignore_errors=True
            )  # large, and computed again at need
            record.status = Status.finished
        except (Interrupted, KeyboardInterrupt):
            raise
        except DivergedError as error:
            record.status, record.reason = Status.diverged, str(error)
        except Exception as error:
            record.status, record.reason = Status.failed, reason_of(error)
            with contextlib.suppress(OSError):  # the first error is the one to report
                record.write(run.folder)
            raise
        record.write(run.folder)
    return record


def _taken_up(run: PlannedRun, cfg: TrainConfig) -> RunRecord:
    """The run's record with earlier measurements, set to started."""
    record = read_record(run.folder) or RunRecord(points=run.points, seed=run.seed)
    record.status, record.reason = Status.started, ""
    record.overrides, record.command = run.overrides, command_of(run, cfg)
    if (run.folder / "config.yaml").exists():
        record.write(run.folder)
    else:  # training needs an empty folder
        (run.folder / FILE_NAME).unlink(missing_ok=True)
    return record


def command_of(run: PlannedRun, cfg: TrainConfig) -> str:
    """The command line that trains only this run."""
    options = [*run.overrides, f"seed={run.seed}", f"run_dir={run.folder}"]
    options += [f"data.train={cfg.data.train}", f"data.test={cfg.data.test}"]
    return shlex.join(["fastmoco", "train", *options])


def reason_of(error: BaseException) -> str:
    """The first line of an error, with its type unless it is made for users."""
    line = (str(error).strip().splitlines() or [""])[0]
    known = isinstance(error, ValueError | OSError)
    return line if known and line else f"{type(error).__name__}: {line}".rstrip(": ")


def _facts(cfg: TrainConfig) -> dict[str, Any]:
    """Facts for the header of a table."""
    device = resolve_device(cfg.device)
    facts: dict[str, Any] = {
        "device": describe_device(device),
        "torch": torch.__version__,
        "precision": cfg.precision.value,
        "epochs": cfg.train.epochs,
        "max_steps": cfg.train.max_steps,
        "global_batch_size": cfg.global_batch_size,
        "encoder": cfg.model.encoder,
        "width": cfg.model.width,
        "stem": cfg.model.stem.value,
        "view_size": cfg.pipeline.view_size,
    }
    for split in ("train", "test"):
        if path := getattr(cfg.data, split):
            with open_dataset(path) as images:
                facts[f"{split}_data"] = path.name
                facts[f"{split}_images"] = len(images)
    return facts


def _parameters(folder: Path) -> int:
    """Number of parameters of the query encoder without its head."""
    prefix = "model.query_encoder.backbone."
    return sum(
        tensor.numel()
        for name, tensor in load_checkpoint(folder).tensors.items()
        if name.startswith(prefix) and not name.endswith(BUFFERS)
    )


def _measure(record: RunRecord, run: PlannedRun, cfg: TrainConfig, definition: Definition) -> None:
    """Do the measurements that are missing, and record each at once."""
    for measure in definition.measure:
        if measure.value in record.measures:
            continue
        start = time.perf_counter()
        found = _measured(measure, run, cfg, definition)
        record.measures[measure.value] = {**found, "seconds": time.perf_counter() - start}
        record.write(run.folder)


def _measured(
    measure: Measure, run: PlannedRun, cfg: TrainConfig, definition: Definition
) -> dict[str, Any]:
    data, device = cfg.data, cfg.device
    if measure is Measure.dry_run:
        return cost_of(cfg)
    if measure is Measure.knn:
        neighbors = load_config(KnnConfig, [*NO_BASELINES, *definition.knn])
        found = knn(run.folder, dataclasses.replace(neighbors, data=data, device=device)).to_json()
        # No table shows the confusion matrix and the classes.
        return {name: value for name, value in found.items() if not isinstance(value, list | dict)}
    classifier = load_config(LinearConfig, [*NO_BASELINES, *definition.linear])
    return linear(run.folder, dataclasses.replace(classifier, data=data, device=device)).to_json()
