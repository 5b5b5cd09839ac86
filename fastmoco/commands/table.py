"""`fastmoco table`: a sweep's table and plots from its run folders."""

from fastmoco.commands.command import Command
from fastmoco.reproduce.settings import SweepTableConfig


def _run(arguments: list[str], cfg: SweepTableConfig) -> str:
    from fastmoco.reproduce.table import write_table

    return write_table(arguments[0], cfg)


def _notes() -> list[str]:
    from fastmoco.reproduce.definition import sweep_names

    return [f"NAME: {', '.join(sweep_names())}; or FILE.yaml with your own"]


COMMAND = Command(
    name="table",
    arguments=("NAME",),
    options="[scale=small|full] [key=value ...]",
    summary="make the table and plots of a sweep",
    examples=("fastmoco table temperature",),
    config=SweepTableConfig,
    run=_run,
    notes=_notes,
)
