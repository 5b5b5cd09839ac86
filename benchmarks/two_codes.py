"""Two codes, one recipe: does fastmoco learn what MoCo's own CIFAR-10 notebook learns?

``python -m benchmarks.two_codes CIFAR RUNS`` trains the notebook's reimplementation
(`peers.notebook_peer`) and ``experiment=cifar10_colab`` on the same images with five seeds each.
kNN by the same code judges (embedding, k = 200, T = 0.1, after the last epoch), and two one-sided
Welch tests at `MARGIN` points ask whether the means are equal; "not shown" is a result. The small
size fits a CPU: an encoder of width 16 and stride 2, batch 256, 20,000 images, 20 epochs; the test
images are the last look, nothing is tuned on them.
A unit is a run and its kNN, about 20 minutes on one core. A repeated command skips what is done;
after each unit all figures so far are written to ``benchmarks/results/two_codes.json``.
What it leaves out: speed. See ``benchmarks/bench_step.py`` and ``bench_feed.py``.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from benchmarks.harness import summarize
from benchmarks.peers import notebook_peer
from benchmarks.report import Report, Row
from fastmoco.configuration import load_config
from fastmoco.data.convert import convert
from fastmoco.data.settings import ConvertConfig
from fastmoco.evaluate.features import FeatureSet
from fastmoco.evaluate.knn import knn, knn_accuracy
from fastmoco.evaluate.settings import KnnConfig
from fastmoco.files import atomic_write_text
from fastmoco.moco.build import build_query_encoder
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.train.loop import train
from fastmoco.train.settings import TrainConfig

RESULTS = Path(__file__).parent / "results"
OURS, THEIRS = "fastmoco", "the notebook"
MARGIN, LEVEL = 1.5, 0.05
"""Points of kNN within which two means count as equal, and the level of each one-sided test."""
UNIT = "kNN top-1 %"
K, TEMPERATURE = 200, 0.1


@dataclass(frozen=True, slots=True)
class Setup:
    """Where images and runs are, and how much is trained."""

    cifar: Path
    """``train`` and ``test``, each with images in class folders."""
    runs: Path
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    epochs: int = 20
    classes: int = 10
    images_per_class: int = 2000
    test_per_class: int = 1000
    batch: int = 256
    queue_size: int = 4096
    groups: int = 4
    """Of 64 images, as the notebook's 8 of a batch of 512."""

    @property
    def num_images(self) -> int:
        """Training images."""
        return self.classes * self.images_per_class

    @property
    def learning_rate(self) -> float:
        """The notebook's 0.06 at a batch of 512, linearly less."""
        return 0.06 * self.batch / 512

    def folder(self, split: str) -> Path:
        """The class folders of a split."""
        return self.runs / f"images-{split}"

    def result(self, code: str, seed: int) -> Path:
        """The result of a unit."""
        return self.runs / f"{code.replace(' ', '-')}-{seed}.json"

    def config(self, seed: int) -> TrainConfig:
        """Settings of fastmoco's run."""
        overrides = [
            "experiment=cifar10_colab",
            "model.stem=small_stride2",
            "model.width=16",
            f"global_batch_size={self.batch}",
            f"moco.queue_size={self.queue_size}",
            f"moco.batch_norm_splits={self.groups}",
            f"optimizer.learning_rate={self.learning_rate}",
            f"train.epochs={self.epochs}",
            f"train.log_every_steps={self.num_images // self.batch}",  # an epoch
            "monitor.every_epochs=0",
            "train.compile=never",
            f"seed={seed}",
        ]
        cfg = load_config(TrainConfig, overrides)
        cfg.run_dir = self.runs / f"fastmoco-run-{seed}"
        cfg.data.train = self.runs / "train.beton"
        return cfg


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a unit learned."""

    top1: float
    """kNN, percent."""
    losses: list[float]
    """Mean of each epoch, nats."""


def make_images(setup: Setup) -> None:
    """Link the first images of each class, and write fastmoco's dataset files of them."""
    for split, count in (("train", setup.images_per_class), ("test", setup.test_per_class)):
        make_set(setup.cifar / split, count, setup.folder(split), setup.runs / f"{split}.beton")


def make_set(source: Path, images_per_class: int, links: Path, target: Path) -> None:
    """Link the first images of each class folder, and write a dataset file unless it exists."""
    if target.exists():
        return
    for class_folder in sorted(path for path in source.iterdir() if path.is_dir()):
        folder = links / class_folder.name
        folder.mkdir(parents=True, exist_ok=True)
        for image in sorted(class_folder.iterdir())[:images_per_class]:
            link = folder / image.name
            if not link.exists():
                link.symlink_to(image.resolve())
    convert(str(links), target, load_config(ConvertConfig, ["encoding=raw"]))


def run_ours(setup: Setup, seed: int) -> Outcome:
    """Train by fastmoco; its interrupted run is resumed."""
    run = train(setup.config(seed))
    measured = KnnConfig(k=K, temperature=TEMPERATURE)
    measured.features = type(measured.features).embedding
    measured.data.train, measured.data.test = setup.runs / "train.beton", setup.runs / "test.beton"
    losses = [row["loss"] for row in read_metrics(run / "metrics.jsonl")]
    assert len(losses) == setup.epochs
    return Outcome(knn(run, measured).top1, losses)


def run_theirs(setup: Setup, seed: int) -> Outcome:
    """Train by the notebook's loop an encoder of the same design."""
    cfg = setup.config(seed)
    torch.manual_seed(seed)
    encoder = build_query_encoder(cfg.model, cfg.moco, view_size=32)
    notebook_peer.use_split_batch_norm(encoder, setup.groups)
    recipe = notebook_peer.Recipe(
        batch=setup.batch,
        learning_rate=setup.learning_rate,
        epochs=setup.epochs,
        queue_size=setup.queue_size,
        groups=setup.groups,
    )
    (images, labels), (others, answers) = (
        notebook_peer.read_folder(setup.folder(split)) for split in ("train", "test")
    )
    losses = list(notebook_peer.train(encoder, images, recipe, seed))
    memory, test = (
        FeatureSet(notebook_peer.features(encoder, part), torch.tensor(known))
        for part, known in ((images, labels), (others, answers))
    )
    return Outcome(knn_accuracy(memory, test, k=K, temperature=TEMPERATURE)[0], losses)


CODES = {OURS: run_ours, THEIRS: run_theirs}


def equivalence(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Two one-sided Welch tests at `MARGIN`, in words, with the 90% interval of the difference."""
    if min(len(ours), len(theirs)) < 2:
        return "not shown: fewer than two seeds a side"
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(1 - 2 * LEVEL)
    low, high = float(interval.low), float(interval.high)
    shown = "shown" if -MARGIN < low and high < MARGIN else "not shown"
    difference = np.mean(ours) - np.mean(theirs)
    return (
        f"equality within {MARGIN:g} points is {shown}: fastmoco less the notebook "
        f"{difference:+.2f}, 90% interval {low:+.2f} to {high:+.2f} "
        f"({len(ours)} and {len(theirs)} seeds, two one-sided Welch tests at {LEVEL:g})"
    )


def rows(setup: Setup) -> Iterator[Row]:
    """A row for each code over the seeds that are done, the equivalence, and the losses."""
    done: dict[str, dict[int, Outcome]] = {}
    for code in CODES:
        paths = {seed: setup.result(code, seed) for seed in setup.seeds}
        done[code] = {
            seed: Outcome(**json.loads(path.read_text(encoding="utf-8")))
            for seed, path in paths.items()
            if path.exists()
        }
    top1 = {code: [outcome.top1 for outcome in found.values()] for code, found in done.items()}
    for code, values in top1.items():
        if values:
            each = ", ".join(f"{value:.2f}" for value in values)
            note = f"seeds {[*done[code]]}: {each}"
            if code == OURS:
                note += f"; {equivalence(values, top1[THEIRS])}"
            yield Row(what=code, unit=UNIT, value=summarize(values), note=note)
    for code, found in done.items():
        for epoch in range(setup.epochs if found else 0):
            losses = [outcome.losses[epoch] for outcome in found.values()]
            yield Row(
                what=f"{code}, epoch {1 + epoch}",
                unit="loss, nats",
                value=summarize(losses),
                curve="epochs, mean loss of each in nats",
                size=1 + epoch,
            )


def measure(setup: Setup, results: Path) -> None:
    """Do all units, and write the figures after each."""
    make_images(setup)
    torch.set_num_threads(1)
    subject = (
        f"cifar10_colab at width 16 and stride 2, batch {setup.batch}, K {setup.queue_size}, "
        f"{setup.epochs} epochs on {setup.num_images:,} images of CIFAR-10; kNN of the "
        f"embedding, k = {K}, T = {TEMPERATURE:g}; python -m benchmarks.two_codes"
    )
    for seed in setup.seeds:
        for code, run in CODES.items():
            path = setup.result(code, seed)
            if not path.exists():
                atomic_write_text(path, json.dumps(asdict(run(setup, seed))) + "\n")
            report = Report("two_codes", "full", subject, device="cpu")
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
