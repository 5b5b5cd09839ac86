"""`fastmoco finetune`: train the encoder with labels."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.evaluate.settings import FinetuneConfig


def run(places: list[str], cfg: FinetuneConfig) -> Result:
    """Do it for RUN."""
    from fastmoco.evaluate.finetune.classifier import finetune

    return finetune(Path(places[0]), cfg)


COMMAND = Command(
    name="finetune",
    arguments=("RUN",),
    options="data.train=FILE.beton data.test=FILE.beton [key=value ...]",
    summary="train a run's encoder, or a part of it, with few or all labels",
    config=FinetuneConfig,
    run=run,
)
