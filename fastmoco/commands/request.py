"""`fastmoco request`: choose images to label."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.labeling.settings import RequestConfig


def _run(arguments: list[str], cfg: RequestConfig) -> Result:
    from fastmoco.labeling.label_request import request

    return request(Path(arguments[0]), cfg)


COMMAND = Command(
    name="request",
    arguments=("RUN",),
    options="data.train=FILE.beton count=N [out=FOLDER] [key=value ...]",
    summary="choose the images that are most worth a label",
    examples=("fastmoco request runs/first data.train=unlabeled.beton count=1000 out=request",),
    first=(
        "data.train",
        "count",
        "out",
        "mode",
        "diversity",
        "balance",
    ),
    config=RequestConfig,
    run=_run,
)
