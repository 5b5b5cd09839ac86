"""`fastmoco sweep`: run the runs of a published table."""

from fastmoco.commands.arguments import split_arguments
from fastmoco.commands.command import Command
from fastmoco.reproduce.settings import SweepConfig
from fastmoco.train.settings import TrainConfig


def _run_arguments(arguments: list[str]) -> None:
    from fastmoco.reproduce.sweep_job import read_options

    (name,), overrides, _ = split_arguments(arguments, ("NAME",), TrainConfig)
    read_options(name, overrides)  # before the next line imports torch
    from fastmoco.reproduce.sweep import sweep

    sweep(name, overrides)


def _notes() -> list[str]:
    from fastmoco.reproduce.definition import sweep_names

    return [
        f"NAME: {', '.join(sweep_names())}; or FILE.yaml with your own",
        "and every option of fastmoco train",
    ]


COMMAND = Command(
    name="sweep",
    arguments=("NAME",),
    options="[scale=small|full] [data.train=FILE.beton data.test=FILE.beton] [seeds=[0,1,2]] "
    "[key=value of fastmoco train ...]",
    summary="run the experiments of a published table",
    examples=(
        "fastmoco sweep temperature",
        "fastmoco sweep temperature scale=full data.train=train.beton data.test=test.beton",
    ),
    config=SweepConfig,
    run_arguments=_run_arguments,
    notes=_notes,
)
