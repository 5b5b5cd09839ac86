"""Trains until a kNN accuracy is reached, as a child process calls it."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from fastmoco.configuration import load_config
from fastmoco.data.settings import DataConfig
from fastmoco.errors import Interrupted
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.loop import train
from fastmoco.train.settings import TrainConfig

POLL_SECONDS = 0.2


def train_until(
    train_path: str,
    test_path: str | None,
    run_dir: str,
    target: float | None,
    started: float,
    overrides: list[str],
) -> dict[str, Any]:
    """Pretrains with the kNN monitor on, and stops where it reaches the target, or at the end.

    Args:
        train_path: A labeled dataset file.
        test_path: Another one; None: images of the first classify each other.
        run_dir: The run folder.
        target: kNN top-1 in percent; None trains to the end.
        started: When this process was started, seconds since the epoch.
        overrides: Options of ``fastmoco train``.

    Returns:
        ``curve``: seconds since the start, images seen and kNN top-1 of each measurement; imports,
        compiling and the measurements themselves are in the seconds.
    """
    cfg = load_config(TrainConfig, overrides)
    cfg.data = DataConfig(train=Path(train_path), test=Path(test_path) if test_path else None)
    cfg.run_dir = Path(run_dir)
    curve: list[tuple[float, int, float]] = []
    ended = threading.Event()
    arguments = (cfg, target, started, curve, ended)
    watcher = threading.Thread(target=_watch, args=arguments, daemon=True)
    # Where the run ends before it is asked to stop, `train` no longer takes the signal.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    watcher.start()
    try:
        train(cfg)
    except Interrupted:
        pass  # by the watcher
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGINT, previous)
    return {"curve": curve}


def _watch(
    cfg: TrainConfig,
    target: float | None,
    started: float,
    curve: list[tuple[float, int, float]],
    ended: threading.Event,
) -> None:
    """Notes when each measurement comes, and asks the run to stop at the target."""
    assert cfg.run_dir is not None
    path, last = RunFolder(cfg.run_dir).metrics, False
    while not last:
        last = ended.wait(POLL_SECONDS)  # the last rows are read after the end
        rows = read_metrics(path) if path.exists() else []
        found = [row for row in rows if row.get("knn_top1") is not None]
        for row in found[len(curve) :]:
            curve.append(
                (time.time() - started, row["step"] * cfg.global_batch_size, row["knn_top1"])
            )
            if target is not None and row["knn_top1"] >= target:
                os.kill(os.getpid(), signal.SIGINT)  # train's own handler saves and stops
                return
