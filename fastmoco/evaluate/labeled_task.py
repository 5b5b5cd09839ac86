"""The classification that is learned: checked sets, and the labels that a classifier is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.draws.streams import INT64
from fastmoco.errors import UsageError
from fastmoco.evaluate.labels import Classes, check_labels, noisy_labels, stratified_part
from fastmoco.evaluate.results import results_folder
from fastmoco.evaluate.settings import ClassifierConfig
from fastmoco.pipelines.contract import EpochPlan


@dataclass(frozen=True, slots=True)
class LabeledTask:
    """What is learned, and what it is measured on."""

    train: Dataset
    test: Dataset
    classes: Classes
    labels: INT64
    """Of all training images, as the classifier is told them: noise included."""
    ids: INT64
    """The training images whose labels are used."""
    noise_share: float
    """Share of these whose label is not the set's own."""

    def batch_size(self, cfg: ClassifierConfig) -> int:
        """Images per step: of few labels, all of them."""
        return min(cfg.global_batch_size, len(self.ids))

    def plan(self, cfg: ClassifierConfig, epoch: int = 0) -> EpochPlan:
        """The order of an epoch: as in pretraining, its last partial batch is dropped."""
        return EpochPlan(
            seed=cfg.seed,
            epoch=epoch,
            num_samples=len(self.ids),
            global_batch_size=self.batch_size(cfg),
            sample_ids=self.ids,
        )

    def described(self, cfg: ClassifierConfig) -> str:
        """Labels and noise, for people."""
        text = f"{len(self.ids)} labeled and {len(self.test)} test images"
        if cfg.label_share < 1:
            text = f"{100 * cfg.label_share:g}% of the labels: {text}"
        if cfg.label_noise:
            text += f", {100 * self.noise_share:.1f}% of the labels wrong ({cfg.label_noise})"
        return text

    def facts(self, cfg: ClassifierConfig) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "label_share": cfg.label_share,
            "label_noise": cfg.label_noise,
            "label_noise_share": self.noise_share,
            "num_train": len(self.ids),
            "num_test": len(self.test),
            "seed": cfg.seed,
        }


@contextmanager
def open_task(cfg: ClassifierConfig) -> Iterator[LabeledTask]:
    """Open both sets and decide on the labels.

    Raises:
        UsageError: If settings are out of range, or the sets cannot serve.
    """
    _check(cfg)
    assert cfg.data.train
    assert cfg.data.test
    with open_dataset(cfg.data.train) as train, open_dataset(cfg.data.test) as test:
        classes = check_labels(train, test)
        if classes.count < 2:
            raise UsageError("data.train has one class only; a classifier needs two or more")
        labels = noisy_labels(train, cfg.label_noise, classes, cfg.seed)
        ids = stratified_part(train.labels, cfg.label_share, cfg.seed)
        noise_share = float((labels[ids] != train.labels[ids]).mean())
        yield LabeledTask(train, test, classes, labels, ids, noise_share)


def _check(cfg: ClassifierConfig) -> None:
    for which in ("train", "test"):
        if getattr(cfg.data, which) is None:
            raise UsageError(
                f"data.{which} is not set; give a labeled dataset file, data.{which}=FILE.beton"
            )
    if not 0 < cfg.label_share <= 1:
        raise UsageError(
            f"label_share={cfg.label_share} is no share; set it above 0, at most 1, as 0.01 or 0.1"
        )
    if cfg.train.epochs < 1:
        raise UsageError(f"train.epochs={cfg.train.epochs} trains nothing; set it to 1 or more")
    if cfg.global_batch_size < 1:
        raise UsageError(f"global_batch_size={cfg.global_batch_size} must be 1 or more")


def is_measured(epoch: int, epochs: int, times: int) -> bool:
    """Whether the test set is looked at for the curve after this epoch, counted from 0.

    At the end, and before at most `times` times.
    """
    return epoch == epochs - 1 or (epoch + 1) % -(-epochs // times) == 0


def out_folder(run: Path, cfg: ClassifierConfig, command: str) -> Path:
    """Where the results go."""
    return cfg.out or results_folder(run) / f"{command}-{cfg.name}"
