"""`fastmoco evaluate`: several evaluations in one table."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.evaluate.settings import EvaluateConfig


def _run(arguments: list[str], cfg: EvaluateConfig) -> Result:
    from fastmoco.evaluate.tables import evaluate

    return evaluate(Path(arguments[0]), cfg)


COMMAND = Command(
    name="evaluate",
    arguments=("RUN",),
    options="data.train=FILE.beton data.test=FILE.beton [key=value ...]",
    summary="knn, linear and finetune with their baselines in one table",
    examples=("fastmoco evaluate runs/first data.train=train.beton data.test=test.beton",),
    first=(
        "data.train",
        "data.test",
        "methods",
        "linear_protocol",
        "finetune_epochs",
        "label_share",
    ),
    config=EvaluateConfig,
    run=_run,
)
