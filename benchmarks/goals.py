"""What the figures are held against: every goal, where its figure stands, and whether it is met."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

JsonRow = Mapping[str, Any]
GOALS_FILE = Path(__file__).with_name("goals.yaml")


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """A bound on one figure; met where any of its bounds holds.

    Attributes:
        part: Of the project.
        claim: For people.
        benchmark: Name of the result file.
        what: The row.
        unit: Of the row; "" is any.
        peer: What the row is beside.
        ratio: The least ratio to the peer; it must be shown.
        share: The least share of the limit.
        below: What the value must stay under.
        device: How the device's name must begin; "" is any.
        scale: The scale that the goal is for; "" is any.
        profile: The entry of docs/log.md that says where the time goes.
    """

    part: str
    claim: str
    benchmark: str
    what: str
    unit: str = ""
    peer: str = ""
    ratio: float | None = None
    share: float | None = None
    below: float | None = None
    device: str = ""
    scale: str = ""
    profile: str = ""


def read_goals(path: Path = GOALS_FILE) -> list[Goal]:
    """All goals, in the order of the file."""
    parts = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [Goal(part=part, **values) for part, goals in parts.items() for values in goals]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a goal is met.

    Attributes:
        goal: Which.
        met: None where it was not measured.
        row: Its figure; without a value where it was tried in vain, which meets nothing.
        near: Whether the spread of the figure holds the goal: another run may judge otherwise.
    """

    goal: Goal
    met: bool | None
    row: JsonRow | None = None
    near: bool = False


def judge(goal: Goal, results: Mapping[str, Sequence[JsonRow]]) -> Verdict:
    """Holds a goal against the results.

    Args:
        goal: Which.
        results: Rows of every result file, by the name of the benchmark.
    """
    for row in results.get(goal.benchmark, ()):
        if _fits(goal, row):
            return Verdict(goal, _is_met(goal, row), row, _is_near(goal, row))
    return Verdict(goal, None)


def _fits(goal: Goal, row: JsonRow) -> bool:
    """Whether the row has the goal's figure, or the reason why there is none."""
    peer = row["ratio"]["peer"] if row["ratio"] else ""
    return (
        row["what"] == goal.what
        and (goal.peer in ("", peer) or row["value"] is None)
        and goal.unit in ("", row["unit"])
        and row["device"].startswith(goal.device)
        and goal.scale in ("", row["scale"])
    )


def _is_met(goal: Goal, row: JsonRow) -> bool:
    ratio, share = row["ratio"], row["share_of_limit"]
    if row["value"] is None:
        return False
    return any(
        (
            goal.ratio is not None
            and ratio is not None
            and ratio["shown"]
            and ratio["value"] >= goal.ratio,
            goal.share is not None and share is not None and share >= goal.share,
            goal.below is not None and row["value"] < goal.below,
        )
    )


def _is_near(goal: Goal, row: JsonRow) -> bool:
    """Whether repeats lie on both sides; of a share of the limit no spread is kept."""
    ratio, share = row["ratio"], row["share_of_limit"]
    if row["value"] is None or (goal.share and share and share >= goal.share):
        return False
    if goal.ratio is not None and ratio:
        return bool(ratio["spread"]["low"] < goal.ratio <= ratio["spread"]["high"])
    if goal.below is not None:
        return bool(row["spread"]["low"] < goal.below <= row["spread"]["high"])
    return False
