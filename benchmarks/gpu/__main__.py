"""Prove and measure on a GPU: ``python -m benchmarks.gpu``, or ``make gpu``.

Nothing is installed and nothing is downloaded. Without a GPU, ``toy`` runs all parts on the CPU.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gpu.job import FULL, SMALL, TOY
from benchmarks.gpu.runner import FAILED, Part, Request, run, table

BUDGET_SECONDS = 520.0
"""With the start of this process within nine minutes."""
SLOW_FACTOR = 4.0
"""How many times as long everything may take with `FULL`, and with `TOY` on a CPU."""
CHECKS, SPEED = "benchmarks.gpu.checks", "benchmarks.gpu.speed"
RUNS, FEED = "benchmarks.gpu.runs", "benchmarks.gpu.feed"
PARTS = (
    Part("facts and rates", f"{CHECKS}:facts", "checks", 45, 10),
    Part("strict check of the loss", f"{CHECKS}:strict_loss", "checks", 60, 10, is_timed=False),
    Part("replay equal to launch", f"{CHECKS}:replay", "checks", 110, 20, is_timed=False),
    Part("kill -9 and resume", f"{RUNS}:kill_and_resume", "checks", 130, 30, is_timed=False),
    Part("gpu tests", f"{CHECKS}:gpu_tests", "checks", 130, 30, is_timed=False),
    Part("loaders feed a step", f"{FEED}:feed_photographs", "feed_photographs", 150, 40),
    Part("step of ResNet-50 at 224", f"{SPEED}:resnet50", "step_resnet50", 120, 40),
    Part("step of ResNet-18 at 32", f"{SPEED}:resnet18", "step_resnet18", 90, 30),
    Part("augmentation", f"{SPEED}:augmentation", "augment", 100, 20),
    Part("forms of the loss", f"{SPEED}:loss_forms", "loss_time", 60, 20),
    Part("precisions", f"{SPEED}:precisions", "modes", 90, 40),
    Part("eager, compiled, graph", f"{SPEED}:modes", "modes", 90, 40),
    Part("cifar10_colab, a few epochs", f"{RUNS}:few_epochs", "modes", 120, 40),
    Part("the notebook, as many epochs", f"{RUNS}:notebook", "modes", 120, 60),
)
"""In the order of their importance: the last ones are left out where time is short."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("scale", nargs="?", default=SMALL, choices=(TOY, SMALL, FULL))
    parser.add_argument("--data", default="", help="a .beton file or a folder of class folders")
    parser.add_argument("--out", type=Path, help="results (benchmarks/results/DEVICE)")
    parser.add_argument("--budget", type=float, help=f"seconds ({BUDGET_SECONDS:.0f})")
    parser.add_argument("--only", default="", help="parts whose name contains this")
    given = parser.parse_args(arguments)
    factor = 1.0 if given.scale == SMALL else SLOW_FACTOR
    parts = [replace(one, limit=one.limit * factor) for one in PARTS if given.only in one.name]
    if not parts:
        parser.error(f"--only={given.only} is no part; parts: {', '.join(p.name for p in PARTS)}")
    if given.scale != TOY and not torch.cuda.is_available():
        parser.error(
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU; install a driver "
            "that is new enough, or name another PYTHON; `toy` runs all parts on the CPU"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the child ends, too
    budget = given.budget or factor * BUDGET_SECONDS
    data = str(Path(given.data).resolve()) if given.data else None
    outcomes, out = run(parts, Request(given.scale, data, given.out, budget))
    sys.stdout.write(f"\n{table(outcomes)}\n\nresults: {out}\n")
    return int(any(one.status == FAILED for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
