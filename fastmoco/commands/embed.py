"""`fastmoco embed`: write features."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.evaluate.settings import EmbedConfig


def _run(arguments: list[str], cfg: EmbedConfig) -> Result:
    from fastmoco.evaluate.embed import embed

    return embed(Path(arguments[0]), cfg)


COMMAND = Command(
    name="embed",
    arguments=("RUN",),
    options="data.test=FILE.beton out=FILE.parquet [key=value ...]",
    summary="write the features of a dataset as Parquet or npy",
    examples=("fastmoco embed runs/first data.test=test.beton out=features.parquet",),
    first=(
        "data.test",
        "out",
        "features",
    ),
    config=EmbedConfig,
    run=_run,
)
