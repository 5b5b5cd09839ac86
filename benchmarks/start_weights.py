"""Does a start from weights help? Five classes of CIFAR-10 first, then the other five.

``python -m benchmarks.start_weights CIFAR RUNS`` pretrains without labels on five classes, then on
the other five from those weights, and on the other five from nothing, with three seeds.
kNN on the other five judges, beside raw pixels, the untrained encoder, and the first encoder as it
is. CIFAR is a folder with ``train`` and ``test``, each with JPEGs in class folders. RUNS keeps the
runs: a repeated command skips what is done and resumes what is not. A unit is a run of 10 epochs on
10,000 images (5 minutes on one core) and its kNN; after each, all figures so far are written to
``benchmarks/results/start_weights.json``. What it leaves out: the run from weights has seen twice
the images in all; the curves show both after equal epochs on the second half.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import summarize
from benchmarks.report import Report, Row
from fastmoco.configuration import load_config
from fastmoco.data.convert import convert
from fastmoco.data.settings import ConvertConfig
from fastmoco.evaluate.knn import knn
from fastmoco.evaluate.settings import KnnConfig
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.train.loop import train
from fastmoco.train.settings import TrainConfig

RESULTS = Path(__file__).parent / "results"
SEEDS, EPOCHS, IMAGES_PER_CLASS = (0, 1, 2), 10, 2000
FIRST, WEIGHTS, NOTHING = "first half alone", "from weights of the first half", "from nothing"
UNIT = "kNN top-1 % on the second half"


@dataclass(frozen=True, slots=True)
class Setup:
    """Where images and runs are, and how much is trained."""

    cifar: Path
    runs: Path
    seeds: tuple[int, ...] = SEEDS
    epochs: int = EPOCHS
    images_per_class: int = IMAGES_PER_CLASS
    overrides: tuple[str, ...] = ("experiment=cifar10_cpu", "model.width=16", "moco.queue_size=256")

    def run(self, arm: str, seed: int) -> Path:
        """The run folder of a unit."""
        return self.runs / f"{arm.replace(' ', '-')}-{seed}"

    def data(self, half: int, split: str) -> Path:
        """The dataset file of half 0 or 1."""
        return self.runs / f"half-{half}-{split}.beton"


def make_halves(setup: Setup) -> None:
    """Write the dataset files that are missing: the first images of each of five classes."""
    for half in (0, 1):
        for split in ("train", "test"):
            target = setup.data(half, split)
            if target.exists():
                continue
            classes = sorted(path for path in (setup.cifar / split).iterdir() if path.is_dir())
            folder = setup.runs / f"images-{half}-{split}"
            for source in classes[5 * half : 5 * half + 5]:
                (folder / source.name).mkdir(parents=True, exist_ok=True)
                images = sorted(source.iterdir())
                for image in images[: setup.images_per_class if split == "train" else None]:
                    link = folder / source.name / image.name
                    if not link.exists():
                        link.symlink_to(image.resolve())
            convert(str(folder), target, load_config(ConvertConfig, ["encoding=raw"]))


def do_unit(setup: Setup, arm: str, seed: int) -> None:
    """Train a run and measure it, unless that is done."""
    run, half = setup.run(arm, seed), 0 if arm == FIRST else 1
    overrides = [*setup.overrides, f"seed={seed}", f"train.epochs={setup.epochs}"]
    cfg = load_config(TrainConfig, overrides)
    cfg.run_dir, cfg.data.train, cfg.data.test = (
        run,
        setup.data(half, "train"),
        setup.data(1, "test"),
    )
    if arm == FIRST:
        cfg.monitor.every_epochs = 0  # its classes are others
    if arm == WEIGHTS:
        cfg.weights = setup.run(FIRST, seed)
    train(cfg)
    if not _result(run).exists():
        measured = KnnConfig(baselines=True)
        measured.data.train, measured.data.test = setup.data(1, "train"), setup.data(1, "test")
        knn(run, measured)


def rows(setup: Setup) -> Iterator[Row]:
    """A row for each arm and baseline over the seeds that are done, and the curves."""
    for arm in (FIRST, WEIGHTS, NOTHING):
        done = {
            seed: json.loads(_result(setup.run(arm, seed)).read_text(encoding="utf-8"))
            for seed in setup.seeds
            if _result(setup.run(arm, seed)).exists()
        }
        if not done:
            continue
        yield _row(arm, [found["top1"] for found in done.values()], done)
        if arm == NOTHING:
            for name in ("untrained", "pixels"):
                yield _row(name, [f["baselines"][name]["top1"] for f in done.values()], done)
        for seed in done:
            for row in read_metrics(setup.run(arm, seed) / "metrics.jsonl"):
                if row.get("knn_top1") is not None:
                    yield Row(
                        what=f"{arm}, seed {seed}, epoch {row['epoch']:g}",
                        unit=UNIT,
                        value=summarize([row["knn_top1"]]),
                        curve=f"epochs on the second half, {UNIT}",
                        size=row["epoch"],
                    )


def _row(what: str, values: list[float], done: dict[int, Any]) -> Row:
    each = ", ".join(f"{value:.2f}" for value in values)
    return Row(what=what, unit=UNIT, value=summarize(values), note=f"seeds {[*done]}: {each}")


def _result(run: Path) -> Path:
    return run / "evaluation" / "knn.json"


def measure(setup: Setup, results: Path) -> None:
    """Do all units, and write the figures after each."""
    make_halves(setup)
    subject = (
        f"{' '.join(setup.overrides)}, {setup.epochs} epochs on {setup.images_per_class} images of "
        "each of five classes of CIFAR-10; kNN k = 200, T = 0.1; python -m benchmarks.start_weights"
    )
    for seed in setup.seeds:
        for arm in (FIRST, NOTHING, WEIGHTS):
            do_unit(setup, arm, seed)
            report = Report("start_weights", "full", subject, device="cpu")
            report.rows = list(rows(setup))
            report.write(results)


def main() -> None:
    """Read the command line and do all units."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar", type=Path)
    parser.add_argument("runs", type=Path)
    given = parser.parse_args()
    measure(Setup(given.cifar, given.runs), RESULTS)


if __name__ == "__main__":
    main()
