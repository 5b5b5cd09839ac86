"""`fastmoco neighbors`: draw nearest neighbors."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.visualize.settings import NeighborsConfig


def run(places: list[str], cfg: NeighborsConfig) -> Result:
    """Do it for RUN."""
    from fastmoco.visualize.neighbors import write_neighbors

    return write_neighbors(Path(places[0]), cfg)


COMMAND = Command(
    name="neighbors",
    arguments=("RUN",),
    options="data.test=FILE.beton [queries=ID,ID] [key=value ...]",
    summary="write a picture of images and those that are nearest to them",
    config=NeighborsConfig,
    run=run,
)
