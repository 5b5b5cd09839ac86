"""`fastmoco train` as a Hydra application, with ``--cfg job``, ``--multirun`` and launchers."""

import os
import sys
from collections.abc import Collection, Sequence
from itertools import pairwise

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fastmoco.commands.arguments import (
    check_blanks,
    check_flags,
    check_outputs,
    check_strays,
    check_writable,
)
from fastmoco.configuration import (
    check_overrides,
    complete,
    config_to_dict,
    load_config,
    preset_names,
    quote_values,
    register_schema,
    to_dataclass,
)
from fastmoco.data.settings import check_data
from fastmoco.errors import UsageError
from fastmoco.ranks import environment_ranks
from fastmoco.train.settings import TrainConfig, advised_overrides, check_given, run_path
from fastmoco.waiting import waiting

# Flags of Hydra that are followed by a value.
VALUE_FLAGS = "--cfg -c --info -i --package -p --config-dir -cd --config-name -cn".split()
FLAGS = (*VALUE_FLAGS, *"--multirun -m --run -r --resolve --hydra-help --config-path -cp".split())


def run_application(arguments: Sequence[str]) -> None:
    """Check the options, then let Hydra run the job or jobs.

    Args:
        arguments: Command line after ``train``: overrides and Hydra's own flags.

    Raises:
        UsageError: If an option is unknown or wrong.
        Exception: The first one raised by a job.
    """
    flags, overrides = _split_flags(arguments)
    check_flags(arguments, FLAGS, TrainConfig)
    check_blanks(overrides)
    check_strays(overrides, TrainConfig)
    overrides = quote_values(TrainConfig, overrides, lists=False)
    sweeping = bool({"-m", "--multirun"} & set(flags))
    if sweeping and environment_ranks().several:
        raise UsageError(
            "--multirun cannot be used with torchrun; start each run with its own torchrun, or "
            "sweep runs on one device (docs/devices.md)"
        )
    own = [one for one in overrides if not one.lstrip("+~").startswith("hydra")]
    _refuse_sweep_names(own)
    parsed = check_overrides(TrainConfig, own, sweeping=sweeping)
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    if not sweeping:
        cfg = load_config(TrainConfig, own)
        check_outputs(cfg)
        check_data(cfg)
        if _prints_job(flags):
            # Hydra's own text has Python tags on paths, which no other program reads.
            sys.stdout.write(OmegaConf.to_yaml(OmegaConf.create(config_to_dict(cfg))))
            return
        overrides = [*(advised_overrides(cfg.advice) if cfg.advice else []), *overrides]
    _run_jobs([*flags, *overrides], swept)


def _run_jobs(words: Sequence[str], swept: Collection[str]) -> None:
    """Let Hydra run the job, or those of a sweep; raises the first error of a job."""
    register_schema(TrainConfig)
    failures: list[BaseException] = []
    launching = os.getpid()

    def job(composed: DictConfig) -> None:
        # Hydra would print a traceback and exit with code 1 for any exception.
        try:
            _train(_job_config(composed, swept))
        except BaseException as error:
            if os.getpid() != launching:  # the job of a launcher, which reports the error itself
                raise
            failures.append(error)

    application = hydra.main(
        version_base="1.3", config_path="pkg://fastmoco.configs", config_name="train"
    )(job)
    saved_argv, sys.argv = sys.argv, ["fastmoco train", *words]
    try:
        application()
    finally:
        sys.argv = saved_argv
    if failures:
        raise failures[0]


def _train(cfg: TrainConfig) -> None:
    """Pretrain, after the folder is checked."""
    check_given(cfg)
    path = run_path(cfg)
    makes_folder = not (cfg.train.dry_run or cfg.train.profile)
    may_be_finished = (path / "checkpoints").is_dir()  # and then be read-only
    if makes_folder and not may_be_finished and environment_ranks().is_first:
        check_writable(f"run_dir={path}", path)
    with waiting("loading PyTorch"):  # after all options are checked
        from fastmoco.library import pretrain
    pretrain(cfg)


def _split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate Hydra's flags with their values from the overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        is_value = bool(flags) and flags[-1] in VALUE_FLAGS and "=" not in argument
        (flags if argument.startswith("-") or is_value else overrides).append(argument)
    return flags, overrides


def _prints_job(flags: Sequence[str]) -> bool:
    """Whether the flags ask for the complete configuration, ``--cfg job``."""
    asked = {("--cfg", "job"), ("-c", "job")} & set(pairwise(flags)) or "--cfg=job" in flags
    return bool(asked) and not {"--package", "-p"} & set(flags)


def _refuse_sweep_names(overrides: Sequence[str]) -> None:
    """Refuse ``experiment=SWEEP``: a sweep is not the preset of a single run."""
    for override in overrides:
        key, _, value = override.partition("=")
        is_sweep = value in preset_names("sweep") and value not in preset_names("experiment")
        if key == "experiment" and is_sweep:
            raise UsageError(
                f"experiment={value} is a sweep of several runs; use: fastmoco sweep {value}"
            )


def _job_config(composed: DictConfig, swept: Collection[str]) -> TrainConfig:
    """Configuration of a job; each job of a sweep has a run folder named after its options.

    With ``experiment=own`` each job of a sweep has settings that follow from its own options.
    """
    cfg = to_dataclass(TrainConfig, composed)
    hydra_config = HydraConfig.get()
    options = hydra_config.overrides.task
    if hydra_config.mode is RunMode.MULTIRUN and cfg.run_dir is None:
        varied = [item for item in options if item.split("=")[0] in swept]
        name = ",".join(varied).replace("/", "-") or str(hydra_config.job.num)
        composed.run_dir = run_path(cfg) / name
    return complete(TrainConfig, composed, {item.split("=")[0] for item in options})
