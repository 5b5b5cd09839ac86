"""A classification task: checked datasets, and the labels that a classifier learns from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.draws.streams import INT64
from fastmoco.errors import UsageError
from fastmoco.evaluate.frozen_encoder import FrozenEncoder
from fastmoco.evaluate.labels import (
    Classes,
    check_labels,
    missing_set,
    noisy_labels,
    stratified_part,
)
from fastmoco.evaluate.overlap import check_overlap, shared_text
from fastmoco.evaluate.results import results_folder
from fastmoco.evaluate.settings import ClassifierConfig
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec, ViewLoader
from fastmoco.pipelines.policies import Policy


@dataclass(frozen=True, slots=True)
class LabeledTask:
    """Images and labels to learn from, and images to measure on."""

    train: Dataset
    test: Dataset
    classes: Classes
    labels: INT64
    """Labels of all training images as the classifier sees them, with noise, ``(n,)``."""
    ids: INT64
    """Ids of the training images whose labels are used."""
    noise_share: float
    """Fraction of `ids` whose label differs from the dataset's."""
    num_shared: int
    """Test images that are also in the training set."""

    def batch_size(self, cfg: ClassifierConfig) -> int:
        """Images per step; all of them if there are fewer than a batch."""
        return min(cfg.global_batch_size, len(self.ids))

    def plan(self, cfg: ClassifierConfig, epoch: int = 0) -> EpochPlan:
        """Plan the order of an epoch; as in pretraining, the last partial batch is dropped."""
        return EpochPlan(
            seed=cfg.seed,
            epoch=epoch,
            num_samples=len(self.ids),
            global_batch_size=self.batch_size(cfg),
            sample_ids=self.ids,
        )

    def loader(
        self, cfg: ClassifierConfig, encoder: FrozenEncoder, policy: Policy | None, epoch: int = 0
    ) -> ViewLoader:
        """Load one crop of each training image from `epoch` on: the policy's, or None: central."""
        spec = LoaderSpec(
            view_size=encoder.view_size if policy else encoder.eval_size,
            policy=policy,
            policy_views=1,
            center_crop=encoder.center_crop,
            num_threads=cfg.pipeline.num_threads,
        )
        return build_loader(
            self.train,
            self.plan(cfg, epoch),
            spec=spec,
            stop_epoch=cfg.train.epochs,
            device=encoder.mean.device,
            name=cfg.pipeline.name,
        )

    def described(self, cfg: ClassifierConfig) -> str:
        """The number of labels and the noise, in words."""
        text = f"{len(self.ids)} labeled and {len(self.test)} test images"
        if cfg.label_share < 1:
            text = f"{100 * cfg.label_share:g}% of the labels: {text}"
        if cfg.label_noise:
            text += f", {100 * self.noise_share:.1f}% of the labels wrong ({cfg.label_noise})"
        return text + shared_text(self.num_shared)

    def facts(self, cfg: ClassifierConfig) -> dict[str, Any]:
        """Labels, noise and seed as JSON values."""
        return {
            "label_share": cfg.label_share,
            "label_noise": cfg.label_noise,
            "label_noise_share": self.noise_share,
            "num_train": len(self.ids),
            "num_test": len(self.test),
            "num_shared": self.num_shared,
            "seed": cfg.seed,
        }


@contextmanager
def open_task(cfg: ClassifierConfig) -> Iterator[LabeledTask]:
    """Open both datasets and choose the labels.

    Raises:
        UsageError: If a setting is out of range, or a dataset is missing or unsuitable.
    """
    _check(cfg)
    assert cfg.data.train
    assert cfg.data.test
    with open_dataset(cfg.data.train) as train, open_dataset(cfg.data.test) as test:
        classes = check_labels(train, test)
        num_shared = check_overlap(train, test, is_allowed=cfg.allow_overlap)
        if classes.count < 2:
            raise UsageError("data.train has one class only; a classifier needs two or more")
        labels = noisy_labels(train, cfg.label_noise, classes, cfg.seed)
        ids = stratified_part(train.labels, cfg.label_share, cfg.seed)
        noise_share = float((labels[ids] != train.labels[ids]).mean())
        yield LabeledTask(train, test, classes, labels, ids, noise_share, num_shared)


def _check(cfg: ClassifierConfig) -> None:
    for which in ("train", "test"):
        if getattr(cfg.data, which) is None:
            raise missing_set(which)


def is_measured(epoch: int, epochs: int, times: int) -> bool:
    """Whether to measure on the test set after this epoch, counted from 0, for the curve.

    This is so at the end, and before that at most `times` times.
    """
    return epoch == epochs - 1 or (epoch + 1) % -(-epochs // times) == 0


def out_folder(run: Path, cfg: ClassifierConfig, command: str) -> Path:
    """Folder of the results: ``out``, or ``evaluation/COMMAND-NAME`` of the run."""
    return cfg.out or results_folder(run) / f"{command}-{cfg.name}"
