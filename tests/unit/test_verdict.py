"""The verdict on runs whose answer is known."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from fastmoco.evaluate.baselines import Baselines
from fastmoco.train.verdict import Outcome, RunFacts, judge, warning

CHANCE = 5.55  # ln(257)
FACTS = RunFacts(
    num_images=2_000,
    global_batch_size=64,
    scheduled_steps=3_000,
    queue_size=256,
    momentum=0.99,
)
BASELINES = Baselines(
    knn_top1_pixels=30.0, knn_top1_start=25.0, num_images=500, about="images of data.test"
)


def rows(loss=4.9, look_up=9.0, deviation=0.6, knn=None, steps=3_000, count=30):
    """A run that looks the same from its first row to its last."""
    return [
        {
            "step": steps * (number + 1) // count,
            "loss": loss,
            "loss_floor_ln_k1": CHANCE,
            "accuracy_top1": look_up,
            "feature_deviation": deviation,
            "knn_top1": knn if number == count - 1 else None,
        }
        for number in range(count)
    ]


def facts(**changed):
    return dataclasses.replace(FACTS, **changed)


MOMENTUM_SWEEP = Path(__file__).parents[2] / "docs/reproductions/momentum/table.csv"
TEXTURES = Baselines(
    knn_top1_pixels=25.0, knn_top1_start=14.0, num_images=1_200, about="images of data.test"
)


@pytest.mark.parametrize(
    ("momentum", "outcome"),
    [
        (0.0, Outcome.collapsed),
        (0.9, Outcome.collapsed),
        (0.99, Outcome.learned),
        (0.999, Outcome.too_early),
        (0.9999, Outcome.too_early),
    ],
)
def test_runs_of_the_momentum_sweep(momentum, outcome):
    """558 steps each, means of three seeds; what became of them is in docs/reproductions/moco.md.

    The loss of m = 0.999 is below chance, and its features are spread, but kNN is below raw pixels.
    """
    lines = MOMENTUM_SWEEP.read_text().splitlines()
    (run,) = (row for row in csv.DictReader(lines) if float(row["momentum"]) == momentum)
    found = rows(
        loss=float(run["loss_mean"]),
        look_up=float(run["accuracy_top1_mean"]),
        deviation=float(run["feature_deviation_mean"]),
        knn=float(run["knn_top1_mean"]),
        steps=558,
    )
    verdict = judge(found, facts(momentum=momentum, scheduled_steps=558), TEXTURES)
    assert verdict.outcome is outcome
    keeps = [reason for reason in verdict.reasons if "keeps" in reason]
    assert bool(keeps) == (momentum >= 0.999)


def test_learned_is_above_both_baselines():
    verdict = judge(rows(knn=45.0), FACTS, BASELINES)
    assert verdict.outcome is Outcome.learned
    (reason,) = verdict.reasons
    assert "kNN 45.0% is above raw pixels 30.0% and the encoder at the start 25.0%" in reason
    assert verdict.advice == []
    assert verdict.figures["knn_top1"] == 45.0


@pytest.mark.parametrize(("knn", "num_images"), [(33.0, 500), (40.0, 60)])
def test_a_gain_within_its_error_proves_nothing(knn, num_images):
    baselines = dataclasses.replace(BASELINES, num_images=num_images)
    verdict = judge(rows(knn=knn), FACTS, baselines)
    assert verdict.outcome is Outcome.too_early
    assert "is not clearly above" in verdict.reasons[0]
    assert judge(rows(knn=knn), FACTS, dataclasses.replace(baselines, num_images=50_000)).outcome


def test_above_the_untrained_encoder_alone_is_not_enough():
    verdict = judge(rows(knn=29.0), FACTS, BASELINES)
    assert verdict.outcome is Outcome.too_early


@pytest.mark.parametrize("knn", [None, 12.0])
def test_collapsed(knn):
    verdict = judge(rows(loss=CHANCE, look_up=0.4, deviation=0.01, knn=knn), FACTS, BASELINES)
    assert verdict.outcome is Outcome.collapsed
    assert "nearly the same features (spread 0.01" in verdict.reasons[0]
    assert "optimizer.learning_rate" in verdict.advice[0]


@pytest.mark.parametrize(("loss", "steps"), [(5.03, 200), (5.03, 3_000), (5.54, 200)])
def test_the_narrow_phase_of_an_early_run_is_no_collapse(loss, steps):
    """Step 200 of the demo: a loss of 5.03 and a deviation of 0.03; at step 837 it is 0.64."""
    verdict = judge(rows(loss=loss, look_up=25, deviation=0.03, steps=steps), FACTS, None)
    assert verdict.outcome is Outcome.too_early
    assert any("nearly the same features" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(
    ("steps", "changed", "words"),
    [
        (200, {"momentum": 0.999}, "the key encoder keeps 82% of its start (momentum 0.999)"),
        (200, {}, "it stopped at step 200 of 3000 (train.max_steps)"),
        (200, {"queue_size": 65_536}, "the queue of 65,536 keys was never filled"),
    ],
)
def test_too_early_by_what_the_run_was_given(steps, changed, words):
    """The loss is far below chance: the query has learned to be newer than the queue."""
    verdict = judge(rows(loss=3.0, look_up=40.0, steps=steps), facts(**changed), None)
    assert verdict.outcome is Outcome.too_early
    assert words in " ".join(verdict.reasons)
    assert any("train longer" in advice for advice in verdict.advice)


def test_too_early_by_a_loss_at_chance():
    verdict = judge(rows(loss=5.5), FACTS, None)
    assert verdict.outcome is Outcome.too_early
    assert verdict.reasons == ["the loss 5.50 is at chance, ln(K+1) = 5.55"]


def test_memorized_where_the_look_up_is_solved_without_a_gain():
    verdict = judge(rows(loss=0.1, look_up=99.0, knn=24.0), FACTS, BASELINES)
    assert verdict.outcome is Outcome.memorized
    assert "although 99% of look-ups find the positive" in verdict.reasons[0]


def test_a_solved_look_up_in_a_run_that_was_stopped_is_too_early():
    verdict = judge(rows(loss=0.1, look_up=99.0, knn=24.0, steps=600), FACTS, BASELINES)
    assert verdict.outcome is Outcome.too_early


def test_memorized_in_a_queue_longer_than_the_set():
    long = facts(num_images=300, queue_size=4_096)
    verdict = judge(rows(loss=4.0, look_up=30.0, knn=24.0), long, BASELINES)
    assert verdict.outcome is Outcome.memorized
    assert "longer than the set of 300 images" in verdict.reasons[1]
    assert "set moco.queue_size to 150 or less" in verdict.advice
    blind = judge(rows(loss=0.1, look_up=97.0), long, None)
    assert blind.outcome is Outcome.memorized


@pytest.mark.parametrize("loss", [7.24, 7.5])
def test_a_run_on_300_images_with_a_queue_of_2048(loss):
    """Made on 300 images of CIFAR-10, 720 steps: the loss was 5.8 at step 150, and rose again."""
    long = facts(num_images=300, queue_size=2_048, global_batch_size=32, scheduled_steps=720)
    found = [{**row, "loss_floor_ln_k1": 7.63} for row in rows(loss, 8.0, 0.5, 14.2, steps=720)]
    baselines = dataclasses.replace(BASELINES, knn_top1_pixels=24.6, knn_top1_start=16.6)
    assert judge(found, long, baselines).outcome is Outcome.memorized
    blind = judge(found, long, None)
    assert blind.outcome is (Outcome.unproven if loss < 7.4 else Outcome.too_early)
    assert "longer than the set of 300 images" in blind.reasons[1]


def test_without_labels_nothing_is_proven():
    verdict = judge(rows(), FACTS, None)
    assert verdict.outcome is Outcome.unproven
    assert "only labels prove" in verdict.reasons[0]
    assert "loss 4.90 is below chance (5.55)" in verdict.reasons[0]
    batch_only = facts(queue_size=None, momentum=None)
    assert judge(rows(look_up=99.0), batch_only, None).outcome is Outcome.unproven


def with_fresh(found, *measured):
    """Rows with (loss_stale, loss_fresh) in the last of them, one after the other."""
    late = zip(found[-len(measured) :], measured, strict=True)
    fresh = [{**row, "loss_stale": stale, "loss_fresh": new} for row, (stale, new) in late]
    return [*found[: -len(measured)], *fresh]


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (
            [(5.15, 6.6), (5.38, 6.45), (5.66, 6.22)],
            "the loss rose from 5.15 to 5.66 against the queue, but fell from 6.60 to 6.22",
        ),
        ([(4.9, 5.3)], "the loss is 4.90 against the queue, but 5.30 against fresh keys"),
        ([(5.1, 5.3), (4.9, 4.95)], ""),
    ],
)
def test_a_loss_that_rose_by_the_age_of_the_queue_is_not_called_broken(measured, words):
    reasons = judge(with_fresh(rows(), *measured), FACTS, None).reasons
    assert words in reasons[-1]
    assert len(reasons) == 1 + bool(words)


def test_a_loss_below_chance_against_the_queue_alone_is_too_early():
    found = with_fresh(rows(), (4.9, 5.5))
    verdict = judge(found, facts(compared_keys=256), None)
    assert verdict.outcome is Outcome.too_early
    assert "the loss 5.50 against fresh keys is at chance (5.55)" in verdict.reasons[0]
    assert judge(found, facts(compared_keys=2_048), None).outcome is Outcome.unproven


def test_figures_are_those_of_the_end():
    early, late = rows(loss=5.5, steps=3_000)[:25], rows(loss=4.0)[25:]
    assert judge([*early, *late], FACTS, None).figures["loss"] == 4.0


def test_it_is_written_and_read_by_people():
    verdict = judge(rows(loss=5.5, steps=200), facts(momentum=0.999), None)
    assert json.loads(json.dumps(verdict.to_json()))["outcome"] == "too early"
    lines = verdict.to_lines()
    assert lines[0].startswith("verdict   too early: ")
    assert all(line.startswith(" " * 10) for line in lines[1:])
    assert all(len(line) <= 80 for line in lines)
    assert "to do: train longer" in "\n".join(lines)
    assert judge([], FACTS, None) is None


def test_a_lasting_collapse_is_warned_of():
    assert "nearly the same features" in warning(rows(loss=5.54, deviation=0.02), 3_000)
    assert "is at chance" in warning(rows(loss=5.54), 3_000)
    assert "is at chance" in warning([*rows()[:14], *rows(loss=5.54)[14:]], 3_000)
    assert warning(rows(), 3_000) is None


def test_what_may_pass_is_not_warned_of():
    assert warning([], 3_000) is None
    assert warning(rows(loss=5.54, steps=400), 400) is None  # few steps
    assert warning(rows(loss=5.54, steps=600), 3_000) is None  # early in the run
    assert warning(rows(loss=5.03, deviation=0.03), 3_000) is None  # newer than the queue
    assert warning([*rows(loss=5.54)[:20], *rows()[20:]], 3_000) is None  # it falls
