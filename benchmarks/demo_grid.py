"""Does the demo learn every time? Seeds, threads and vector instructions, each a whole demo.

``python -m benchmarks.demo_grid RUNS`` runs ``fastmoco demo`` with five seeds, on one thread and on
two, with ATen's AVX2 code and its plain code (``ATEN_CPU_CAPABILITY``): sums round differently in
each. Five further seeds, which no setting was chosen by, are run once each. A unit is one demo,
minutes on one core; a repeated command skips what is done, and after each unit all figures so far
are written to ``benchmarks/results/demo_grid.json``. The test images are the demo's own. What it
leaves out: speed, see ``bench_step.py``; several units may run beside other load.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness import summarize
from benchmarks.report import Report, Row

RESULTS = Path(__file__).parent / "results"
SEEDS, FURTHER_SEEDS = range(5), range(5, 10)
CAPABILITIES = ("avx2", "default")
"""Values of ATEN_CPU_CAPABILITY: AVX2 kernels, and those without vector instructions."""
UNIT = "kNN top-1 %"


@dataclass(frozen=True, slots=True)
class Unit:
    """One demo."""

    seed: int
    threads: int
    capability: str
    further: bool = False
    """Whether the seed was never used for a choice."""

    @property
    def group(self) -> str:
        """Demos that only their seeds tell apart."""
        words = f"{self.threads} thread{'s' * (self.threads > 1)}, {self.capability}"
        return f"{words}, further seeds" if self.further else words

    def run(self, runs: Path) -> Path:
        """The run folder."""
        return runs / f"{self.capability}-{self.threads}-{self.seed}"


def units() -> Iterator[Unit]:
    """All demos, the further seeds last."""
    for seed in SEEDS:
        for threads in (1, 2):
            for capability in CAPABILITIES:
                yield Unit(seed, threads, capability)
    for seed in FURTHER_SEEDS:
        yield Unit(seed, 2, "avx2", further=True)


def demo(unit: Unit, runs: Path, options: Sequence[str]) -> None:
    """Run one demo in a process of its own, unless that is done; one that was stopped resumes."""
    if (unit.run(runs) / "result.json").exists():
        return
    environment = {
        "OMP_NUM_THREADS": str(unit.threads),
        "ATEN_CPU_CAPABILITY": unit.capability,
    }
    command = [sys.executable, "-m", "fastmoco", "demo", f"seed={unit.seed}"]
    command += [f"run_dir={unit.run(runs)}", "train.report=false", *options]
    subprocess.run(command, check=True, env={**os.environ, **environment})


def results(runs: Path) -> dict[Unit, dict[str, float]]:
    """What the demos that are done measured."""
    files = {unit: unit.run(runs) / "result.json" for unit in units()}
    return {
        unit: json.loads(path.read_text(encoding="utf-8"))
        for unit, path in files.items()
        if path.exists()
    }


def rows(done: dict[Unit, dict[str, float]]) -> Iterator[Row]:
    """A row for each group of seeds, for the whole grid, for the further seeds, and baselines."""
    for group in dict.fromkeys(unit.group for unit in done):
        yield _row(group, {u: r for u, r in done.items() if u.group == group})
    yield _row("all of the grid", {u: r for u, r in done.items() if not u.further})
    for name in ("untrained", "pixels"):
        yield _row(name, done, f"knn_top1_{name}")


def _row(what: str, done: dict[Unit, dict[str, float]], figure: str = "knn_top1") -> Row:
    values = [result[figure] for result in done.values()]
    deviation = f"{np.std(values, ddof=1):.1f}" if len(values) > 1 else "unknown"
    each = ", ".join(f"{value:.1f}" for value in values)
    note = f"mean {np.mean(values):.1f}, standard deviation {deviation}: {each}"
    return Row(what=what, unit=UNIT, value=summarize(values), note=note)


def measure(runs: Path, folder: Path, options: Sequence[str] = ()) -> None:
    """Run all demos, and write the figures after each."""
    for unit in units():
        demo(unit, runs, options)
        report = Report("demo_grid", "full", device="cpu", rows=list(rows(results(runs))))
        report.subject = "fastmoco demo, k = 20; python -m benchmarks.demo_grid"
        report.write(folder)


def main() -> None:
    """Read the command line and run all demos."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    measure(parser.parse_args().runs, RESULTS)


if __name__ == "__main__":
    main()
