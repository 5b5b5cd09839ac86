"""`fastmoco sweep`: run the runs of a published table."""

from fastmoco.commands.command import Command, split_arguments
from fastmoco.reproduce.settings import SweepConfig


def _run_arguments(arguments: list[str]) -> None:
    (name,), overrides, _ = split_arguments(arguments, ("NAME",))
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
    summary="do the runs of a published table; the same command again resumes",
    config=SweepConfig,
    run_arguments=_run_arguments,
    notes=_notes,
)
