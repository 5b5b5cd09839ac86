"""`fastmoco demo`: from the built-in images to a measured encoder."""

from fastmoco.commands.command import Command, split_arguments
from fastmoco.train.settings import TrainConfig
from fastmoco.waiting import waiting


def _run_arguments(arguments: list[str]) -> None:
    _, overrides, _ = split_arguments(arguments, ())
    with waiting("loading PyTorch"):
        from fastmoco.demo import demo

    demo(overrides)


COMMAND = Command(
    name="demo",
    summary="convert, pretrain and evaluate the built-in images, in minutes",
    config=TrainConfig,
    run_arguments=_run_arguments,
)
