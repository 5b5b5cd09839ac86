"""``python -m benchmarks.compare --base DIR... --new DIR...``: is a branch slower than its base?

Both were measured on one machine, best in the order base, new, new, base: then a steady drift
cancels, and what two runs of one side differ by counts as noise. A figure is worse where its cost
grew by more than equal code differs in its benchmark (the A/A rows of all runs), by more than the
floor, and all of the new runs' repeats are worse than all of the base's. What was measured at
another scale, on other images or on another machine is not compared. Ends with 1 if one is worse,
and with 2 if there is nothing to compare.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import number

AGAIN = "(again)"
RATES = ("images/s", "MB/s")
COSTS = ("s", "ms", "MB", "MB of memory", "GB of device memory")
FLOOR = 0.05  # two runs of one build differ by as much where their A/A rows happen to agree
WORSE, BETTER, SAME, GONE, ADDED = "**worse**", "better", "", "only in base", "only in new"

Key = tuple[str, str, str]
"""Benchmark, what, unit."""
Pair = tuple[Key, str]
"""And what must be the same in both: scale, subject, device and processor."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a figure costs: the less, the better.

    Attributes:
        median: Over the runs of one side.
        low: The least of all repeats.
        high: The greatest.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure in both.

    Attributes:
        key: Which.
        change: The new cost over the base's; None where it is in one of them only.
        noise: What it must grow or shrink by, as a share, to count.
        verdict: `WORSE`, `BETTER`, `SAME`, `GONE` or `ADDED`.
    """

    key: Key
    change: float | None
    noise: float
    verdict: str


def compare(base: Sequence[Path], new: Sequence[Path], floor: float = FLOOR) -> list[Comparison]:
    """Compares the results of two builds, figure by figure.

    Args:
        base: Result folders, one for each run.
        new: The same of the other build.
        floor: The least growth that counts, as a share.
    """
    noise: dict[str, float] = {}
    sides = [_read(folders, noise) for folders in (base, new)]
    return [
        _compared(
            pair[0], sides[0].get(pair), sides[1].get(pair), max(floor, noise.get(pair[0][0], 0.0))
        )
        for pair in dict.fromkeys([*sides[0], *sides[1]])
    ]


def _compared(key: Key, base: Cost | None, new: Cost | None, noise: float) -> Comparison:
    if base is None or new is None:
        return Comparison(key, None, noise, ADDED if base is None else GONE)
    change = new.median / base.median
    verdict = SAME
    if change > 1 + noise and new.low > base.high:
        verdict = WORSE
    if change < 1 / (1 + noise) and new.high < base.low:
        verdict = BETTER
    return Comparison(key, change, noise, verdict)


def _read(folders: Sequence[Path], noise: dict[str, float]) -> dict[Pair, Cost]:
    """All costs of one side; widens the noise of each benchmark by its A/A rows."""
    found: dict[Pair, list[Cost]] = {}
    for folder in folders:
        seen = set()
        for name, row in _rows(folder):
            pair = ((name, row["what"], row["unit"]), _setting(row))
            if AGAIN in row["what"]:
                noise[name] = max(noise.get(name, 0.0), _noise(row))
            elif pair not in seen and (cost := _cost(row)):
                found.setdefault(pair, []).append(cost)
                seen.add(pair)  # a figure stands in a row for each peer
    return {
        pair: Cost(
            float(np.median([cost.median for cost in costs])),
            min(cost.low for cost in costs),
            max(cost.high for cost in costs),
        )
        for pair, costs in found.items()
    }


def _setting(row: Mapping[str, Any]) -> str:
    return "; ".join([row["scale"], row["subject"], row["device"], row["clocks"]["cpu"]])


def _rows(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in sorted(folder.glob("*.json")):
        yield from ((path.stem, row) for row in json.loads(path.read_text()))


def _noise(row: Mapping[str, Any]) -> float:
    """The spread of an A/A ratio, widened to hold 1."""
    if not row["ratio"]:
        return 0.0
    spread = row["ratio"]["spread"]
    return float(max(spread["high"], 1.0) - min(spread["low"], 1.0))


def _cost(row: Mapping[str, Any]) -> Cost | None:
    """None where a figure is absent, or where less or more is neither better nor worse."""
    if row["value"] is None or row["unit"] not in RATES + COSTS or not row["value"]:
        return None
    low, high = row["spread"]["low"], row["spread"]["high"]
    if row["unit"] in COSTS:
        return Cost(row["value"], low, high)
    return Cost(1 / row["value"], 1 / high, 1 / low)


def table(found: Sequence[Comparison]) -> str:
    """Markdown: what is worse first, then what is better, then the rest."""
    order = [WORSE, BETTER, GONE, ADDED, SAME]
    lines = [
        "| benchmark | what | unit | cost, new / base | noise | |",
        "|---|---|---|---:|---:|---|",
    ]
    for one in sorted(found, key=lambda one: order.index(one.verdict)):
        change = "" if one.change is None else number(one.change)
        cells = [*one.key, change, f"{one.noise:.0%}", one.verdict]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--base", nargs="+", type=Path, required=True, help="result folders")
    parser.add_argument("--new", nargs="+", type=Path, required=True, help="result folders")
    parser.add_argument("--floor", type=float, default=FLOOR, help="least growth that counts")
    given = parser.parse_args(arguments)
    found = compare(given.base, given.new, given.floor)
    if not any(one.change is not None for one in found):
        sys.stderr.write("no figure is in both; name folders that pytest benchmarks/ wrote\n")
        return 2
    worse = sum(one.verdict == WORSE for one in found)
    sys.stdout.write(f"{table(found)}\n\n{worse} of {len(found)} figures are worse.\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
