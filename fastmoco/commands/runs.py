"""`fastmoco runs`: list run folders, and remove old checkpoints."""

from fastmoco.commands.arguments import run_folders
from fastmoco.commands.command import Command, Result
from fastmoco.report.settings import RunsConfig


def _run(_: list[str], cfg: RunsConfig) -> Result:
    from fastmoco.report.runs_list import list_runs

    return list_runs(run_folders(cfg.folder), cfg)


COMMAND = Command(
    name="runs",
    summary="list runs, or remove old checkpoints",
    examples=("fastmoco runs", "fastmoco runs folder=results keep=1"),
    config=RunsConfig,
    run=_run,
)
