"""One run that is long enough to learn: 50,000 images of CIFAR-10 on one core of a CPU.

``python -m benchmarks.long_run CIFAR RUNS`` trains ``experiment=cifar10_cpu`` for 30 epochs, whose
number was fixed by a dry run before it started, and the same encoder for 10 epochs with all labels.
kNN of backbone features by the same code (k = 200, T = 0.1) judges both, the encoder untrained and
raw pixels. The test images are the last look; nothing is tuned on them, and there is one seed.
About two hours and a half on one core. A repeated command goes on where it was stopped; the figures
are written to ``benchmarks/results/long_run.json``.
What it leaves out: speed, and other recipes.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness import summarize
from benchmarks.report import Report, Row
from benchmarks.two_codes import RESULTS, TEMPERATURE, UNIT, K, make_set
from fastmoco.configuration import load_config
from fastmoco.data.dataset import open_dataset
from fastmoco.evaluate.features import FeatureRequest, extract_features
from fastmoco.evaluate.finetune.classifier import finetune
from fastmoco.evaluate.frozen_encoder import load_encoder
from fastmoco.evaluate.knn import knn, knn_accuracy
from fastmoco.evaluate.settings import FinetuneConfig, KnnConfig
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.train.loop import train
from fastmoco.train.settings import TrainConfig


@dataclass(frozen=True, slots=True)
class Setup:
    """Where images and runs are, and how much is trained."""

    cifar: Path
    """``train`` and ``test``, each with images in class folders."""
    runs: Path
    epochs: int = 30
    monitored: int = 10
    """Epochs between two measurements on the way."""
    supervised_epochs: int = 10
    options: tuple[str, ...] = ("experiment=cifar10_cpu",)

    def data(self, split: str) -> Path:
        """The dataset file of a split."""
        return self.runs / f"{split}.beton"

    def config(self) -> TrainConfig:
        """Settings of the run."""
        fixed = [f"train.epochs={self.epochs}", f"monitor.every_epochs={self.monitored}", "seed=0"]
        cfg = load_config(TrainConfig, [*self.options, *fixed, "name=long"])
        cfg.run_dir = self.runs / "runs/long"
        cfg.data.train, cfg.data.test = self.data("train"), self.data("test")
        return cfg


def rows(setup: Setup) -> Iterator[Row]:
    """Train both encoders if they are not; yield what kNN says of each."""
    run = train(setup.config())
    labels = FinetuneConfig(weights=Path("random"))
    labels.train.epochs = setup.supervised_epochs
    measured = KnnConfig(k=K, temperature=TEMPERATURE)
    for cfg in (labels, measured):
        cfg.data.train, cfg.data.test = setup.data("train"), setup.data("test")
    found = knn(run, measured)
    for row in read_metrics(run / "metrics.jsonl"):
        if row["knn_top1"] is not None:
            epoch, loss = row["epoch"], row["loss"]
            note = f"loss {loss:.3f}; by the monitor, on all test images"
            value = summarize([row["knn_top1"]])
            yield Row(what=f"epoch {epoch:g}", unit=UNIT, value=value, note=note)
    yield Row(what="pretrained", unit=UNIT, value=summarize([found.top1]))
    for name, baseline in found.baselines.items():
        yield Row(what=name, unit=UNIT, value=summarize([baseline["top1"]]))
    result = finetune(run, labels)
    weights = run / "evaluation/finetune-random/weights.safetensors"
    top1 = knn_of(run, weights, setup)
    note = f"its classifier {result.top1:.2f}; {result.about}"
    yield Row(what="supervised", unit=UNIT, value=summarize([top1]), note=note)


def knn_of(run: Path, weights: Path, setup: Setup) -> float:
    """The kNN top-1 in percent of a run's encoder with other weights."""
    encoder = load_encoder(run, weights=weights)
    request = FeatureRequest(features="backbone", batch_size=256)
    sets = []
    for split in ("train", "test"):
        with open_dataset(setup.data(split)) as dataset:
            sets.append(extract_features(encoder, dataset, request))
    return knn_accuracy(*sets, k=min(K, len(sets[0].labels)), temperature=TEMPERATURE)[0]


def measure(setup: Setup, results: Path) -> None:
    """Do both trainings, and write the figures."""
    for split in ("train", "test"):
        make_set(setup.cifar / split, 5000, setup.runs / split, setup.data(split))
    torch.set_num_threads(1)
    subject = (
        f"cifar10_cpu on 50,000 images of CIFAR-10, {setup.epochs} epochs, one thread, seed 0; kNN "
        f"of the backbone, k = {K}, T = {TEMPERATURE:g}; python -m benchmarks.long_run"
    )
    report = Report("long_run", "full", subject, device="cpu")
    report.rows = list(rows(setup))
    report.write(results)


def main() -> None:
    """Read the command line, train and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar", type=Path)
    parser.add_argument("runs", type=Path)
    given = parser.parse_args()
    measure(Setup(given.cifar, given.runs), RESULTS)


if __name__ == "__main__":
    main()
