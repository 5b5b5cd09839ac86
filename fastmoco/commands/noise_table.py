"""`fastmoco noise-table`: accuracy against wrong labels."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.evaluate.settings import NoiseTableConfig


def _run(arguments: list[str], cfg: NoiseTableConfig) -> Result:
    from fastmoco.evaluate.tables import noise_table

    return noise_table(Path(arguments[0]), cfg)


COMMAND = Command(
    name="noise-table",
    arguments=("RUN",),
    options="data.train=FILE.beton data.test=FILE.beton [key=value ...]",
    summary="measure an encoder with wrong labels",
    examples=("fastmoco noise-table runs/first data.train=train.beton data.test=test.beton",),
    config=NoiseTableConfig,
    run=_run,
)
