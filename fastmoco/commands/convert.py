"""`fastmoco convert`: make a dataset file."""

import warnings
from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.data.settings import ConvertConfig


def _run(arguments: list[str], cfg: ConvertConfig) -> Result:
    from fastmoco.data.convert import convert

    source, target = arguments
    summary = convert(source, Path(target), cfg)
    if summary.many_left_out:
        warnings.warn(f"{source}: {summary.many_left_out}", stacklevel=2)
    return summary


COMMAND = Command(
    name="convert",
    arguments=("SRC", "DST.beton"),
    summary="make a dataset file from a folder, table, tar shards or arrays",
    examples=(
        "fastmoco convert photos/ train.beton",
        "fastmoco convert torchvision:CIFAR10 train.beton split=train download=true encoding=raw",
    ),
    config=ConvertConfig,
    run=_run,
)
