"""`fastmoco replay`: compute one step of a run again."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.train.settings import ReplayConfig


def _run(arguments: list[str], cfg: ReplayConfig) -> Result:
    from fastmoco.train.replay import replay

    return replay(Path(arguments[0]), cfg)


COMMAND = Command(
    name="replay",
    arguments=("RUN",),
    options="[step=N] [key=value ...]",
    summary="repeat one step of a run and name what is not finite",
    examples=("fastmoco replay runs/first", "fastmoco replay runs/first step=1234 device=cpu"),
    first=("step", "device", "data.train"),
    config=ReplayConfig,
    run=_run,
)
