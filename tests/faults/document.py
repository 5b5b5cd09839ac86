"""``python -m tests.faults.document``: docs/faults.md from the committed results of campaigns."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastmoco.files import atomic_write_text
from tests.faults.ledger import BAD, RESULTS
from tests.full_suite import ROOT

PAGE = ROOT / "docs/faults.md"
HEAD = """# Faults

What was tried against fastmoco, and what came out. This page is made from `tests/faults/results/`
by `make faults`, which takes about {minutes:.0f} minutes on 2 cores, resumes where it was stopped
and adds to what is committed. `make test` runs a few cases of each row.

An outcome is **silent** where a wrong result came without a word, **crashed** where there was a
traceback or a signal, and **hung** where it took more than 120 s. All others are as promised.
"""
NOT_COVERED = """## What is not covered

- Power cuts: that a disk keeps what `fsync` brought to it is taken from the operating system.
- Several damages at once that fit each other, such as tensors and record changed by a program:
  checksums notice accidents, they do not prove who wrote a file.
- Files that another library writes (TensorBoard's event files, pictures, Hugging Face folders) are
  not mapped byte by byte.
- A whole line that is lost from the middle of `metrics.jsonl`: each row has a checksum, the file
  has none.
- GPUs: all figures are of CPUs. Faults of a device, of NCCL and of a CUDA graph were not injected.
- Network file systems, other systems than Linux, other processors than x86-64.
- Faults of memory that change numbers without making them infinite.
- The same faults on FFCV and lightly, for comparison.
"""


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """All results, by the name of their campaign."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def document(results: dict[str, dict[str, Any]]) -> str:
    """Markdown of all results; where each fault fell is in them alone.

    Raises:
        ValueError: If there are none.
    """
    if not results:
        raise ValueError("there are no results of faults; run make faults")
    parts = [part for result in results.values() for part in result["parts"].values()]
    minutes = sum(part["seconds"] for part in parts) / 60
    sections = [
        HEAD.format(minutes=minutes),
        _headline(results),
        _promises(results),
        _gaps(results),
        NOT_COVERED,
        _machines(parts),
    ]
    return "\n".join(section for section in sections if section)


def outcomes(result: dict[str, Any]) -> "Counter[str]":
    """Outcomes of a campaign, over its parts."""
    total: Counter[str] = Counter()
    for part in result["parts"].values():
        total.update(part["outcomes"])
    return total


def _headline(results: dict[str, dict[str, Any]]) -> str:
    counts = {
        unit: sum((outcomes(r) for r in results.values() if r["unit"] == unit), Counter())
        for unit in ("faults", "inputs")
    }
    total = counts["faults"] + counts["inputs"]
    bad = ", ".join(f"{name} {total[name]:,}" for name in BAD)
    survived = counts["faults"].total() - sum(counts["faults"][name] for name in BAD)
    return (
        f"**{counts['faults'].total():,} faults injected, {survived:,} survived; "
        f"{counts['inputs'].total():,} inputs tried. {bad.capitalize()}.**\n"
    )


def _promises(results: dict[str, dict[str, Any]]) -> str:
    rows = [_row(name, result) for name, result in results.items()]
    head = ["promise", "how", "tried", "what came out", "slowest to notice", "test"]
    return "\n".join(["## Promises", "", *_table(head, rows)])


def _row(name: str, result: dict[str, Any]) -> Sequence[str]:
    counts = outcomes(result)
    slowest = max(part["slowest_seconds"] for part in result["parts"].values())
    is_kept = not any(counts[bad] for bad in BAD)
    left = result["of_parts"] - len(result["parts"])
    tried = f"{counts.total():,} {result['unit']}"
    return [
        ("" if is_kept else "**NOT kept.** ") + result["promise"],
        result["how"],
        tried + (f" ({left} of {result['of_parts']} parts not run yet)" if left else ""),
        ", ".join(f"{word} {count:,}" for word, count in sorted(counts.items())),
        f"{slowest:.2g} s" if slowest >= 0.001 else "under 1 ms",
        f"`{result['test']}` (`{name}`)",
    ]


def _gaps(results: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, result in results.items():
        if any(outcomes(result)[bad] for bad in BAD):
            lines.append(f"- `{name}`: {result['gap'] or 'to be corrected'}.")
            examples = [e for part in result["parts"].values() for e in part["examples"]]
            lines += [f"  - {_plain(example)[:120]}" for example in examples[:3]]
    return "\n".join(["## Not kept", "", *(lines or ["Nothing."]), ""])


def _machines(parts: Iterable[dict[str, Any]]) -> str:
    where = Counter((part["processor"], part["torch"]) for part in parts)
    states = {part["state"] for part in parts}
    lines = [f"- {count} parts: {cpu}, torch {torch}" for (cpu, torch), count in where.items()]
    return "\n".join(["## Where it ran", "", *lines, f"- states of the code: {len(states)}", ""])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines), ""]


def _plain(text: str) -> str:
    """Text that cannot end a cell or a line."""
    return " ".join(text.replace("|", "/").split())


if __name__ == "__main__":
    atomic_write_text(PAGE, document(read_results()))
