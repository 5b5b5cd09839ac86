"""What came out of a run: a verdict on its metrics, with the figures that it rests on.

Pure functions of the rows of ``metrics.jsonl``, the monitor's baselines and a few facts; no torch.
Loss and look-up alone never prove that something was learned: early in a run the query learns to be
"newer than the queue", and a loss far below chance then means nothing (docs/log.md). Labels prove
it, by kNN above raw pixels and above the encoder at the start. Without them the best outcome is
`Outcome.unproven`.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import fmean
from typing import Any

from fastmoco.evaluate.baselines import Baselines

COLLAPSED_BELOW = 0.1
"""Feature deviation: about 1 is spread over the sphere, 0 is collapse."""
EARLY_STEPS = 500
"""Fewer steps are never called a collapse: weights at their start have narrow features too."""
CHANCE_SHARE = 0.97
"""A loss above this fraction of ln(K+1) counts as chance."""
SOLVED_ABOVE = 90.0
"""Percent of look-ups that find the positive: the task has little left to teach."""
STANDARD_ERRORS = 2.0
"""How far kNN must be above a baseline; in errors of the difference of two shares."""
MOST_SKIPPED = 0.05
"""Fraction of the steps that may be skipped: fp16 looks for its scale in the first steps."""
LAST_PART = 0.1
"""Figures are means over the rows of this last fraction of the steps."""
STALE_GAP = 0.1
"""Nats by which the loss against fresh keys must be higher, to say so."""
FIGURES = ("loss", "loss_floor_ln_k1", "accuracy_top1", "feature_deviation")
MEASURED = ("loss_stale", "loss_fresh", "accuracy_top1_fresh", "key_drift", "rankme", "knn_top1")
"""Figures of the last measurement."""


class Outcome(StrEnum):
    """What came out of a run."""

    learned = "learned"
    """kNN is above raw pixels and above the encoder at the start, beyond its error."""
    unproven = "unproven"
    """Nothing speaks against it, but no labels prove it."""
    too_early = "too early"
    memorized = "memorized"
    """Single images are recognized, without features that their classes share."""
    collapsed = "collapsed"
    """All images have nearly the same features."""


ADVICE = {
    Outcome.too_early: "train longer: more train.epochs, in a new run folder",
    Outcome.memorized: "train on more images, or start from published weights",
    Outcome.collapsed: "lower optimizer.learning_rate, or set moco.momentum to 0.99 or more",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What a verdict needs to know about a run besides its metrics."""

    num_images: int
    global_batch_size: int
    scheduled_steps: int
    """Steps of all epochs; train.max_steps may stop the run before."""
    queue_size: int | None
    """K, keys of earlier steps; None without a queue."""
    momentum: float | None
    """m of the key encoder at the start; None without a key encoder."""
    compared_keys: int | None = None
    """Keys that ``loss_stale`` and ``loss_fresh`` are over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The outcome of a run, in words and numbers."""

    outcome: Outcome
    step: int
    reasons: list[str]
    """With their figures; the first one decided."""
    advice: list[str]
    """What to change."""
    figures: dict[str, float]
    """Means at the end of the run; kNN and its baselines, if measured."""

    def to_json(self) -> dict[str, Any]:
        """As ``verdict.json`` holds it."""
        return asdict(self)

    def to_lines(self) -> list[str]:
        """For people, in the form of the run's header; at most 80 columns."""
        texts = [f"{self.outcome.value}: {self.reasons[0]}"]
        texts += [f"also: {reason}" for reason in self.reasons[1:]]
        texts += [f"to do: {advice}" for advice in self.advice]
        wrapped = [line for text in texts for line in textwrap.wrap(text, 70)]
        return [f"{'' if number else 'verdict':<10}{line}" for number, line in enumerate(wrapped)]


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A reason not to trust what the metrics say."""

    text: str
    advice: str
    early: bool
    """Whether more steps would settle it."""


def judge(
    rows: Sequence[dict[str, Any]], facts: RunFacts, baselines: Baselines | None
) -> Verdict | None:
    """Judge a finished run.

    Args:
        rows: Rows of ``metrics.jsonl``.
        facts: Facts of the run.
        baselines: kNN before the first step; None if it was not measured.

    Returns:
        The verdict; None without rows.
    """
    if not rows:
        return None
    step, figures = rows[-1]["step"], _figures(rows, baselines)
    doubts = _doubts(figures, facts, step)
    if _is_collapsed(figures) and step >= EARLY_STEPS:
        outcome, reason = Outcome.collapsed, _spread(figures)
    elif baselines and "knn_top1" in figures:
        outcome, reason = _by_labels(figures, baselines, doubts)
    else:
        outcome, reason = _without_labels(figures, doubts)
    if outcome is Outcome.learned:
        doubts = []
    reasons = [reason, *(doubt.text for doubt in doubts if doubt.text != reason)]
    reasons += _about_loss(rows)
    advice = [ADVICE[outcome]] if outcome in ADVICE else []
    advice += [doubt.advice for doubt in doubts if doubt.advice]
    return Verdict(outcome=outcome, step=step, reasons=reasons, advice=advice, figures=figures)


def warning(rows: Sequence[dict[str, Any]], total_steps: int) -> str | None:
    """What a user should know while a run goes on: a lasting collapse, or a loss stuck at chance.

    It is looked for after a quarter of the steps, and over the last half of those done: features
    that pass through a narrow phase, or a loss that has just begun to fall, are no reason to warn.
    """
    step = rows[-1]["step"] if rows else 0
    if step < max(EARLY_STEPS, total_steps / 4):
        return None
    late = [row for row in rows if row["step"] > step / 2]
    if all(_is_collapsed(row) for row in late):
        return f"{_spread(late[-1])}; {ADVICE[Outcome.collapsed]}"
    if all(_is_chance(row) for row in late):
        return f"{_at_chance(late[-1])}; try another optimizer.learning_rate"
    return None


def _figures(rows: Sequence[dict[str, Any]], baselines: Baselines | None) -> dict[str, float]:
    last = [row for row in rows if row["step"] > (1 - LAST_PART) * rows[-1]["step"]]
    last = [row for row in last if math.isfinite(row["loss"])] or last  # else all were skipped
    figures = {name: fmean(row[name] for row in last) for name in FIGURES}
    figures["skipped_steps"] = sum(row.get("skipped_steps", 0) for row in rows)
    for name in MEASURED:
        if measured := [row[name] for row in rows if row.get(name) is not None]:
            figures[name] = measured[-1]
    if baselines:
        figures["knn_top1_pixels"] = baselines.knn_top1_pixels
        figures["knn_top1_start"] = baselines.knn_top1_start
    return figures


def _doubts(figures: dict[str, float], facts: RunFacts, step: int) -> list[_Doubt]:
    doubts, size = [], facts.queue_size
    is_long = size is not None and size >= facts.num_images
    if step < facts.scheduled_steps:
        text = f"it stopped at step {step} of {facts.scheduled_steps} (train.max_steps)"
        doubts.append(_Doubt(text, "raise train.max_steps; the same command resumes", early=True))
    if facts.momentum is not None and (kept := facts.momentum**step) > 0.5:
        text = f"the key encoder keeps {100 * kept:.0f}% of its start (momentum {facts.momentum:g})"
        advice = "set moco.momentum=0.99 for few steps"
        doubts.append(_Doubt(text, advice, early=True))
    if figures["skipped_steps"] > MOST_SKIPPED * step:
        text = f"{figures['skipped_steps']:,.0f} steps changed nothing: they were not finite"
        doubts.append(_Doubt(text, "lower optimizer.learning_rate", early=True))
    if _is_chance(figures):
        doubts.append(_Doubt(_at_chance(figures), "", early=not is_long))
    elif facts.compared_keys and "loss_fresh" in figures:
        chance = math.log(facts.compared_keys + 1)
        if figures["loss_fresh"] > CHANCE_SHARE * chance:
            text = (
                f"the loss {figures['loss_fresh']:.2f} against fresh keys is at chance "
                f"({chance:.2f}), though it is {figures['loss_stale']:.2f} against the queue: "
                "queries are told from keys by age"
            )
            doubts.append(_Doubt(text, "", early=not is_long))
    if figures["feature_deviation"] < COLLAPSED_BELOW:
        advice = "if that lasts, set a shorter moco.queue_size or a lower optimizer.learning_rate"
        doubts.append(_Doubt(_spread(figures), advice, early=True))
    if size is not None and step * facts.global_batch_size < size:
        text = f"the queue of {size:,} keys was never filled"
        doubts.append(_Doubt(text, "", early=True))
    if is_long:
        text = (
            f"the queue of {size:,} keys is longer than the set of {facts.num_images:,} images: "
            "images are their own negatives"
        )
        advice = f"set moco.queue_size to {facts.num_images // 2} or less"
        doubts.append(_Doubt(text, advice, early=False))
    return doubts


def _about_loss(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say what the logged loss hides: that it rose while learning went on, or is low by age."""
    found = [row for row in rows if row.get("loss_fresh") is not None]
    if not found:
        return []
    (first_stale, first), (stale, fresh) = (
        (row["loss_stale"], row["loss_fresh"]) for row in (found[0], found[-1])
    )
    if stale > first_stale and fresh < first:
        return [
            f"the loss rose from {first_stale:.2f} to {stale:.2f} against the queue, but fell from "
            f"{first:.2f} to {fresh:.2f} against fresh keys: it is not broken, its start was low "
            "by the age of the queue"
        ]
    if fresh - stale > STALE_GAP:
        return [
            f"the loss is {stale:.2f} against the queue, but {fresh:.2f} against fresh keys: a "
            "part of it is the age of the queue"
        ]
    return []


def _by_labels(
    figures: dict[str, float], baselines: Baselines, doubts: Sequence[_Doubt]
) -> tuple[Outcome, str]:
    knn, pixels = figures["knn_top1"], baselines.knn_top1_pixels
    start = baselines.knn_top1_start
    best, share = max(pixels, start), knn / 100
    error = 100 * math.sqrt(2 * share * (1 - share) / baselines.num_images)
    against = f"raw pixels {pixels:.1f}% and the encoder at the start {start:.1f}%"
    on = f"on {baselines.num_images:,} {baselines.about}"
    if knn > best + STANDARD_ERRORS * error:
        return Outcome.learned, f"kNN {knn:.1f}% is above {against} ({on})"
    reason = f"kNN {knn:.1f}% is not clearly above {against} ({on})"
    solved = figures["accuracy_top1"] > SOLVED_ABOVE
    if solved:
        reason += f", although {figures['accuracy_top1']:.0f}% of look-ups find the positive"
    settled = not any(doubt.early for doubt in doubts)
    memorized = settled and (solved or bool(doubts))
    return (Outcome.memorized if memorized else Outcome.too_early), reason


def _without_labels(figures: dict[str, float], doubts: Sequence[_Doubt]) -> tuple[Outcome, str]:
    if early := [doubt.text for doubt in doubts if doubt.early]:
        return Outcome.too_early, early[0]
    if _is_chance(figures):
        return Outcome.too_early, _at_chance(figures)
    if doubts and figures["accuracy_top1"] > SOLVED_ABOVE:
        found = f"{figures['accuracy_top1']:.0f}% of look-ups find the positive"
        return Outcome.memorized, f"{found} in a queue that holds all images"
    below = f"loss {figures['loss']:.2f} is below chance ({figures['loss_floor_ln_k1']:.2f})"
    spread = f"features are spread ({figures['feature_deviation']:.2f} of 1)"
    return Outcome.unproven, f"{below} and {spread}, but only labels prove what was learned"


def _is_collapsed(figures: dict[str, Any]) -> bool:
    """Narrow features whose loss is at chance.

    Below chance they are a phase: the query is newer than the queue, all queries alike. The demo
    passes it in its steps 80 to 200, with a deviation of 0.03.
    """
    return bool(figures["feature_deviation"] < COLLAPSED_BELOW and _is_chance(figures))


def _is_chance(figures: dict[str, Any]) -> bool:
    return bool(figures["loss"] > CHANCE_SHARE * figures["loss_floor_ln_k1"])


def _at_chance(figures: dict[str, Any]) -> str:
    return (
        f"the loss {figures['loss']:.2f} is at chance, ln(K+1) = {figures['loss_floor_ln_k1']:.2f}"
    )


def _spread(figures: dict[str, Any]) -> str:
    deviation = figures["feature_deviation"]
    return (
        f"all images have nearly the same features (spread {deviation:.2f}; 1 is even, 0 is none)"
    )
