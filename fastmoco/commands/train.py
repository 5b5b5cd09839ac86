"""`fastmoco train`: pretrain an encoder."""

from fastmoco.commands.command import Command
from fastmoco.train.settings import TrainConfig


def _run_arguments(arguments: list[str]) -> None:
    from fastmoco.commands.hydra_application import run_application

    run_application(arguments)


COMMAND = Command(
    name="train",
    options="[experiment=NAME] data.train=FILE.beton [key=value ...]",
    summary="pretrain an encoder; the same command again resumes",
    config=TrainConfig,
    run_arguments=_run_arguments,
)
