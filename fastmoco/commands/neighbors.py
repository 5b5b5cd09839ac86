"""`fastmoco neighbors`: draw nearest neighbors."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.visualize.settings import NeighborsConfig


def _run(arguments: list[str], cfg: NeighborsConfig) -> Result:
    from fastmoco.visualize.neighbors import write_neighbors

    return write_neighbors(Path(arguments[0]), cfg)


COMMAND = Command(
    name="neighbors",
    arguments=("RUN",),
    options="data.test=FILE.beton [queries=ID,ID] [key=value ...]",
    summary="draw images and those nearest to them",
    examples=("fastmoco neighbors runs/first data.test=test.beton queries=3,17 out=neighbors.png",),
    first=(
        "data.test",
        "queries",
        "count",
        "k",
        "out",
    ),
    config=NeighborsConfig,
    run=_run,
)
