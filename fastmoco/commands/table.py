"""`fastmoco table`: a sweep's table and plots from its run folders."""

from fastmoco.commands.command import Command
from fastmoco.reproduce.settings import SweepTableConfig


def run(places: list[str], cfg: SweepTableConfig) -> str:
    """Write the table of a sweep, and give it as Markdown."""
    from fastmoco.reproduce.table import write_table

    return write_table(places[0], cfg)


def notes() -> list[str]:
    """Which sweeps there are."""
    from fastmoco.reproduce.definition import sweep_names

    return [f"NAME: {', '.join(sweep_names())}; or FILE.yaml, of your own"]


COMMAND = Command(
    name="table",
    arguments=("NAME",),
    options="[scale=small|full] [key=value ...]",
    summary="make a sweep's table and plots from its run folders; voc: of fastmoco detect",
    config=SweepTableConfig,
    run=run,
    notes=notes,
)
