"""`fastmoco knn`: classify by k-nearest neighbors."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.evaluate.settings import KnnConfig


def _run(arguments: list[str], cfg: KnnConfig) -> Result:
    from fastmoco.evaluate.knn import knn

    return knn(Path(arguments[0]), cfg)


COMMAND = Command(
    name="knn",
    arguments=("RUN",),
    options="data.train=FILE.beton data.test=FILE.beton [key=value ...]",
    summary="measure an encoder by k-nearest neighbors",
    examples=(
        "fastmoco knn runs/first data.train=train.beton data.test=test.beton",
        "fastmoco knn runs/first data.train=train.beton leave_one_out=true k=20",
    ),
    first=(
        "data.train",
        "data.test",
        "k",
        "temperature",
        "leave_one_out",
        "baselines",
    ),
    config=KnnConfig,
    run=_run,
)
