"""`fastmoco linear`: train a linear classifier on the frozen encoder."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.evaluate.settings import LinearConfig


def _run(arguments: list[str], cfg: LinearConfig) -> Result:
    from fastmoco.evaluate.linear.classifier import linear

    return linear(Path(arguments[0]), cfg)


COMMAND = Command(
    name="linear",
    arguments=("RUN",),
    options="data.train=FILE.beton data.test=FILE.beton [protocol=NAME] [key=value ...]",
    summary="measure an encoder by a linear classifier on its features",
    examples=(
        "fastmoco linear runs/first data.train=train.beton data.test=test.beton protocol=official",
    ),
    first=(
        "data.train",
        "data.test",
        "label_share",
        "learning_rates",
        "views",
        "train.epochs",
        "global_batch_size",
        "optimizer.learning_rate",
        "baselines",
        "out",
    ),
    config=LinearConfig,
    run=_run,
)
