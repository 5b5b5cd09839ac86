"""`fastmoco report`: one HTML file about a run."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.report.settings import ReportConfig


def _run(arguments: list[str], cfg: ReportConfig) -> Result:
    from fastmoco.report.report import write_report

    return write_report([Path(run) for run in arguments], cfg)


COMMAND = Command(
    name="report",
    arguments=("RUN",),
    repeats=True,
    options="[RUN ...] [key=value ...]",
    summary="write an HTML page about a run, or compare runs",
    examples=(
        "fastmoco report runs/first",
        "fastmoco report runs/first data.test=test.beton images=1000",
        "fastmoco report runs/first runs/second out=comparison.html",
    ),
    first=("out", "data.test", "images"),
    config=ReportConfig,
    run=_run,
)
