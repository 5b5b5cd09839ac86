"""`fastmoco finetune`: train the encoder with labels."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.evaluate.settings import FinetuneConfig


def _run(arguments: list[str], cfg: FinetuneConfig) -> Result:
    from fastmoco.evaluate.finetune.classifier import finetune

    return finetune(Path(arguments[0]), cfg)


COMMAND = Command(
    name="finetune",
    arguments=("RUN",),
    options="data.train=FILE.beton data.test=FILE.beton [key=value ...]",
    summary="train a run's encoder, or a part of it, with few or all labels",
    config=FinetuneConfig,
    run=_run,
)
