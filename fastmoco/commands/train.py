"""`fastmoco train`: pretrain an encoder."""

from fastmoco.commands.command import Command
from fastmoco.train.settings import TrainConfig


def run_arguments(arguments: list[str]) -> None:
    """Pretrain, as a Hydra application."""
    from fastmoco.commands.hydra_application import run_application

    run_application(arguments)


COMMAND = Command(
    name="train",
    options="[experiment=NAME] data.train=FILE.beton [key=value ...]",
    summary="pretrain an encoder; the same command again resumes",
    config=TrainConfig,
    run_arguments=run_arguments,
)
