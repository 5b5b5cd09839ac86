"""The kNN monitor: what the frozen encoder is worth while it trains."""

import copy
from types import TracebackType
from typing import Self

import torch

from fastmoco.data.source_set import ImageSet, open_image_set
from fastmoco.evaluate.features import FeatureRequest, FrozenEncoder
from fastmoco.evaluate.knn import encoder_accuracy
from fastmoco.evaluate.labels import check_labels
from fastmoco.schema import TrainConfig
from fastmoco.train.trainer import Trainer


class KnnMonitor:
    """Measures kNN top-1 every few epochs, on an eager copy: nothing is compiled anew.

    Opens both datasets at once: what is wrong with them shows before the first step.
    """

    def __init__(self, cfg: TrainConfig, device: torch.device) -> None:
        """Open the datasets where the monitor is on.

        Raises:
            UsageError: If a dataset is unlabeled, or the classes differ.
        """
        self._cfg, self._device = cfg, device
        self._sets: list[ImageSet] = []
        if cfg.monitor.every_epochs:
            for path in (cfg.data.train, cfg.data.test):
                assert path is not None  # check_config refused it
                self._sets.append(open_image_set(path))
            check_labels(*self._sets)

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the last step ended an epoch to measure after."""
        every = self._cfg.monitor.every_epochs
        return (
            bool(every)
            and trainer.epoch_ends
            and trainer.steps_done // trainer.steps_per_epoch % every == 0
        )

    def measure(self, trainer: Trainer) -> float:
        """Top-1 in percent, by the protocol of ``monitor.*``."""
        frozen = FrozenEncoder(
            copy.deepcopy(trainer.step.model.query_encoder),
            self._cfg.pipeline,
            mean=trainer.channel_mean,
            std=trainer.channel_std,
        ).to(self._device)
        train, test = self._sets
        monitor = self._cfg.monitor
        top1, _ = encoder_accuracy(
            frozen,
            FeatureRequest(features=monitor.features.value, batch_size=self._cfg.global_batch_size),
            train,
            test,
            k=monitor.k,
            temperature=monitor.temperature,
        )
        return top1

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the datasets."""
        for dataset in self._sets:
            dataset.close()
