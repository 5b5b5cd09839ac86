"""Does batch norm tell a query which key is its own, and does shuffling the keys prevent that?

The mechanism of arXiv:1911.05722, section 3.3, measured directly: ``python -m benchmarks.shuffling
CIFAR RUNS`` trains small encoders whose batch norm has groups of few images. In one run of a seed
the query and the key of an image are in the same group, as on devices without shuffling
("aligned"); in the other the keys are shuffled. Each encoder is then asked at equal weights, about
the same views: is a query's key nearer than all negatives while key groups are aligned, while they
are shuffled, and without groups (running statistics)? Only the partners in a group differ, so the
gap between the first two is what they tell. Does a query find the key of *another* image of its
aligned group? Only a mark that all images of a group share can lead it there.
A unit is a run and its answers, a minute on one core. A repeated command skips what is done; after
each unit all figures so far are written to ``benchmarks/results/shuffling.json``.
What it leaves out: speed, several devices, and what a leak does to features in long training.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from itertools import islice, product
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import summarize
from benchmarks.report import Report, Row
from benchmarks.two_codes import make_set
from fastmoco.configuration import load_config
from fastmoco.data.dataset import open_dataset
from fastmoco.files import atomic_write_text
from fastmoco.moco.mechanism import Views
from fastmoco.moco.model import MoCo
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.settings import TrainConfig
from fastmoco.train.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
UNTRAINED, ALIGNED, SHUFFLED = "untrained", "trained aligned", "trained shuffled"
TRAININGS = (UNTRAINED, ALIGNED, SHUFFLED)
UNIT = "found, % of queries"


@dataclass(frozen=True, slots=True)
class Setup:
    """Where images and results are, and how much is trained."""

    cifar: Path
    """``train``, with images in class folders."""
    runs: Path
    seeds: tuple[int, ...] = (1, 2, 3)
    """The settings were chosen with seed 0."""
    groups_of: tuple[int, ...] = (4, 2)
    """Images of a batch norm group."""
    epochs: int = 12
    classes: int = 10
    images_per_class: int = 200
    batch: int = 64

    def result(self, images: int, training: str, seed: int) -> Path:
        """The result of a unit."""
        return self.runs / f"groups-of-{images}-{training.replace(' ', '-')}-{seed}.json"

    def config(self, images: int, seed: int) -> TrainConfig:
        """Settings of a run; one more epoch is not learned from but asked about.

        Views are only flipped and cropped a little, so that a minute is enough to learn something.
        """
        overrides = [
            "experiment=demo",
            "model.width=8",
            "policy.crop_scale=[0.6,1.0]",
            "policy.jitter_probability=0",
            "policy.grayscale_probability=0",
            "pipeline.num_threads=1",
            "moco.queue_size=256",
            "moco.temperature=0.1",
            "optimizer.learning_rate=0.06",
            f"global_batch_size={self.batch}",
            f"moco.batch_norm_splits={self.batch // images}",
            f"train.epochs={self.epochs + 1}",
            f"seed={seed}",
        ]
        cfg = load_config(TrainConfig, overrides)
        cfg.data.train = self.runs / "train.beton"
        return cfg


@dataclass(frozen=True, slots=True)
class Answers:
    """Queries whose key is nearer than all negatives, percent."""

    aligned: float
    """Their own key, in the same group as the query."""
    shuffled: float
    """Their own key, in another group."""
    running: float
    """Their own key, all normalized by running statistics, as in evaluation."""
    neighbor: float
    """The key of the next image of their group, aligned."""


def run(setup: Setup, images: int, training: str, seed: int) -> Answers:
    """Train with aligned or shuffled keys, or not at all, and ask."""
    cfg = setup.config(images, seed)
    assert cfg.data.train is not None
    with open_dataset(cfg.data.train) as dataset:
        trainer = Trainer(cfg, RunFolder(setup.runs / "none"), dataset, torch.device("cpu"))
        model = trainer.step.model
        assert isinstance(model, MoCo)
        assert model.shuffle_keys  # as the settings ask for; now one of both
        model.shuffle_keys = training == SHUFFLED
        steps = 0 if training == UNTRAINED else setup.epochs * trainer.steps_per_epoch
        with closing(trainer.open_loader()) as loader:
            for batch in islice(loader, steps):
                trainer.take(batch, trainer.learning_rate)
        with closing(trainer.open_loader(trainer.plan(epoch=setup.epochs))) as loader:
            make = trainer.step.make_views
            views = [make(batch.crops, batch.sample_id, batch.draw_key) for batch in loader]
    return ask(model, views, images)


@torch.no_grad()
def ask(model: MoCo, batches: Sequence[Views], images: int) -> Answers:
    """Ask about the first half of the batches; the keys of the second half are the negatives.

    Args:
        model: Its running statistics, mode and `shuffle_keys` change in place.
        batches: Views of different images.
        images: In each group of batch norm.
    """
    half = len(batches) // 2
    found = {}
    model.eval()  # first: the other questions move running statistics
    query, key = embedded(model, batches, shuffle=False)
    asked = half * len(query) // len(batches)
    found["running"] = percent_found(query[:asked], key[:asked], key[asked:])
    model.train()
    query, key = embedded(model, batches, shuffle=False)
    (query, key), negatives = (query[:asked], key[:asked]), key[asked:]
    found["aligned"] = percent_found(query, key, negatives)
    other = key.view(-1, images, key.shape[1]).roll(1, dims=1).view_as(key)
    found["neighbor"] = percent_found(query, other, negatives)
    query, key = embedded(model, batches[:half], shuffle=True)
    found["shuffled"] = percent_found(query, key, negatives)
    return Answers(**found)


def embedded(model: MoCo, batches: Sequence[Views], *, shuffle: bool) -> tuple[Tensor, Tensor]:
    """Queries and keys ``(N, C)``, both in the order of the images; see `ask`."""
    model.shuffle_keys = shuffle
    pairs = [
        (
            model.embed_queries(views.query),
            model.unshuffled(model.embed_keys(model.shuffled(views)), views),
        )
        for views in batches
    ]
    query, key = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return query, key


def percent_found(query: Tensor, key: Tensor, negatives: Tensor) -> float:
    """Percent of queries ``(N, C)`` whose key is nearer than all negatives ``(K, C)``."""
    positive = (query * key).sum(dim=1, keepdim=True)  # (N, 1)
    found = (positive > query @ negatives.T).all(dim=1)
    return 100 * found.double().mean().item()


def rows(setup: Setup) -> Iterator[Row]:
    """A row for each question to the encoders of each kind, over the seeds that are done."""
    for images, training in product(setup.groups_of, TRAININGS):
        paths = [setup.result(images, training, seed) for seed in setup.seeds]
        done = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
        for question in fields(Answers) if done else ():
            values = [answers[question.name] for answers in done]
            yield Row(
                what=f"groups of {images}, {training}, asked {question.name}",
                unit=UNIT,
                value=summarize(values),
                note="each seed: " + ", ".join(f"{value:.1f}" for value in values),
            )


def measure(setup: Setup, results: Path) -> None:
    """Do all units, and write the figures after each."""
    source, links = setup.cifar / "train", setup.runs / "images"
    make_set(source, setup.images_per_class, links, setup.runs / "train.beton")
    torch.set_num_threads(1)
    subject = (
        f"Pretext task, ResNet-18 of width 8, {setup.epochs} epochs, batch {setup.batch}, on "
        f"{setup.classes * setup.images_per_class:,} images of CIFAR-10; "
        "python -m benchmarks.shuffling"
    )
    for images, seed, training in product(setup.groups_of, setup.seeds, TRAININGS):
        path = setup.result(images, training, seed)
        if not path.exists():
            answers = run(setup, images, training, seed)
            atomic_write_text(path, json.dumps(asdict(answers)) + "\n")
            report = Report("shuffling", "full", subject, device="cpu")
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
