"""`fastmoco demo`: from the built-in images to a measured encoder."""

from fastmoco.commands.arguments import check_outputs, split_arguments
from fastmoco.commands.command import Command
from fastmoco.errors import UsageError
from fastmoco.train.settings import TrainConfig
from fastmoco.waiting import waiting


def _run_arguments(arguments: list[str]) -> None:
    _, overrides, _ = split_arguments(arguments, (), TrainConfig)
    from fastmoco.configuration import load_config, quote_values

    given = {override.partition("=")[0] for override in overrides}
    if clash := {"experiment", "data.train", "data.test"} & given:
        raise UsageError(
            f"the demo sets {min(clash)} itself; use fastmoco train for other data or presets"
        )
    cfg = load_config(TrainConfig, ["experiment=demo", *quote_values(TrainConfig, overrides)])
    check_outputs(cfg)
    with waiting("loading PyTorch"):
        from fastmoco.demo import demo

    demo(cfg)


COMMAND = Command(
    name="demo",
    summary="train and measure on the built-in images, in minutes",
    examples=("fastmoco demo",),
    first=(
        "name",
        "train.epochs",
        "seed",
        "device",
    ),
    config=TrainConfig,
    run_arguments=_run_arguments,
)
