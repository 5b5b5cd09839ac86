"""``python -m benchmarks.document``: docs/benchmarks.md from the result files."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, number
from fastmoco.files import atomic_write_text

HEAD = """# Benchmarks

Made from `benchmarks/results/` by `python -m benchmarks.document`; what each name measures stands
in `benchmarks/bench_*.py`. Rerun on an idle machine: `pytest benchmarks/ --benchmark` (`-k loader`,
`--benchmark-scale=full`; `--benchmark-cifar=DIR` for CIFAR-10's own JPEGs). Values are medians,
with the least and greatest of n repeats, or quartiles from 8 on. A ratio is the peer's cost over
the row's own, round by round, in the same run: above 1 is in favor of the row. "(again)" is the
same code twice: the noise floor. A ratio that does not stand out from it is not shown to be a gain.
"""


def document(results: Path) -> str:
    """Markdown of all results in a folder.

    Raises:
        ValueError: If there are none.
    """
    files = sorted(results.glob("*.json"))
    if not files:
        raise ValueError(f"{results} holds no results; run pytest benchmarks/ --benchmark")
    sections = [_section(path.stem, json.loads(path.read_text())) for path in files]
    return "\n".join([HEAD, *sections])


def _section(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    about = rows[0]
    versions = ", ".join(f"{key} {value}" for key, value in about["versions"].items() if value)
    machine = f"{about['clocks']['cpu']}, {about['device']}"
    commit = (about["commit"] or "unknown")[:7]
    lines = [
        f"## {name}",
        "",
        f"{about['subject']}. Scale {about['scale']}; {machine}; {versions}; commit {commit}.",
        "",
        "| what | value | spread | n | ratio | beside | of the limit | goal | note |",
        "|---|---:|---|---:|---|---|---|---|---|",
        *map(_line, rows),
        "",
    ]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    value, ratio, share = row["value"], row["ratio"], row["share_of_limit"]
    cells = [
        row["what"],
        "absent" if value is None else f"{number(value)} {row['unit']}",
        "" if value is None else _spread(row["spread"]),
        str(row["repeats"] or ""),
        "" if not ratio else _ratio(ratio),
        ratio["peer"] if ratio else "",
        "" if share is None else f"{share:.0%} of {row['limit']}",
        row["goal"],
        row["note"],
    ]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _ratio(ratio: Mapping[str, Any]) -> str:
    text = f"**{ratio['value']:.2f}x** ({_spread(ratio['spread'])})"
    return text if ratio["shown"] else f"{ratio['value']:.2f}x, within noise"


def _spread(spread: Mapping[str, Any]) -> str:
    return f"{number(spread['low'])} to {number(spread['high'])}"


def main() -> None:
    """Write the document."""
    try:
        text = document(ROOT / "benchmarks/results")
    except ValueError as error:
        sys.exit(str(error))
    atomic_write_text(ROOT / "docs/benchmarks.md", text)


if __name__ == "__main__":
    main()
