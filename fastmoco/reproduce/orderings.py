"""Published claims ``A > B``, and whether runs show them."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from fastmoco.errors import UsageError, nearest_name
from fastmoco.reproduce.definition import Definition, PlotKind, XScale
from fastmoco.reproduce.figures import LABELS, Group
from fastmoco.reproduce.plan import combinations, run_name

STANDARD_ERRORS = 2.0
"""How far two accuracies must lie apart, in standard errors of their test set."""


class Verdict(StrEnum):
    """What runs say on a claim."""

    shows = "shows"
    opposite = "does not show"
    unresolved = "not resolved"
    missing = "not run"


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim and what came of it."""

    claim: str
    verdict: Verdict
    detail: str


def claims_of(ordering: str, default_measure: str) -> list[tuple[str, str, str]]:
    """``(measure, better, worse)`` of each step of ``[MEASURE:] A > B > C``.

    Raises:
        UsageError: If it is no such claim.
    """
    prefix = re.match(r"(\w+): ", ordering)
    measure = prefix[1] if prefix else default_measure
    names = [name.strip() for name in ordering[prefix.end() if prefix else 0 :].split(">")]
    if len(names) < 2 or not all(names):
        raise UsageError(f"ordering {ordering!r} is no claim such as `A > B`")
    return [(measure, *pair) for pair in itertools.pairwise(names)]


def check_orderings(orderings: Sequence[str], names: Sequence[str]) -> None:
    """Refuse claims about runs that the sweep does not have.

    Raises:
        UsageError: On the first.
    """
    for ordering in orderings:
        for _, *pair in claims_of(ordering, ""):
            for name in pair:
                if name not in names:
                    raise UsageError(
                        f"ordering {ordering!r} names the run {name}"
                        f"{nearest_name(name, list(names))}"
                    )


def check_plots(definition: Definition) -> None:
    """Refuse plots of axes and measures that are none.

    Raises:
        UsageError: On the first.
    """
    for plot in definition.plot:
        curve = plot.kind is PlotKind.curve
        for key in filter(None, [plot.lines, "" if curve else plot.x]):
            if key not in definition.axes and (key == plot.lines or key not in LABELS):
                axes = ", ".join(definition.axes)
                raise UsageError(f"a plot of {plot.y} names {key}; the axes are {axes}")
        if plot.kind is PlotKind.bar and plot.x and plot.x not in definition.axes:
            raise UsageError(f"a plot of bars has {plot.x} as x, which is no axis; leave x out")
        if plot.x_scale is not XScale.category and plot.x in definition.axes:
            for point in definition.axes[plot.x]:
                if not _is_number(point):
                    raise UsageError(
                        f"a plot has x_scale {plot.x_scale}, but point {point} of axis {plot.x} is "
                        "no number"
                    )
        if not curve and plot.y not in LABELS:
            near = nearest_name(plot.y, list(LABELS))
            raise UsageError(f"a plot names the measure {plot.y}{near}")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def check_claims(definition: Definition) -> None:
    """Refuse claims and plots of what the sweep does not have.

    Args:
        definition: At its scale.

    Raises:
        UsageError: On the first.
    """
    names = [run_name(points) for points in combinations(definition)]
    check_orderings(definition.published.orderings, names)
    check_plots(definition)


def judge(
    orderings: Sequence[str], groups: Mapping[str, Group], default_measure: str, tested: int
) -> list[Finding]:
    """What the runs say on each claim.

    A claim shows (or its opposite does) where every seed of one run is above every seed of the
    other, and the means of two accuracies differ by at least `STANDARD_ERRORS` standard errors of a
    test set of this size, as if the two were tested on different images. A run that diverged or
    failed is below any that did not.

    Args:
        orderings: ``[MEASURE:] A > B``.
        groups: By run name.
        default_measure: Where a claim names none.
        tested: Images of the test set; 0 = unknown.
    """
    return [
        _judged(measure, groups[better], groups[worse], tested)
        for ordering in orderings
        for measure, better, worse in claims_of(ordering, default_measure)
    ]


def _judged(measure: str, better: Group, worse: Group, tested: int) -> Finding:
    claim = f"{measure}: {better.name} > {worse.name}"
    high, low = better.values(measure), worse.values(measure)
    if not high or not low:
        if better.ended_badly and not high and low:
            return Finding(claim, Verdict.opposite, f"{better.name} failed")
        if worse.ended_badly and not low and high:
            return Finding(claim, Verdict.shows, f"{worse.name} failed")
        return Finding(claim, Verdict.missing, "")
    means = sum(high) / len(high), sum(low) / len(low)
    detail = f"{means[0]:.4g} against {means[1]:.4g}, {len(high)} and {len(low)} seeds"
    noise = STANDARD_ERRORS * _standard_error(means, tested) if "top" in measure else 0.0
    if min(high) > max(low) and means[0] - means[1] >= noise:
        return Finding(claim, Verdict.shows, detail)
    if max(high) < min(low) and means[1] - means[0] >= noise:
        return Finding(claim, Verdict.opposite, detail)
    return Finding(claim, Verdict.unresolved, detail)


def _standard_error(percents: tuple[float, float], tested: int) -> float:
    """Of the difference of two accuracies, in points."""
    if not tested:
        return 0.0
    return math.sqrt(sum(percent * (100 - percent) / tested for percent in percents))
