"""Curves and warnings at checkpoints, the verdict and the next command at the end."""

import io
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastmoco.data.settings import DataConfig
from fastmoco.evaluate.baselines import Baselines
from fastmoco.evaluate.settings import MonitorConfig
from fastmoco.moco.momentum import KeyMomentum
from fastmoco.moco.settings import Mechanism, MocoConfig
from fastmoco.ranks import ALONE
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train import review as module
from fastmoco.train.review import Review, next_command, run_facts
from fastmoco.train.settings import TrainConfig
from fastmoco.visualize import pictures

STUCK = {
    "epoch": 1.0,
    "loss": 5.55,
    "loss_floor_ln_k1": 5.55,
    "accuracy_top1": 0.4,
    "accuracy_top5": 2.0,
    "positive_similarity": 0.5,
    "negative_similarity": 0.5,
    "feature_deviation": 0.6,
    "knn_top1": None,
}


MODEL = {"momentum": KeyMomentum(0.999, 1.0), "chance_among": math.log1p}


class Labels(SimpleNamespace):
    """A dataset of which only its labels are asked for."""

    def __len__(self):
        return len(self.labels)


def labeled(*labels):
    return Labels(labels=np.array(labels))


@pytest.fixture
def trainer(tmp_path):
    run = RunFolder(tmp_path)
    rows = [{"step": step, **STUCK} for step in range(100, 2001, 100)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = TrainConfig(data=DataConfig(train=Path("my set.beton")))
    return SimpleNamespace(
        run=run,
        cfg=cfg,
        ranks=ALONE,
        dataset=labeled(0, 1, 1),
        step=SimpleNamespace(model=SimpleNamespace(**MODEL)),
        origins=[],
        steps_per_epoch=10,
        steps_done=2000,
        total_steps=2000,
        finished=False,
    )


@pytest.fixture
def lines():
    return io.StringIO()


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def review(trainer, lines, clock):
    """As soon as it draws its first picture."""
    logger = logging.Logger("test", logging.INFO)
    logger.addHandler(logging.StreamHandler(lines))
    review = Review(trainer, None, logger)
    clock.now += module.DRAW_SECONDS
    return review


@pytest.fixture
def unpictured(monkeypatch):
    monkeypatch.setattr(module, "draw_curves", lambda *_: None)


def test_curves_are_drawn_at_checkpoints_but_not_all_the_time(review, trainer, clock):
    clock.now -= 1
    review.at_checkpoint()
    assert not trainer.run.curves.exists()  # most tests and looks at a first step end before
    clock.now += 1
    review.at_checkpoint()
    assert trainer.run.curves.read_bytes().startswith(b"\x89PNG")
    trainer.run.curves.unlink()
    clock.now += module.DRAW_SECONDS - 1
    review.at_checkpoint()
    assert not trainer.run.curves.exists()
    clock.now += 1
    review.at_checkpoint()
    assert trainer.run.curves.exists()


def test_baselines_are_dotted_lines(monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, _: figures.append(figure))
    rows = [{"step": 10, **STUCK}, {"step": 20, **STUCK, "knn_top1": 40.0}]
    baselines = Baselines(31.0, 20.0, 500, "images of data.test")
    pictures.draw_curves(Path("curves.png"), rows, baselines)
    pictures.draw_curves(Path("curves.png"), rows[:1], None)
    with_both, without = (figure.axes[3] for figure in figures)
    dotted = {line.get_label(): line for line in with_both.lines if line.get_linestyle() == ":"}
    heights = {label: line.get_ydata()[0] for label, line in dotted.items()}
    assert heights == {"raw pixels": 31.0, "encoder at the start": 20.0}
    assert "monitor.every_epochs" in without.get_title()


def test_measurements_without_labels_are_drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, _: figures.append(figure))
    fresh = {"loss_stale": 5.0, "loss_fresh": 5.4, "accuracy_top1_fresh": 2.0, "rankme": 7.0}
    pictures.draw_curves(
        Path("curves.png"), [{"step": 10, **STUCK}, {"step": 20, **STUCK, **fresh}]
    )
    lines = {line.get_label(): line for axes in figures[0].axes for line in axes.lines}
    found = {label: list(line.get_ydata()) for label, line in lines.items()}
    assert found["against the queue"] == [5.0]
    assert found["against new keys"] == [5.4]
    assert found["among new keys"] == [2.0]
    assert found["RankMe"] == [7.0]
    assert "chance, 5.55" in found  # ln(K+1) of InfoNCE, more of binary NCE
    assert not figures[0].axes[3].get_title()


def test_a_slow_picture_is_drawn_less_often(review, clock, monkeypatch):
    drawn = []

    def draw(*_):
        drawn.append(clock.now)
        clock.now += 60

    monkeypatch.setattr(module, "draw_curves", draw)
    for now in (130, 200, 1000, 2189, 2191):  # 190 + 60 / 0.03
        clock.now = now
        review.at_checkpoint()
    assert drawn == [130, 2191]


def test_a_failing_picture_stops_nothing(review, lines, monkeypatch):
    monkeypatch.setattr(module, "draw_curves", lambda *_: 1 / 0)
    review.at_checkpoint()
    assert "curves.png cannot be drawn: division by zero" in lines.getvalue()


@pytest.mark.usefixtures("unpictured")
def test_a_warning_is_said_once(review, lines, monkeypatch):
    monkeypatch.setattr(module, "DRAW_SECONDS", -1e9)
    monkeypatch.setattr(module, "DRAW_SHARE", 1e9)
    review.at_checkpoint()
    review.at_checkpoint()
    assert lines.getvalue().count("warning   the loss 5.55 is at chance") == 1


@pytest.mark.usefixtures("unpictured")
def test_the_end_says_verdict_files_and_next_command(review, trainer, lines):
    review.at_end()
    verdict = json.loads(trainer.run.verdict.read_text())
    assert verdict["outcome"] == "too early"
    command = f"fastmoco knn {trainer.run.path} leave_one_out=true 'data.train=my set.beton'"
    assert verdict["next"] == command
    said = lines.getvalue().splitlines()
    assert said[0].startswith("verdict   too early: ")
    assert said[-2].startswith(f"files     in {trainer.run.path}: curves.png")
    assert said[-1] == f"next      {command}"


def test_other_ranks_do_nothing(review, trainer, lines):
    trainer.ranks = SimpleNamespace(is_first=False)
    review.at_checkpoint()
    review.at_end()
    assert not lines.getvalue()
    assert not trainer.run.curves.exists()


@pytest.mark.parametrize(
    ("labels", "test", "command"),
    [
        ((0, 1), "b.beton", "fastmoco knn r data.train=a.beton data.test=b.beton"),
        ((0, 1), None, "fastmoco knn r leave_one_out=true data.train=a.beton"),
        ((0, 1, -1), "b.beton", "fastmoco neighbors r data.test=b.beton"),
        ((-1, -1), None, "fastmoco neighbors r data.test=a.beton"),
        ((0, 0), None, "fastmoco neighbors r data.test=a.beton"),
    ],
)
def test_the_next_command_fits_the_labels(labels, test, command):
    data = DataConfig(train=Path("a.beton"), test=Path(test) if test else None)
    images, run = labeled(*labels), RunFolder(Path("r"))
    assert next_command(run, data, images, MonitorConfig()) == command
    measured = next_command(run, data, images, MonitorConfig(every_epochs=1, k=20))
    assert ("k=20 temperature=0.1" in measured) == ("knn" in command)


def test_facts_are_of_the_mechanism(trainer):
    facts = run_facts(trainer)
    assert (facts.num_images, facts.scheduled_steps) == (3, 2000)
    assert (facts.queue_size, facts.momentum) == (65536, 0.999)
    assert (facts.keys_per_step, facts.fresh_chance) == (256, math.log(2049))
    assert not facts.from_weights
    trainer.cfg.moco, trainer.origins = MocoConfig(symmetric=True), [{"weights": "w"}]
    assert run_facts(trainer).keys_per_step == 512
    assert run_facts(trainer).from_weights
    trainer.cfg.moco = MocoConfig(mechanism=Mechanism.end_to_end)
    assert (run_facts(trainer).queue_size, run_facts(trainer).momentum) == (None, None)
    trainer.cfg.moco = MocoConfig(mechanism=Mechanism.moco_v3)
    assert (run_facts(trainer).queue_size, run_facts(trainer).momentum) == (None, 0.999)
