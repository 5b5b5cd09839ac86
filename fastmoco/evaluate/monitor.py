"""The kNN monitor: accuracy of the encoder's features while it trains."""

from typing import Self

from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.data.settings import DataConfig
from fastmoco.evaluate.features import FeatureRequest, FrozenEncoder
from fastmoco.evaluate.knn import encoder_accuracy
from fastmoco.evaluate.labels import check_labels
from fastmoco.evaluate.overlap import check_overlap
from fastmoco.evaluate.settings import MonitorConfig


class KnnMonitor:
    """Measures kNN top-1 every few epochs; opens both datasets before the first step."""

    def __init__(self, monitor: MonitorConfig, data: DataConfig, batch_size: int) -> None:
        """Open the datasets if the monitor is on.

        Args:
            monitor: Protocol and interval.
            data: The datasets; both are set if the monitor is on.
            batch_size: Images per forward pass.

        Raises:
            UsageError: If a dataset is unlabeled, the classes differ, or images are in both.
        """
        self._monitor, self._batch_size = monitor, batch_size
        self._sets: list[Dataset] = []
        if monitor.every_epochs:
            for path in (data.train, data.test):
                assert path is not None  # train.checks refused it
                self._sets.append(open_dataset(path))
            check_labels(*self._sets)
            check_overlap(
                *self._sets,
                is_allowed=monitor.allow_overlap,
                option="monitor.allow_overlap",
                instead="set monitor.every_epochs=0",
            )

    def is_due(self, epoch: int) -> bool:
        """Whether to measure after the end of an epoch, counted from 1."""
        return bool(self._monitor.every_epochs) and epoch % self._monitor.every_epochs == 0

    def measure(self, encoder: FrozenEncoder) -> float:
        """Measure the top-1 of an encoder on its device, in percent, by ``monitor.*``."""
        train, test = self._sets
        request = FeatureRequest(features=self._monitor.features.value, batch_size=self._batch_size)
        k, temperature = self._monitor.k, self._monitor.temperature
        return encoder_accuracy(encoder, request, train, test, k=k, temperature=temperature)[0]

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the datasets."""
        for dataset in self._sets:
            dataset.close()
