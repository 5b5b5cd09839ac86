"""`pretrain`: train, or measure what training would cost."""

from pathlib import Path

from fastmoco.train.dry_run import dry_run
from fastmoco.train.loop import train
from fastmoco.train.settings import TrainConfig


def pretrain(cfg: TrainConfig) -> Path:
    """Call `train`, or with ``train.dry_run`` or ``train.profile`` `dry_run`.

    Returns:
        The run folder; a dry run makes none.

    Raises:
        UsageError: As the function called; and `Interrupted` and `BetonError` as `train`.
    """
    return (dry_run if cfg.train.dry_run or cfg.train.profile else train)(cfg)
