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
from fastmoco.train.doubts import (
    COLLAPSED_BELOW,
    EARLY_STEPS,
    LOWER_RATE,
    OTHER_RATE,
    Doubt,
    RunFacts,
    at_chance,
    doubts_of,
    is_chance,
    spread,
)

SOLVED_ABOVE = 90.0
"""Percent of look-ups that find the positive: the task has little left to teach."""
STANDARD_ERRORS = 2.0
"""How far kNN must be above a baseline; in errors of the difference of two shares."""
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


SAFE_MOMENTUM = 0.99
"""Least m that has not collapsed here (docs/reproductions/moco.md)."""


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
    doubts = doubts_of(figures, facts, step)
    if _is_collapsed(figures) and step >= EARLY_STEPS:
        outcome, reason = Outcome.collapsed, spread(figures)
    elif baselines and "knn_top1" in figures:
        outcome, reason = _by_labels(figures, baselines, doubts)
    else:
        outcome, reason = _without_labels(figures, doubts)
    if outcome is Outcome.learned:
        doubts = []
    reasons = [reason, *(doubt.text for doubt in doubts if doubt.text != reason)]
    reasons += _about_loss(rows)
    if outcome is Outcome.collapsed:  # its advice is about the rate already
        doubts = [doubt for doubt in doubts if "learning_rate" not in doubt.advice]
    advice = [_advice(outcome, facts, step), *(doubt.advice for doubt in doubts)]
    advice = [text for text in dict.fromkeys(advice) if text]
    return Verdict(outcome=outcome, step=step, reasons=reasons, advice=advice, figures=figures)


def warning(rows: Sequence[dict[str, Any]], total_steps: int, momentum: float | None) -> str | None:
    """What a user should know while a run goes on: a lasting collapse, or a loss stuck at chance.

    It is looked for after a quarter of the steps, and over the last half of those done: features
    that pass through a narrow phase, or a loss that has just begun to fall, are no reason to warn.
    """
    step = rows[-1]["step"] if rows else 0
    if step < max(EARLY_STEPS, total_steps / 4):
        return None
    late = [row for row in rows if row["step"] > step / 2]
    if all(_is_collapsed(row) for row in late):
        return f"{spread(late[-1])}; {_against_collapse(momentum)}"
    if all(is_chance(row) for row in late):
        return f"{at_chance(late[-1])}; {OTHER_RATE}"
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


def _advice(outcome: Outcome, facts: RunFacts, step: int) -> str:
    """What to change by the outcome; "" = nothing, or what a doubt says."""
    if outcome is Outcome.collapsed:
        return _against_collapse(facts.momentum)
    if outcome is Outcome.memorized:
        return "train on more images" + ("" if facts.from_weights else ", or start from weights")
    if outcome is Outcome.too_early and step >= facts.scheduled_steps:
        return "train longer: more train.epochs, in a new run folder"
    return ""


def _against_collapse(momentum: float | None) -> str:
    low = momentum is not None and momentum < SAFE_MOMENTUM
    return LOWER_RATE + (f", or set moco.momentum to {SAFE_MOMENTUM} or more" if low else "")


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
    figures: dict[str, float], baselines: Baselines, doubts: Sequence[Doubt]
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


def _without_labels(figures: dict[str, float], doubts: Sequence[Doubt]) -> tuple[Outcome, str]:
    if early := [doubt.text for doubt in doubts if doubt.early]:
        return Outcome.too_early, early[0]
    if is_chance(figures):
        return Outcome.too_early, at_chance(figures)
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
    return bool(figures["feature_deviation"] < COLLAPSED_BELOW and is_chance(figures))
