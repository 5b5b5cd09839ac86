"""What a run says about itself: curves and a warning on the way, a verdict at the end."""

import json
import logging
import shlex
import time
from typing import Any

import numpy as np

from fastmoco.data.dataset import Dataset
from fastmoco.data.settings import DataConfig
from fastmoco.evaluate.baselines import Baselines
from fastmoco.evaluate.settings import MonitorConfig
from fastmoco.files import atomic_write_text
from fastmoco.moco.momentum import KeyMomentum
from fastmoco.moco.settings import Mechanism
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.runs.reporter import dispensable
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.beginning import began_with_weights
from fastmoco.train.doubts import RunFacts
from fastmoco.train.fresh_keys import MOST_ROWS
from fastmoco.train.trainer import Trainer
from fastmoco.train.verdict import judge, warning
from fastmoco.visualize.pictures import draw_curves

DRAW_SECONDS = 30.0
"""Least time before the first picture of the curves, and between two."""
DRAW_SHARE = 0.03
"""Most of a run's time that these pictures may take."""
WITH_KEY_ENCODER = (Mechanism.moco, Mechanism.moco_v3, Mechanism.fast_moco)


class Review:
    """Reads the rows of a run back; only the first rank does.

    Nothing here changes what is learned, and nothing that fails here stops the run.
    """

    def __init__(
        self, trainer: Trainer, baselines: Baselines | None, logger: logging.Logger
    ) -> None:
        """Review the run of `trainer`, whose kNN is compared with `baselines`."""
        self._trainer, self._baselines, self._logger = trainer, baselines, logger
        self._next_picture, self._warned = time.monotonic() + DRAW_SECONDS, False

    def at_checkpoint(self) -> None:
        """Draw the curves, unless they are new, and warn once if something is wrong.

        Called at the ends of epochs too, since a short run saves at its end only.
        """
        trainer = self._trainer  # at the end, `at_end` draws
        if not trainer.ranks.is_first or trainer.finished or time.monotonic() < self._next_picture:
            return
        start, moco = time.monotonic(), trainer.cfg.moco
        rows, m = self._draw(), moco.momentum if moco.mechanism in WITH_KEY_ENCODER else None
        if not self._warned and (text := warning(rows, trainer.total_steps, m)):
            self._logger.warning("warning   %s", text)
            self._warned = True
        now = time.monotonic()
        self._next_picture = now + max(DRAW_SECONDS, (now - start) / DRAW_SHARE)

    def at_end(self) -> None:
        """Draw the curves, judge the run and say what comes next; write ``verdict.json``."""
        if self._trainer.ranks.is_first:
            self._draw()
            self.tell()

    def tell(self) -> None:
        """Judge a finished run from its files: log the verdict, the files and the next command."""
        trainer = self._trainer
        run, data = trainer.run, trainer.cfg.data
        rows = read_metrics(run.metrics) if run.metrics.exists() else []
        verdict = judge(rows, run_facts(trainer), self._baselines)
        if verdict is None:
            return
        command = next_command(run, data, trainer.dataset, trainer.cfg.monitor)
        text = json.dumps({**verdict.to_json(), "next": command}, indent=1) + "\n"
        with dispensable(self._logger, run.verdict):
            if not run.verdict.exists() or run.verdict.read_bytes() != text.encode():
                atomic_write_text(run.verdict, text)
        names = [path.name for path in (run.curves, run.views, run.metrics, run.verdict)]
        lines = [*verdict.to_lines(), f"files     in {run.path}: {', '.join(names)}, checkpoints"]
        for line in [*lines, f"next      {command}"]:
            self._logger.info("%s", line)

    def _draw(self) -> list[dict[str, Any]]:
        """Draw the curves of all rows; return the rows, none if that failed."""
        run = self._trainer.run
        try:
            rows = read_metrics(run.metrics)
            draw_curves(run.curves, rows, self._baselines)
        except Exception as error:  # whatever a picture fails by, training is worth more
            self._logger.warning("warning   %s cannot be drawn: %s", run.curves, error)
            return []
        return rows


def run_facts(trainer: Trainer) -> RunFacts:
    """The facts that a verdict rests on."""
    cfg, moco = trainer.cfg, trainer.cfg.moco
    queue_size = moco.queue_size if moco.mechanism is Mechanism.moco else None
    has_key_encoder = moco.mechanism in WITH_KEY_ENCODER
    model, scheduled = trainer.step.model, cfg.train.epochs * trainer.steps_per_epoch
    m = getattr(model, "momentum", None)
    return RunFacts(
        num_images=len(trainer.dataset),
        scheduled_steps=scheduled,
        queue_size=queue_size,
        momentum=moco.momentum if has_key_encoder else None,
        keys_per_step=cfg.global_batch_size * (2 if moco.symmetric else 1),
        key_left=m.left_after(trainer.steps_done, scheduled) if isinstance(m, KeyMomentum) else 0.0,
        from_weights=began_with_weights(trainer.origins),
        fresh_chance=model.chance_among(min(queue_size, MOST_ROWS)) if queue_size else None,
    )


def next_command(run: RunFolder, data: DataConfig, train: Dataset, monitor: MonitorConfig) -> str:
    """The command that measures a run, with its paths; a picture, where there are no labels.

    It repeats the monitor's measurement, on which the verdict rests.
    """
    files = {"data.train": data.train, "data.test": data.test}
    is_labeled = train.labels.min() >= 0  # evaluation refuses a set with unlabeled images
    if data.test and is_labeled:
        words = ["knn", str(run.path)]
    elif len(np.unique(train.labels)) > 1 and is_labeled:
        words, files = ["knn", str(run.path), "leave_one_out=true"], {"data.train": data.train}
    else:
        words, files = ["neighbors", str(run.path)], {"data.test": data.test or data.train}
    if words[0] == "knn" and monitor.every_epochs:
        words += [f"k={monitor.k}", f"temperature={monitor.temperature:g}"]
    return shlex.join(["fastmoco", *words, *(f"{key}={path}" for key, path in files.items())])
