"""The verdict on runs whose answer is known."""

import dataclasses
import itertools
import json
import math
import re

import pytest

from fastmoco.evaluate.baselines import Baselines
from fastmoco.moco.settings import MocoConfig
from fastmoco.train.doubts import RunFacts
from fastmoco.train.machine import Machine
from fastmoco.train.run_warnings import RunFacts as HeaderFacts
from fastmoco.train.run_warnings import warnings_for
from fastmoco.train.settings import TrainConfig
from fastmoco.train.verdict import Outcome, judge, warning

CHANCE = 5.55  # ln(257)
FACTS = RunFacts(
    num_images=2_000,
    scheduled_steps=3_000,
    queue_size=256,
    momentum=0.99,
    keys_per_step=64,
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


TEXTURES = Baselines(
    knn_top1_pixels=25.0, knn_top1_start=14.0, num_images=1_200, about="images of data.test"
)
# The momentum sweep recorded in commit 08e47f8, 558 steps each, means of three seeds: loss,
# accuracy of the pretext task, feature deviation, kNN. Written out, so that running the sweep
# again does not change what this test asks.
MOMENTUM_RUNS = [
    (0.0, (5.54907, 0.52, 0.0062, 11.92), Outcome.collapsed),
    (0.9, (5.54897, 0.69, 0.0136, 14.53), Outcome.collapsed),
    (0.99, (5.15383, 3.07, 0.4805, 42.89), Outcome.learned),
    (0.999, (5.43239, 1.13, 0.4513, 21.47), Outcome.too_early),
    (0.9999, (5.53801, 0.52, 0.2823, 22.94), Outcome.too_early),
]


@pytest.mark.parametrize(("momentum", "run", "outcome"), MOMENTUM_RUNS)
def test_runs_of_the_momentum_sweep(momentum, run, outcome):
    """The loss of m = 0.999 is below chance, its features are spread, kNN is below raw pixels."""
    loss, look_up, deviation, knn = run
    found = rows(loss=loss, look_up=look_up, deviation=deviation, knn=knn, steps=558)
    left = {"momentum": momentum, "key_left": momentum**558}
    verdict = judge(found, facts(scheduled_steps=558, **left), TEXTURES)
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


@pytest.mark.parametrize(("knn", "num_images"), [(35.0, 500), (40.0, 60)])
def test_a_gain_within_its_error_proves_nothing(knn, num_images):
    baselines = dataclasses.replace(BASELINES, num_images=num_images)
    verdict = judge(rows(knn=knn), FACTS, baselines)
    assert verdict.outcome is Outcome.too_early
    assert "is not clearly above" in verdict.reasons[0]
    many = dataclasses.replace(baselines, num_images=50_000)
    assert judge(rows(knn=knn), FACTS, many).outcome is Outcome.learned


@pytest.mark.parametrize(("pixels", "start"), [(30.0, 10.0), (10.0, 30.0)])
def test_above_one_baseline_alone_is_not_enough(pixels, start):
    baselines = dataclasses.replace(BASELINES, knn_top1_pixels=pixels, knn_top1_start=start)
    assert judge(rows(knn=29.0), FACTS, baselines).outcome is Outcome.too_early


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
        (
            200,
            {"momentum": 0.999, "key_left": 0.82},
            "keeps 82% of its start (momentum 0.999)",
        ),
        (200, {}, "it stopped at step 200 of 3000 (train.max_steps)"),
        (200, {"queue_size": 65_536}, "the queue of 65,536 keys was never filled"),
        (3, {"queue_size": 256, "scheduled_steps": 3}, "the queue of 256 keys was never filled"),
    ],
)
def test_too_early_by_what_the_run_was_given(steps, changed, words):
    """The loss is far below chance: the query has learned to be newer than the queue."""
    verdict = judge(rows(loss=3.0, look_up=40.0, steps=steps), facts(**changed), None)
    assert verdict.outcome is Outcome.too_early
    assert words in " ".join(verdict.reasons)
    longer = "more train.epochs" if changed.get("scheduled_steps") == steps else "train.max_steps"
    assert any(longer in advice for advice in verdict.advice)


def test_a_symmetric_loss_fills_the_queue_in_half_the_steps():
    changed = {"queue_size": 256, "scheduled_steps": 3}
    words = "never filled"
    assert words in str(judge(rows(steps=3, count=3), facts(**changed), None).reasons)
    symmetric = facts(keys_per_step=128, **changed)
    assert words not in str(judge(rows(steps=3, count=3), symmetric, None).reasons)


def test_too_early_by_a_loss_at_chance():
    verdict = judge(rows(loss=5.5), FACTS, None)
    assert verdict.outcome is Outcome.too_early
    assert verdict.reasons == ["the loss 5.50 is at chance (5.55)"]
    assert judge(rows(loss=50.0), FACTS, None).reasons == ["the loss 50.00 is above chance (5.55)"]


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
    assert "set moco.queue_size=64" in verdict.advice  # as the header: an eighth, in batches
    blind = judge(rows(loss=0.1, look_up=97.0), long, None)
    assert blind.outcome is Outcome.memorized


@pytest.mark.parametrize("loss", [7.24, 7.5])
def test_a_run_on_300_images_with_a_queue_of_2048(loss):
    """Made on 300 images of CIFAR-10, 720 steps: the loss was 5.8 at step 150, and rose again."""
    long = facts(num_images=300, queue_size=2_048, keys_per_step=32, scheduled_steps=720)
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
        ([(5.1, 5.3), (5.3, 5.35)], ""),
    ],
)
def test_a_loss_that_rose_by_the_age_of_the_queue_is_not_called_broken(measured, words):
    reasons = judge(with_fresh(rows(), *measured), FACTS, None).reasons
    assert words in reasons[-1]
    assert len(reasons) == 1 + bool(words)


def test_a_loss_below_chance_against_the_queue_alone_is_too_early():
    found = with_fresh(rows(), (4.9, 5.5))
    verdict = judge(found, facts(fresh_chance=5.55), None)
    assert verdict.outcome is Outcome.too_early
    assert "the loss 5.50 against fresh keys is at chance (5.55)" in verdict.reasons[0]
    assert judge(found, facts(fresh_chance=7.63), None).outcome is Outcome.unproven


def test_figures_are_those_of_the_end():
    early, late = rows(loss=5.5, steps=3_000)[:25], rows(loss=4.0)[25:]
    assert judge([*early, *late], FACTS, None).figures["loss"] == 4.0
    late[-2] = {**late[-2], "loss": math.nan}  # all its steps were skipped
    assert judge([*early, *late], FACTS, None).figures["loss"] == 4.0
    measured = [*rows(knn=20.0, steps=1_500, count=15), *rows(knn=45.0)[15:]]
    assert judge(measured, FACTS, BASELINES).figures["knn_top1"] == 45.0


def test_skipped_steps_are_a_doubt_beyond_those_of_a_start():
    for skipped, is_doubt in ((4, False), (6, True)):  # of the 100 steps of a row
        found = [{**row, "skipped_steps": skipped} for row in rows()]
        reasons = judge(found, FACTS, None).reasons
        assert any(f"{30 * skipped} steps changed nothing" in one for one in reasons) == is_doubt


def test_a_slow_key_encoder_is_a_doubt_unless_it_began_with_weights():
    for from_weights, outcome in ((False, Outcome.too_early), (True, Outcome.unproven)):
        slow = facts(momentum=0.9999, key_left=0.74, from_weights=from_weights)
        assert judge(rows(), slow, None).outcome is outcome


def test_it_is_written_and_read_by_people():
    verdict = judge(rows(loss=5.5, steps=200), facts(scheduled_steps=200), None)
    assert json.loads(json.dumps(verdict.to_json()))["outcome"] == "too early"
    lines = verdict.to_lines()
    assert lines[0].startswith("verdict   too early: ")
    assert all(line.startswith(" " * 10) for line in lines[1:])
    assert all(len(line) <= 80 for line in lines)
    assert "to do: train longer" in "\n".join(lines)
    assert judge([], FACTS, None) is None


def test_a_lasting_collapse_is_warned_of():
    assert "nearly the same features" in warning(rows(loss=5.54, deviation=0.02), 3_000, 0.99)
    assert "is at chance" in warning(rows(loss=5.54), 3_000, 0.99)
    assert "is at chance" in warning([*rows()[:14], *rows(loss=5.54)[14:]], 3_000, 0.99)
    assert warning(rows(), 3_000, 0.99) is None


def test_what_may_pass_is_not_warned_of():
    assert warning([], 3_000, 0.99) is None
    assert warning(rows(loss=5.54, steps=400), 400, 0.99) is None  # few steps
    assert warning(rows(loss=5.54, steps=600), 3_000, 0.99) is None  # early in the run
    assert warning(rows(loss=5.03, deviation=0.03), 3_000, 0.99) is None  # newer than the queue
    assert warning([*rows(loss=5.54)[:20], *rows()[20:]], 3_000, 0.99) is None  # it falls


ENDS = {
    "collapsed": rows(loss=CHANCE, look_up=0.4, deviation=0.01),
    "at chance": rows(loss=5.54, knn=20.0),
    "narrow": rows(loss=5.0, deviation=0.03, knn=20.0),
    "solved": rows(loss=0.1, look_up=99.0, knn=20.0),
    "early": rows(loss=4.9, steps=200),
    "not finite": [{**row, "skipped_steps": 20} for row in rows(loss=4.9, knn=20.0)],
}
"""Rows of runs that came to nothing, each in another way."""
WITH_QUEUE = {"queue_size": (64, 256, 2_000, 65_536), "momentum": (0.0, 0.9, 0.99, 0.996, 0.9999)}
WITHOUT = {"queue_size": (None,), "momentum": (None, 0.99)}


def runs(start, mechanism):
    """Facts of runs: every combination of the values."""
    values = {"num_images": (100, 2_000), "scheduled_steps": (200, 3_000), **mechanism}
    values |= {"keys_per_step": (64, 128), "from_weights": (start,)}
    for combination in itertools.product(*values.values()):
        run = dict(zip(values, combination, strict=True))
        left = (run["momentum"] or 0.0) ** run["scheduled_steps"]
        yield facts(key_left=left, **run)


@pytest.mark.parametrize("mechanism", [WITH_QUEUE, WITHOUT], ids=["queue", "none"])
@pytest.mark.parametrize("start", [False, True], ids=["nothing", "weights"])
@pytest.mark.parametrize("end", ENDS)
def test_no_advice_is_what_the_run_has_already(end, start, mechanism):
    for run in runs(start, mechanism):
        advice = judge(ENDS[end], run, BASELINES).advice
        text = "; ".join(advice)
        assert len(set(advice)) == len(advice)
        assert ("start from weights" in text) <= (not start)
        assert ("moco.queue_size" in text) <= (run.queue_size is not None)
        assert ("moco.momentum" in text) <= (run.momentum is not None)
        for size in re.findall(r"moco\.queue_size=(\d+)", text):
            assert run.keys_per_step <= int(size) < run.queue_size
            assert int(size) <= run.num_images
        if "shorter moco.queue_size" in text:
            assert run.queue_size > run.keys_per_step
        for m in re.findall(r"moco\.momentum=([\d.]+)", text):
            assert float(m) < run.momentum
        if "moco.momentum to 0.99" in text:
            assert run.momentum < 0.99
        if end == "early" and run.scheduled_steps > 200:
            assert "train longer" not in text
            assert "raise train.max_steps; the same command resumes" in advice


@pytest.mark.parametrize(("images", "batch"), [(100, 64), (100, 8), (2_000, 64), (300, 256)])
def test_the_verdict_asks_for_the_queue_and_m_that_the_header_asks_for(images, batch):
    moco = MocoConfig(queue_size=4_096, momentum=0.9999, batch_norm_splits=2)
    cfg = TrainConfig(global_batch_size=batch, moco=moco)
    machine = Machine(kind="cpu", memory_bytes=2**36, units=2)
    header = "; ".join(
        warnings_for(
            cfg,
            HeaderFacts(
                images=images,
                steps=600,
                steps_per_epoch=6,
                has_batch_norm=True,
                machine=machine,
            ),
        )
    )
    changed = {"queue_size": 4_096, "momentum": 0.9999, "key_left": 0.9999**600}
    run = facts(num_images=images, keys_per_step=batch, scheduled_steps=600, **changed)
    advice = judge(rows(steps=600, knn=20.0), run, BASELINES).advice
    queue = [text for text in advice if "queue" in text or "global_batch_size" in text]
    assert len(queue) == 1
    assert queue[0] in header
    assert "set moco.momentum=0.99" in advice
    assert "set moco.momentum=0.99" in header
