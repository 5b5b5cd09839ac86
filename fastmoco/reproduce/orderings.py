"""Published claims ``A > B``, and whether the runs show them."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from fastmoco.errors import UsageError, nearest_name
from fastmoco.reproduce.definition import Definition, PlotKind, XScale
from fastmoco.reproduce.figures import LABELS, Group, is_collapsed
from fastmoco.reproduce.plan import combinations, run_name

STANDARD_ERRORS = 2.0
"""Least difference of two accuracies, in standard errors of the test set."""
LEAST_SEEDS = 3
"""Least number of seeds on each side of a claim that is shown, or not."""


class Verdict(StrEnum):
    """Verdict of the runs on a claim."""

    shows = "shows"
    opposite = "does not show"
    unresolved = "not resolved"
    one_seed = "one seed"
    few_seeds = "too few seeds"
    collapsed = "collapsed runs"
    missing = "not run"


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim with its verdict."""

    claim: str
    verdict: Verdict
    detail: str


def claims_of(ordering: str, default_measure: str) -> list[tuple[str, str, str]]:
    """``(measure, better, worse)`` for each step of ``[MEASURE:] A > B > C``.

    Raises:
        UsageError: If the claim has another form.
    """
    prefix = re.match(r"(\w+): ", ordering)
    measure = prefix[1] if prefix else default_measure
    names = [name.strip() for name in ordering[prefix.end() if prefix else 0 :].split(">")]
    if len(names) < 2 or not all(names):
        raise UsageError(f"ordering {ordering!r} must have the form `A > B`")
    return [(measure, *pair) for pair in itertools.pairwise(names)]


def check_orderings(orderings: Sequence[str], names: Sequence[str]) -> None:
    """Check that each claim names runs of the sweep.

    Raises:
        UsageError: If not; names the first wrong claim.
    """
    for ordering in orderings:
        for _, *pair in claims_of(ordering, ""):
            for name in pair:
                if name not in names:
                    near = nearest_name(name, list(names))
                    raise UsageError(f"ordering {ordering!r} names an unknown run {name}{near}")


def check_plots(definition: Definition) -> None:
    """Check that each plot names axes and measures that exist.

    Raises:
        UsageError: If not; names the first wrong plot.
    """
    for plot in definition.plot:
        curve = plot.kind is PlotKind.curve
        for key in filter(None, [plot.lines, "" if curve else plot.x]):
            if key not in definition.axes and (key == plot.lines or key not in LABELS):
                axes = ", ".join(definition.axes)
                raise UsageError(f"a plot of {plot.y} names the axis {key}; the axes are {axes}")
        if plot.kind is PlotKind.bar and plot.x and plot.x not in definition.axes:
            raise UsageError(f"a plot of bars has {plot.x} as x, which is not an axis; leave x out")
        if plot.x_scale is not XScale.category:
            for point in definition.axes.get(plot.x, ()):
                if not _is_number(point):
                    problem = f"point {point} of axis {plot.x} is not a number"
                    raise UsageError(f"a plot has x_scale {plot.x_scale}, but {problem}")
        if not curve and plot.y not in LABELS:
            near = nearest_name(plot.y, list(LABELS))
            raise UsageError(f"a plot names the unknown measure {plot.y}{near}")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def check_claims(definition: Definition) -> None:
    """Check that claims and plots name runs, axes and measures of the sweep.

    Args:
        definition: Definition at its scale.

    Raises:
        UsageError: If not; names the first wrong one.
    """
    names = [run_name(points) for points in combinations(definition)]
    check_orderings(definition.published.orderings, names)
    check_plots(definition)


def judge(
    orderings: Sequence[str], groups: Mapping[str, Group], default_measure: str, tested: int
) -> list[Finding]:
    """The verdict of the runs on each claim.

    The runs show a claim (or its opposite) if every seed of one run is above every seed of the
    other, and if the means of two accuracies differ by at least `STANDARD_ERRORS` standard errors
    for a test set of this size, as if the two were tested on different images. A run that diverged
    or failed is below any that did not. It takes `LEAST_SEEDS` seeds on each side, none of which
    collapsed: a comparison of collapsed encoders says nothing about the claim.

    Args:
        orderings: Claims ``[MEASURE:] A > B``.
        groups: Groups by run name.
        default_measure: Measure of a claim that names none.
        tested: Images in the test set; 0: unknown.
    """
    found = []
    for ordering in orderings:
        for measure, better, worse in claims_of(ordering, default_measure):
            pair = groups[better], groups[worse]
            found.append(_with_enough_runs(_judged(measure, *pair, tested), pair))
    return found


def _with_enough_runs(finding: Finding, pair: tuple[Group, Group]) -> Finding:
    """Take back what was shown, or not, by too few seeds or by collapsed runs."""
    if finding.verdict not in (Verdict.shows, Verdict.opposite):
        return finding
    collapsed = [group.name for group in pair if any(map(is_collapsed, group.finished))]
    if collapsed:
        detail = f"{finding.detail}; collapsed: {' and '.join(collapsed)}"
        return replace(finding, verdict=Verdict.collapsed, detail=detail)
    seeds = min(len(group.runs) for group in pair)
    if seeds >= LEAST_SEEDS:
        return finding
    return replace(finding, verdict=Verdict.one_seed if seeds == 1 else Verdict.few_seeds)


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
    """Standard error of the difference of two accuracies, in percentage points."""
    if not tested:
        return 0.0
    return math.sqrt(sum(percent * (100 - percent) / tested for percent in percents))
