"""What speaks against what a run's metrics say, each doubt with what to set.

Pure functions of figures and facts, for `verdict.judge`; no torch. The advice shares the rules of
`advice.py` with the run's header and `fastmoco info`, so that they do not contradict each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastmoco.train.advice import momentum, shorter_queue

COLLAPSED_BELOW = 0.1
"""Feature deviation: about 1 is spread over the sphere, 0 is collapse."""
CHANCE_SHARE = 0.97
"""A loss above this fraction of that of a guess counts as chance."""
ABOVE_CHANCE = 0.1
"""Nats above chance from which a loss is called so."""
MOST_LEFT = 0.5
"""Fraction of the first key encoder that may be left."""
MOST_SKIPPED = 0.05
"""Fraction of the steps that may be skipped: fp16 looks for its scale in the first steps."""
EARLY_STEPS = 500
"""Fewer steps are never called a collapse: weights at their start have narrow features too."""
OTHER_RATE = "try another optimizer.learning_rate"
LOWER_RATE = "lower optimizer.learning_rate"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What a verdict needs to know about a run besides its metrics."""

    num_images: int
    scheduled_steps: int
    """Steps of all epochs; train.max_steps may stop the run before."""
    queue_size: int | None
    """K, keys of earlier steps; None without a queue."""
    momentum: float | None
    """m of the key encoder at the start; None without a key encoder."""
    keys_per_step: int
    """Keys that a step adds to the queue."""
    key_left: float = 0.0
    """Fraction of the key encoder that is still its start, after all steps done."""
    from_weights: bool = False
    """Whether the encoders were trained before."""
    fresh_chance: float | None = None
    """Loss of a guess among the keys of ``loss_stale`` and ``loss_fresh``; None without them."""

    @property
    def has_long_queue(self) -> bool:
        """Whether the queue is longer than the set, by the header's rule."""
        return self.queue_size is not None and self.queue_size > self.num_images


@dataclass(frozen=True, slots=True)
class Doubt:
    """A reason not to trust what the metrics say."""

    text: str
    advice: str
    early: bool
    """Whether more steps would settle it."""


def doubts_of(figures: dict[str, float], facts: RunFacts, step: int) -> list[Doubt]:
    """All that speaks against the figures of a run after `step` steps."""
    return [
        *_doubts_of_steps(figures, facts, step),
        *_doubts_of_loss(figures, facts, step),
        *_doubts_of_queue(facts, step),
    ]


def _doubts_of_steps(figures: dict[str, float], facts: RunFacts, step: int) -> Iterator[Doubt]:
    stopped = step < facts.scheduled_steps
    if stopped:
        text = f"it stopped at step {step} of {facts.scheduled_steps} (train.max_steps)"
        yield Doubt(text, "raise train.max_steps; the same command resumes", early=True)
    if facts.key_left > MOST_LEFT and not facts.from_weights and facts.momentum is not None:
        left, m = 100 * facts.key_left, momentum(facts.scheduled_steps)
        text = f"the key encoder keeps {left:.0f}% of its start (momentum {facts.momentum:g})"
        lower = m < facts.momentum and not stopped
        yield Doubt(text, f"set moco.momentum={m}" if lower else "", early=True)
    if figures["skipped_steps"] > MOST_SKIPPED * step:
        text = f"{figures['skipped_steps']:,.0f} steps changed nothing: they were not finite"
        yield Doubt(text, LOWER_RATE, early=True)


def _doubts_of_loss(figures: dict[str, float], facts: RunFacts, step: int) -> Iterator[Doubt]:
    early = not facts.has_long_queue
    if is_chance(figures):
        yield Doubt(at_chance(figures), OTHER_RATE if step >= EARLY_STEPS else "", early=early)
    elif facts.fresh_chance and "loss_fresh" in figures:
        if figures["loss_fresh"] > CHANCE_SHARE * facts.fresh_chance:
            text = (
                f"the loss {figures['loss_fresh']:.2f} against fresh keys is at chance "
                f"({facts.fresh_chance:.2f}), though it is {figures['loss_stale']:.2f} against the "
                "queue: queries are told from keys by age"
            )
            yield Doubt(text, "", early=early)
    if figures["feature_deviation"] < COLLAPSED_BELOW:
        shorter = facts.queue_size is not None and facts.queue_size > facts.keys_per_step
        advice = "if that lasts, " + ("set a shorter moco.queue_size or " if shorter else "")
        yield Doubt(spread(figures), advice + LOWER_RATE, early=True)


def _doubts_of_queue(facts: RunFacts, step: int) -> Iterator[Doubt]:
    size, keys = facts.queue_size, facts.keys_per_step
    if size is not None and step * keys < size:
        yield Doubt(f"the queue of {size:,} keys was never filled", "", early=True)
    if size is not None and facts.has_long_queue:
        text = (
            f"the queue of {size:,} keys is longer than the set of {facts.num_images:,} images: "
            "images are their own negatives"
        )
        yield Doubt(text, shorter_queue(facts.num_images, keys, facts.scheduled_steps), early=False)


def is_chance(figures: dict[str, Any]) -> bool:
    """Whether the loss is not clearly below that of a guess."""
    return bool(figures["loss"] > CHANCE_SHARE * figures["loss_floor_ln_k1"])


def at_chance(figures: dict[str, Any]) -> str:
    """Say that a loss is at chance, or above."""
    chance = figures["loss_floor_ln_k1"]
    place = "above" if figures["loss"] > chance + ABOVE_CHANCE else "at"
    return f"the loss {figures['loss']:.2f} is {place} chance ({chance:.2f})"


def spread(figures: dict[str, Any]) -> str:
    """Say that features are narrow."""
    deviation = figures["feature_deviation"]
    return (
        f"all images have nearly the same features (spread {deviation:.2f}; 1 is even, 0 is none)"
    )
