"""Does batch norm tell a query which key is its own, and does shuffling the keys prevent that?

The mechanism of arXiv:1911.05722, section 3.3, measured directly: ``python -m benchmarks.shuffling
CIFAR RUNS`` trains small encoders whose batch norm has groups of few images. In one run of a seed
query and key of an image are in the same group, as on devices without shuffling ("aligned"); in
the other the keys are shuffled. Each encoder is then asked at equal weights, about the same views:
is a query's key nearer than all negatives while groups are aligned, while keys are shuffled, and
without groups (running statistics)? Aligned less shuffled is what equal partners are worth; other
partners disturb every encoder. Aligned less running is what partners tell beyond the image. Does a
query find the key of *another* image of its group? Only a mark of the group can lead it there.
A unit is a run and its answers, a minute on one core. A repeated command skips what is done; after
each unit all figures so far are written to ``benchmarks/results/shuffling.json``.
What it leaves out: speed, several devices, and what a leak does to features in long training.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
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
TRAININGS = UNTRAINED, ALIGNED, SHUFFLED = "untrained", "trained aligned", "trained shuffled"
UNIT = "found, % of queries"


@dataclass(frozen=True, slots=True)
class Setup:
    """How much is trained; `cifar` has ``train``, with images in class folders."""

    cifar: Path
    runs: Path
    seeds: tuple[int, ...] = (1, 2, 3)
    """The settings were chosen with seed 0."""
    groups_of: tuple[int, ...] = (4, 2)
    """Images of a batch norm group."""
    epochs: int = 12
    images_per_class: int = 200
    batch: int = 64

    def result(self, images: int, training: str, seed: int) -> Path:
        """The result of a unit."""
        return self.runs / f"groups-of-{images}-{training.replace(' ', '-')}-{seed}.json"

    def config(self, images: int, seed: int) -> TrainConfig:
        """Settings of a run; its last epoch is not learned from but asked about."""
        overrides = [
            "experiment=demo",
            "model.width=8",
            "policy.crop_scale=[0.6,1.0]",  # the demo's own taught nothing in 775 steps
            *("policy.jitter_probability=0", "policy.grayscale_probability=0"),
            "moco.queue_size=256",
            "moco.temperature=0.1",
            "optimizer.learning_rate=0.06",
            f"global_batch_size={self.batch}",
            f"moco.batch_norm_splits={self.batch // images}",
            f"train.epochs={self.epochs + 1}",
            f"seed={seed}",
        ]
        return load_config(TrainConfig, overrides)


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

    def figures(self) -> dict[str, float]:
        """All answers, and the differences that the verdict is about, in points."""
        others = {"shuffled": self.shuffled, "running": self.running}
        gaps = {f"aligned less {name}": self.aligned - value for name, value in others.items()}
        return asdict(self) | gaps


def run(setup: Setup, images: int, training: str, seed: int) -> Answers:
    """Train with aligned or shuffled keys, or not at all, and ask."""
    cfg = setup.config(images, seed)
    with open_dataset(setup.runs / "train.beton") as dataset:
        trainer = Trainer(cfg, RunFolder(setup.runs / "none"), dataset, torch.device("cpu"))
        model = trainer.step.model
        assert isinstance(model, MoCo)
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

    Groups have `images` images each. Running statistics, mode and `shuffle_keys` of the model
    change in place.
    """
    model.eval()  # first: the other questions move running statistics
    running = embedded(model, batches, shuffle=False)
    model.train()
    query, key = embedded(model, batches, shuffle=False)
    _, shuffled = embedded(model, batches, shuffle=True)
    neighbor = key.view(-1, images, key.shape[1]).roll(1, dims=1).view_as(key)
    count = len(batches) // 2 * len(batches[0].query)
    asked, others = slice(count), slice(count, None)
    return Answers(
        aligned=percent_found(query[asked], key[asked], key[others]),
        shuffled=percent_found(query[asked], shuffled[asked], key[others]),
        running=percent_found(running[0][asked], running[1][asked], running[1][others]),
        neighbor=percent_found(query[asked], neighbor[asked], key[others]),
    )


def embedded(model: MoCo, batches: Sequence[Views], *, shuffle: bool) -> tuple[Tensor, Tensor]:
    """Queries and keys ``(N, C)``, both in the order of the images; see `ask`."""
    model.shuffle_keys = shuffle
    keys = [(model.embed_keys(model.shuffled(views)), views) for views in batches]
    query = torch.cat([model.embed_queries(views.query) for views in batches])
    return query, torch.cat([model.unshuffled(*pair) for pair in keys])


def percent_found(query: Tensor, key: Tensor, negatives: Tensor) -> float:
    """Percent of queries ``(N, C)`` whose key is nearer than all negatives ``(K, C)``."""
    positive = (query * key).sum(dim=1, keepdim=True)  # (N, 1)
    found = (positive > query @ negatives.T).all(dim=1)
    return 100 * found.double().mean().item()


def rows(setup: Setup) -> Iterator[Row]:
    """A row for each question to the encoders of each kind, over the seeds that are done."""
    for images, training in product(setup.groups_of, TRAININGS):
        paths = [setup.result(images, training, seed) for seed in setup.seeds]
        texts = [path.read_text(encoding="utf-8") for path in paths if path.exists()]
        found = [Answers(**json.loads(text)).figures() for text in texts]
        for name in found[0] if found else ():
            values = [figures[name] for figures in found]
            yield Row(
                what=f"groups of {images}, {training}, {name}",
                unit="points" if " less " in name else UNIT,
                value=summarize(values),
                note="each seed: " + ", ".join(f"{value:.1f}" for value in values),
            )


def measure(setup: Setup, results: Path) -> None:
    """Do all units, and write the figures after each."""
    source, links = setup.cifar / "train", setup.runs / "images"
    make_set(source, setup.images_per_class, links, setup.runs / "train.beton")
    torch.set_num_threads(1)
    subject = (
        f"ResNet-18 of width 8, {setup.epochs} epochs of {setup.images_per_class} images of each "
        f"class of CIFAR-10, batch {setup.batch}; python -m benchmarks.shuffling"
    )
    for images, seed, training in product(setup.groups_of, setup.seeds, TRAININGS):
        path = setup.result(images, training, seed)
        if not path.exists():
            answers = asdict(run(setup, images, training, seed))
            atomic_write_text(path, json.dumps(answers) + "\n")
        report = Report("shuffling", "full", subject, device="cpu", rows=list(rows(setup)))
        report.write(results)


def main() -> None:
    """Read the command line and do all units."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar", type=Path)
    parser.add_argument("runs", type=Path)
    measure(Setup(**vars(parser.parse_args())), RESULTS)


if __name__ == "__main__":
    main()
