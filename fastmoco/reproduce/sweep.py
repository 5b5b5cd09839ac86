"""`fastmoco sweep`: check all runs of a definition, then do those that are not done yet.

The checks of runs need torch, with print=true too. Help does not import this module.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmoco.configuration import load_config, quote_values
from fastmoco.data.builtin_file import builtin_file
from fastmoco.data.dataset import open_dataset
from fastmoco.data.settings import DataConfig
from fastmoco.errors import UsageError, nearest_name, one_line
from fastmoco.evaluate.overlap import check_overlap
from fastmoco.files import atomic_write_text, locked, read_json_object
from fastmoco.reproduce.definition import Definition
from fastmoco.reproduce.one_run import do_run
from fastmoco.reproduce.orderings import check_claims
from fastmoco.reproduce.plan import (
    PlannedRun,
    check_measures,
    key_of,
    needs_labels,
    plan_runs,
    run_config,
)
from fastmoco.reproduce.record import STATE_ADVICE, STATE_NAME, read_record
from fastmoco.reproduce.schedule import do_all
from fastmoco.reproduce.settings import Scale, SweepConfig, sweep_folder
from fastmoco.reproduce.sweep_job import DATA_KEYS, SweepJob, learned, read_options
from fastmoco.runs.run_folder import RunFolder, RunIdentity, check_run_folder
from fastmoco.train.checks import check_config
from fastmoco.train.settings import FREE_KEYS, TrainConfig


def sweep(name: str, arguments: Sequence[str]) -> None:
    """Do all runs of a sweep that are not done yet, each in a child process; print how they ended.

    Args:
        name: Name of the definition.
        arguments: Options ``key=value`` of the sweep or of ``fastmoco train``.

    Raises:
        UsageError: If an option of any run is wrong; no run was started.
        Interrupted: After SIGINT or SIGTERM; the same command resumes.
        ValueError: If runs failed; the others were done.
    """
    job = prepare(name, arguments)
    if job.cfg.print:
        print("\n".join(shlex.join(job.command(run)) for run in job.runs))  # noqa: T201
        return
    write_state(job)
    if job.cfg.run:
        (run,), (cfg,) = job.runs, job.configs
        record = do_run(run, cfg, job.definition, job.log(run))
        print(one_line(f"{run.label} {record.status} {record.reason}"))  # noqa: T201
        return
    do_all(job)


def prepare(name: str, arguments: Sequence[str]) -> SweepJob:
    """Read the definition, plan the runs and check all overrides.

    Raises:
        UsageError: If one is wrong; names the run.
    """
    cfg, definition, overrides = read_options(name, arguments)
    folder = sweep_folder(name, cfg)
    settings = [item for item in overrides if key_of(item) not in DATA_KEYS]
    runs = plan_runs(definition, folder, cfg.seeds, quote_values(TrainConfig, settings))
    check_measures(definition)
    check_claims(definition)
    if cfg.run:
        runs = [_only(cfg.run, runs)]
    data = resolve_data(overrides, cfg, definition, folder)
    configs = [run_config(run, data) for run in runs]
    _check_configs(runs, configs)
    kept = [item for item in arguments if key_of(item) not in ("run", "jobs", "print", "retry")]
    return SweepJob(name, definition, cfg, folder, data, runs, configs, kept)


def _only(label: str, runs: Sequence[PlannedRun]) -> PlannedRun:
    labels = {run.label: run for run in runs}
    if label not in labels:
        raise UsageError(f"unknown run={label}{nearest_name(label, list(labels))}")
    return labels[label]


def resolve_data(
    overrides: Sequence[str], cfg: SweepConfig, definition: Definition, folder: Path
) -> DataConfig:
    """The given data; at scale=small the built-in textures by default.

    Raises:
        UsageError: If the training set or a test set to measure on is missing.
    """
    given = [item for item in overrides if key_of(item) in DATA_KEYS]
    data = load_config(TrainConfig, quote_values(TrainConfig, given)).data
    if not given and cfg.scale is Scale.small:
        files = {
            split: folder.parent / "data" / f"textures-{split}.beton" for split in ("train", "test")
        }
        return DataConfig(**{split: builtin_file(path, split) for split, path in files.items()})
    if data.train is None:
        raise UsageError(
            "data.train is not set; make a dataset file with `fastmoco convert FOLDER train.beton` "
            "and set data.train=train.beton, or use scale=small without data for built-in images"
        )
    if data.test is None and needs_labels(definition):
        raise UsageError(
            "data.test is not set; this sweep measures on labeled images; set data.test=FILE.beton"
        )
    if data.test is not None and needs_labels(definition):
        option = "allow_overlap"
        allowed = f"{option}=true" in (*definition.knn, *definition.linear)
        with open_dataset(data.train) as train, open_dataset(data.test) as test:
            check_overlap(train, test, is_allowed=allowed, option=f"in the definition, {option}")
    return data


def _check_configs(runs: Sequence[PlannedRun], configs: Sequence[TrainConfig]) -> None:
    """Check the configuration and the folder of each run.

    Raises:
        UsageError: If one is wrong; names the run.
    """
    for run, cfg in zip(runs, configs, strict=True):
        try:
            check_config(cfg)
            if (run.folder / "config.yaml").exists():
                check_run_folder(RunFolder(run.folder), RunIdentity(cfg, FREE_KEYS))
            else:
                _check_untrained(run)
        except UsageError as error:
            raise UsageError(f"run {run.name}: {error}") from error


def _check_untrained(run: PlannedRun) -> None:
    """Compare a run's options with its record: after a dry run it has no config.yaml."""
    record = read_record(run.folder)
    if record and set(learned(record.overrides)) != set(learned(run.overrides)):
        raise UsageError(
            f"{run.folder} holds a run with other options ({' '.join(record.overrides)}); give the "
            "same options, or set another folder=DIR"
        )


def write_state(job: SweepJob) -> None:
    """Write seeds, options and data to ``sweep.json`` in the sweep's folder, for its table.

    Raises:
        UsageError: If the folder has runs with other data or other options.
        ValueError: If the ``sweep.json`` of an earlier call is damaged.
    """
    prints = _fingerprints(job.data)
    with locked(job.folder / "logs" / "sweep.lock"):  # the jobs of an array start at once
        _merge_state(job, prints)


def _fingerprints(data: DataConfig) -> dict[str, str]:
    prints: dict[str, str] = {}
    for split, file in (("train", data.train), ("test", data.test)):
        if file is not None:
            with open_dataset(file) as images:
                prints[split] = images.fingerprint
    return prints


def _merge_state(job: SweepJob, prints: dict[str, str]) -> None:
    state: dict[str, Any] = {}
    if (path := job.folder / STATE_NAME).exists():
        state = read_json_object(path, {"seeds": list}, advice=f"{STATE_ADVICE} {job.name}")
    if state.get("fingerprints", prints) != prints:
        raise UsageError(
            f"{job.folder} holds runs on other data; give the same data, or set another folder=DIR"
        )
    settings = job.settings
    if (given := state.get("settings", settings)) != settings:
        raise UsageError(
            f"{job.folder} holds runs with the options {given}, not {settings}; give the same "
            "options, or set another folder=DIR"
        )
    now = {
        "name": Path(job.name).name,
        "scale": job.cfg.scale.value,
        "seeds": sorted({*state.get("seeds", []), *job.cfg.seeds}),
        "settings": settings,
        "fingerprints": prints,
    }
    if now != state:
        atomic_write_text(path, json.dumps(now, indent=1) + "\n")
