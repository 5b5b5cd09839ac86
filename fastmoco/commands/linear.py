"""`fastmoco linear`: train a linear classifier on the frozen encoder."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.evaluate.settings import LinearConfig


def run(places: list[str], cfg: LinearConfig) -> Result:
    """Do it for RUN."""
    from fastmoco.evaluate.linear.classifier import linear

    return linear(Path(places[0]), cfg)


COMMAND = Command(
    name="linear",
    arguments=("RUN",),
    options="data.train=FILE.beton data.test=FILE.beton [protocol=NAME] [key=value ...]",
    summary="evaluate a run by a linear classifier on the frozen encoder",
    config=LinearConfig,
    run=run,
)
