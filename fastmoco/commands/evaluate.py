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
    summary="knn, linear and finetune of a run with their baselines, as one table",
    config=EvaluateConfig,
    run=_run,
)
