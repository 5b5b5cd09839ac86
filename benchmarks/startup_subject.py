"""What happens until the first step of `fastmoco train` is done, as a child process calls it."""

import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from fastmoco.configuration import load_config
from fastmoco.data.dataset import open_dataset
from fastmoco.data.settings import DataConfig
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.checks import check_config
from fastmoco.train.number_format import with_precision
from fastmoco.train.settings import TrainConfig
from fastmoco.train.trainer import Trainer


def first_step(path: str, started: float, overrides: list[str]) -> dict[str, float]:
    """Does all that `train` does, in its order, until the first loss can be read.

    Args:
        path: A dataset file.
        started: When this process was started, seconds since the epoch.
        overrides: Options of ``fastmoco train``.

    Returns:
        ``seconds`` since then.
    """
    cfg = replace(load_config(TrainConfig, overrides), data=DataConfig(train=Path(path)))
    device = check_config(cfg)
    cfg = with_precision(cfg, device)
    with tempfile.TemporaryDirectory() as folder, open_dataset(Path(path)) as dataset:
        trainer = Trainer(cfg, RunFolder(Path(folder) / "run"), dataset, device)
        with closing(trainer.open_loader()) as loader:
            trainer.take(next(loader), trainer.learning_rate)
            trainer.metrics.means()  # waits for the device
        return {"seconds": time.time() - started}
