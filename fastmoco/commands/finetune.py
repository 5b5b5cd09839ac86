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
    summary="train an encoder with few or all labels",
    examples=(
        "fastmoco finetune runs/first data.train=train.beton data.test=test.beton label_share=0.01",
    ),
    first=(
        "data.train",
        "data.test",
        "label_share",
        "weights",
        "trainable",
        "train.epochs",
        "global_batch_size",
        "optimizer.learning_rate",
        "head_learning_rate",
        "out",
    ),
    config=FinetuneConfig,
    run=_run,
)
