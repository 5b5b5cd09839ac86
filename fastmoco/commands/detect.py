"""`fastmoco detect`: fine-tune and measure a detector."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.detection.settings import DetectConfig


def run(places: list[str], cfg: DetectConfig) -> Result:
    """Do it for RUN."""
    from fastmoco.detection.detect import detect

    return detect(Path(places[0]), cfg)


COMMAND = Command(
    name="detect",
    arguments=("RUN",),
    options="data.train=VOCdevkit [recipe=NAME] [key=value ...]",
    summary="fine-tune a detector on a run's encoder, measure it; the same command again resumes",
    config=DetectConfig,
    run=run,
)
