"""`fastmoco sweep`: check all runs of a definition, then do those that are not done yet."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmoco.configuration import load_config, quote_values
from fastmoco.data.settings import DataConfig
from fastmoco.errors import UsageError, nearest_name
from fastmoco.files import atomic_write_text, locked, read_json_object
from fastmoco.reproduce.definition import Definition, load_definition
from fastmoco.reproduce.orderings import check_claims
from fastmoco.reproduce.plan import (
    PlannedRun,
    check_measures,
    check_names,
    key_of,
    needs_labels,
    plan_runs,
    run_config,
)
from fastmoco.reproduce.record import MEND_STATE, STATE_NAME, read_record
from fastmoco.reproduce.settings import Scale, SweepConfig, sweep_folder
from fastmoco.reproduce.sweep_job import DATA_KEYS, OWN_KEYS, SweepJob, learned
from fastmoco.runs.run_folder import RunFolder, RunIdentity, check_run_folder
from fastmoco.train.settings import FREE_KEYS, TrainConfig


def sweep(name: str, arguments: Sequence[str]) -> None:
    """Do all runs of a sweep that are not done yet, each in a child process; say how they ended.

    Args:
        name: Of the definition.
        arguments: ``key=value``, of the sweep or of ``fastmoco train``.

    Raises:
        UsageError: If anything of any run is wrong; nothing was started.
        Interrupted: After SIGINT or SIGTERM; the same command goes on.
        ValueError: If runs failed; the others were done.
    """
    job = prepare(name, arguments)
    if job.cfg.print:
        print("\n".join(shlex.join(job.command(run)) for run in job.runs))  # noqa: T201
        return
    write_state(job)
    if job.cfg.run:
        from fastmoco.reproduce.one_run import do_run

        (run,), (cfg,) = job.runs, job.configs
        record = do_run(run, cfg, job.definition, job.log(run))
        print(f"{run.label} {record.status}", record.reason)  # noqa: T201
        return
    from fastmoco.reproduce.schedule import do_all

    do_all(job)


def prepare(name: str, arguments: Sequence[str]) -> SweepJob:
    """Read the definition, plan the runs and check every override of each.

    Raises:
        UsageError: On the first that is wrong, naming the run.
    """
    own = [item for item in arguments if key_of(item) in OWN_KEYS]
    overrides = [item for item in arguments if key_of(item) not in OWN_KEYS]
    cfg = load_config(SweepConfig, quote_values(SweepConfig, quote_run(own)))
    check_names(overrides, OWN_KEYS)
    if cfg.jobs < 0 or not cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise UsageError("jobs must be 0 or more, and seeds different numbers, such as seeds=[0,1]")
    definition = load_definition(name).at(cfg.scale)
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


def quote_run(overrides: Sequence[str]) -> list[str]:
    """Put a run's name, which holds commas, into Hydra's grammar."""
    found = []
    for item in overrides:
        key, _, value = item.partition("=")
        if key == "run" and value[:1] not in ("'", '"'):
            item = f'run="{value}"'
        found.append(item)
    return found


def _only(label: str, runs: Sequence[PlannedRun]) -> PlannedRun:
    labels = {run.label: run for run in runs}
    if label not in labels:
        raise UsageError(f"unknown run={label}{nearest_name(label, list(labels))}")
    return labels[label]


def resolve_data(
    overrides: Sequence[str], cfg: SweepConfig, definition: Definition, folder: Path
) -> DataConfig:
    """The data given; at scale=small without any, the built-in textures.

    Raises:
        UsageError: If there is none, or no labeled part to measure on.
    """
    given = [item for item in overrides if key_of(item) in DATA_KEYS]
    data = load_config(TrainConfig, quote_values(TrainConfig, given)).data
    if not given and cfg.scale is Scale.small:
        from fastmoco.data.builtin_file import builtin_file

        files = {
            split: folder.parent / "data" / f"textures-{split}.beton" for split in ("train", "test")
        }
        return DataConfig(**{split: builtin_file(path, split) for split, path in files.items()})
    if data.train is None:
        raise UsageError(
            "data.train is not set; make a dataset file with `fastmoco convert FOLDER train.beton` "
            "and give data.train=train.beton (with scale=small and no data, built-in images serve)"
        )
    if data.test is None and needs_labels(definition):
        raise UsageError(
            "data.test is not set; this sweep measures on labeled images: give data.test=FILE.beton"
        )
    return data


def _check_configs(runs: Sequence[PlannedRun], configs: Sequence[TrainConfig]) -> None:
    """Everything that can be wrong before a run is started.

    Raises:
        UsageError: On the first, naming the run.
    """
    from fastmoco.train.checks import check_config

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
    """A run that only cost was measured of has no configuration of its own to compare with."""
    record = read_record(run.folder)
    if record and set(learned(record.overrides)) != set(learned(run.overrides)):
        raise UsageError(
            f"{run.folder} holds a run of other options ({' '.join(record.overrides)}); give the "
            "same, or another folder=DIR"
        )


def write_state(job: SweepJob) -> None:
    """Keep what the sweep is made of, ``sweep.json`` in its folder, for its table.

    Raises:
        UsageError: If runs there were of other data or were given other options.
        ValueError: If what an earlier call kept is damaged.
    """
    prints = _fingerprints(job.data)
    with locked(job.folder / "logs" / "sweep.lock"):  # the jobs of an array start at once
        _merge_state(job, prints)


def _fingerprints(data: DataConfig) -> dict[str, str]:
    from fastmoco.data.dataset import open_dataset

    prints: dict[str, str] = {}
    for split, file in (("train", data.train), ("test", data.test)):
        if file is not None:
            with open_dataset(file) as images:
                prints[split] = images.fingerprint
    return prints


def _merge_state(job: SweepJob, prints: dict[str, str]) -> None:
    state: dict[str, Any] = {}
    path = job.folder / STATE_NAME
    if path.exists():
        state = read_json_object(path, ("seeds",), mend=f"{MEND_STATE} {job.name}")
    if state.get("fingerprints", prints) != prints:
        raise UsageError(
            f"{job.folder} holds runs on other data; give the same data, or another folder=DIR"
        )
    settings = job.settings
    if (given := state.get("settings", settings)) != settings:
        raise UsageError(
            f"{job.folder} holds runs with the options {given}, not {settings}; give the same, or "
            "another folder=DIR"
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
