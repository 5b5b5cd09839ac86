"""The monitor: kNN accuracy and effective rank of the encoder's features while it trains.

It reads by the loader of the run, which is chosen once. Where that keeps images decoded, those of
training are used, and those of data.test are kept from one measurement to the next.
"""

import os
from dataclasses import replace
from typing import NamedTuple, Self

from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.data.settings import DataConfig
from fastmoco.draws.streams import INT64
from fastmoco.errors import UsageError
from fastmoco.evaluate.baselines import Baselines
from fastmoco.evaluate.features import FeatureRequest, FeatureSet, shared_features
from fastmoco.evaluate.frozen_encoder import PIXELS, FrozenEncoder
from fastmoco.evaluate.knn import knn_accuracy
from fastmoco.evaluate.labels import check_labels, stratified_part
from fastmoco.evaluate.overlap import check_overlap
from fastmoco.evaluate.rankme import effective_rank
from fastmoco.evaluate.settings import MonitorConfig
from fastmoco.pipelines.build import AUTO
from fastmoco.pipelines.resident_loader import ResidentSet, resident_set
from fastmoco.ranks import ALONE, Ranks

FALLBACK = "beton"
"""Loader of a data.test that the run's loader cannot read; it reads all sets."""
MOST_IMAGES = 10_000
"""Images of data.train that the monitor uses where there is no data.test."""


class Measurement(NamedTuple):
    """What the monitor found."""

    knn_top1: float | None
    """Percent; None without labels."""
    rankme: float
    """Effective rank of the features of data.train."""


class KnnMonitor:
    """Measures features every few epochs; opens its datasets before the first step.

    The images of data.train vote for those of data.test. Without data.test each image of data.train
    is classified by the others; at most `MOST_IMAGES` of them, the same in every run, bound the
    cost. If data.train has no labels at all, only the effective rank is measured.
    """

    def __init__(self, monitor: MonitorConfig, data: DataConfig, batch_size: int) -> None:
        """Open the datasets if the monitor is on.

        Args:
            monitor: Protocol and interval.
            data: The datasets; data.train is set.
            batch_size: Images per forward pass.

        Raises:
            UsageError: If a dataset is unlabeled, the classes differ, or images are in both.
        """
        self._monitor, self._batch_size = monitor, batch_size
        self._loader, self._num_threads = AUTO, len(os.sched_getaffinity(0))
        self._kept: dict[int, ResidentSet] = {}  # decoded images of each set
        self._sets: list[Dataset] = []
        self._part: INT64 | None = None
        self._alone = data.test is None
        if monitor.every_epochs:
            self._sets = [open_dataset(path) for path in (data.train, data.test) if path]
            if self.has_labels:
                check_labels(self._sets[0], self._sets[-1])
            self._check_sets()

    def _check_sets(self) -> None:
        """Refuse known test images; without a test set choose the part of a large training set."""
        if not self._alone:
            check_overlap(
                *self._sets,
                is_allowed=self._monitor.allow_overlap,
                option="monitor.allow_overlap",
                instead="leave data.test out, or set monitor.every_epochs=0",
            )
            return
        labels = self._sets[0].labels
        if len(labels) > MOST_IMAGES:
            self._part = stratified_part(labels, MOST_IMAGES / len(labels), seed=0)

    @property
    def is_on(self) -> bool:
        """Whether it measures at all."""
        return bool(self._sets)

    @property
    def has_labels(self) -> bool:
        """Whether it measures kNN."""
        return self.is_on and not (self._alone and (self._sets[0].labels < 0).all())

    def is_due(self, epoch: int) -> bool:
        """Whether to measure after the end of an epoch, counted from 1."""
        return self.is_on and epoch % self._monitor.every_epochs == 0

    def read_by(self, loader: str, num_threads: int) -> None:
        """Read by the run's loader, a name that `build_loader` takes; 0 threads: one per core."""
        self._loader, self._num_threads = loader, num_threads or len(os.sched_getaffinity(0))

    def measure(self, encoder: FrozenEncoder, ranks: Ranks = ALONE) -> Measurement | None:
        """Measure an encoder on its device by ``monitor.*``.

        All ranks compute features, each of a part of the images; the first one measures, and the
        others get None.
        """
        sets = self._features(encoder, self._monitor.features.value, ranks)
        if not ranks.is_first:
            return None
        rankme = effective_rank(sets[0].vectors)
        return Measurement(self._top1(sets) if self.has_labels else None, rankme)

    def _features(
        self, encoder: FrozenEncoder, features: str, ranks: Ranks = ALONE
    ) -> list[FeatureSet]:
        """Features of each set on the first rank, nothing on the others."""
        request = FeatureRequest(
            features=features,
            batch_size=self._batch_size,
            sample_ids=self._part,
            num_threads=self._num_threads,
        )
        found = (self._extract(encoder, n, request, ranks) for n in range(len(self._sets)))
        return [features for features in found if features is not None]

    def _top1(self, sets: list[FeatureSet]) -> float:
        k, temperature = self._monitor.k, self._monitor.temperature
        return knn_accuracy(
            sets[0], sets[-1], k=k, temperature=temperature, leave_one_out=self._alone
        )[0]

    def _extract(
        self, encoder: FrozenEncoder, number: int, request: FeatureRequest, ranks: Ranks
    ) -> FeatureSet | None:
        """Compute the features of a set by the run's loader, or by `FALLBACK`."""
        dataset, loader, device = self._sets[number], self._loader, encoder.mean.device
        try:
            if loader == "resident" and number not in self._kept:
                self._kept[number] = resident_set(dataset, self._num_threads, device)
            return shared_features(encoder, dataset, replace(request, loader=loader), ranks)
        except UsageError:
            if loader == FALLBACK:
                raise
            return shared_features(encoder, dataset, replace(request, loader=FALLBACK), ranks)

    def baselines(self, encoder: FrozenEncoder) -> Baselines:
        """Measure raw pixels and an encoder before its first step.

        Images that only the monitor reads are not kept: training takes its memory after this.
        """
        found = Baselines(
            knn_top1_pixels=self._top1(self._features(encoder, PIXELS)),
            knn_top1_start=self._top1(self._features(encoder, self._monitor.features.value)),
            num_images=len(self._sets[-1]) if self._part is None else len(self._part),
            about=self._about(),
        )
        self._kept.clear()
        return found

    def _about(self) -> str:
        if not self._alone:
            return "images of data.test"
        return "images of data.train, each classified by the others"

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the datasets, and free their images."""
        self._kept.clear()
        for dataset in self._sets:
            dataset.close()
