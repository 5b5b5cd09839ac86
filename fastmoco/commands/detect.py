"""`fastmoco detect`: fine-tune and measure a detector."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.detection.settings import DetectConfig


def _run(arguments: list[str], cfg: DetectConfig) -> Result:
    from fastmoco.detection.detect import detect

    return detect(Path(arguments[0]), cfg)


COMMAND = Command(
    name="detect",
    arguments=("RUN",),
    options="data.train=VOCdevkit [recipe=NAME] [key=value ...]",
    summary="fine-tune a detector on an encoder and measure it",
    examples=("fastmoco detect runs/first data.train=VOCdevkit recipe=voc",),
    first=(
        "data.train",
        "data.test",
        "layout",
        "task",
        "arch",
        "weights",
        "train.steps",
        "global_batch_size",
        "optimizer.learning_rate",
        "trials",
    ),
    config=DetectConfig,
    run=_run,
)
