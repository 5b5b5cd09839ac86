"""`fastmoco merge-labels`: bring granted labels into a dataset file."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.labeling.settings import MergeLabelsConfig


def _run(arguments: list[str], cfg: MergeLabelsConfig) -> Result:
    from fastmoco.labeling.merging import merge_labels

    return merge_labels(Path(arguments[0]), cfg)


COMMAND = Command(
    name="merge-labels",
    arguments=("REQUEST",),
    options="labels=FILE.csv data.train=FILE.beton out=FILE.beton [key=value ...]",
    summary="add the labels of a request to a dataset file",
    examples=(
        "fastmoco merge-labels request/ labels=granted.csv data.train=a.beton out=labeled.beton",
    ),
    config=MergeLabelsConfig,
    run=_run,
)
