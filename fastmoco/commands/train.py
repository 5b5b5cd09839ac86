"""`fastmoco train`: pretrain an encoder."""

from fastmoco.commands.command import Command
from fastmoco.train.settings import TrainConfig


def _run_arguments(arguments: list[str]) -> None:
    from fastmoco.commands.hydra_application import run_application

    run_application(arguments)


COMMAND = Command(
    name="train",
    options="[experiment=NAME] data.train=FILE.beton [key=value ...]",
    summary="train an encoder without labels; the same command resumes",
    examples=(
        "fastmoco train experiment=moco_v2 data.train=train.beton name=first",
        "fastmoco train experiment=cifar10_cpu data.train=train.beton data.test=test.beton",
        "fastmoco train data.train=train.beton train.dry_run=true   # speed and memory only",
        "fastmoco train --multirun moco.momentum=0.9,0.99 data.train=train.beton",
        "fastmoco help train experiment=moco_v2                     # what a preset sets",
    ),
    first=(
        "data.train",
        "name",
        "train.epochs",
        "global_batch_size",
        "optimizer.learning_rate",
        "moco.queue_size",
        "moco.momentum",
        "model.encoder",
        "pipeline.view_size",
        "precision",
    ),
    config=TrainConfig,
    run_arguments=_run_arguments,
)
