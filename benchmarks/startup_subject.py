"""What happens until the first step of `fastmoco train` is done, as a child process calls it."""

import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from fastmoco.configuration import load_config
from fastmoco.data.source_set import open_image_set
from fastmoco.device import resolve_compile, resolve_device
from fastmoco.runs.run_folder import open_run_folder
from fastmoco.schema import DataConfig, TrainConfig
from fastmoco.train.loop import check_config
from fastmoco.train.trainer import build_trainer


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
    check_config(cfg)
    device = resolve_device(cfg.device)
    with tempfile.TemporaryDirectory() as folder, open_image_set(Path(path)) as dataset:
        run = open_run_folder(replace(cfg, run_dir=Path(folder) / "run"))
        compiled, _ = resolve_compile(cfg.train.compile, device)
        trainer = build_trainer(cfg, run, dataset, device, compiled)
        with closing(trainer.open_loader()) as loader:
            trainer.take(next(loader), trainer.learning_rate)
            trainer.check_finite()  # waits for the device
        return {"seconds": time.time() - started}
