"""k-nearest-neighbor classification of frozen features.

The protocol of instance discrimination (arXiv:1805.01978, section 3.4): by cosine similarity, the k
nearest training images vote for their classes with weights ``exp(similarity / T)``; with
``vote=majority`` each has one vote.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.errors import UsageError
from fastmoco.evaluate.classes import MAX_PRINTED, ClassTable, class_ranks, top_accuracies
from fastmoco.evaluate.features import (
    FeatureRequest,
    FeatureSet,
    dataset_features,
    features_folder,
    request_of,
)
from fastmoco.evaluate.frozen_encoder import PIXELS, FrozenEncoder, open_encoder
from fastmoco.evaluate.labels import Classes, check_labels, missing_set
from fastmoco.evaluate.nearest import nearest
from fastmoco.evaluate.overlap import check_overlap, shared_text
from fastmoco.evaluate.results import better_baselines, results_folder, write_result
from fastmoco.evaluate.settings import KnnConfig, Vote


@dataclass(slots=True)
class KnnResult:
    """Accuracy of the classifier, with its protocol."""

    top1: float
    """Percent of the test images."""
    top5: float
    """Percent of the test images."""
    k: int
    temperature: float
    vote: str
    """weighted or majority."""
    leave_one_out: bool
    features: str
    """backbone, embedding or pixels."""
    num_train: int
    num_test: int
    num_shared: int
    """Test images that are also in the training set."""
    largest_class: int
    """Training images of the class that has most."""
    seconds: float
    """Time for features and classification."""
    features_reused: bool = False
    """Whether all features were found on disk."""
    baselines: dict[str, Any] = field(default_factory=dict)
    """Results of raw pixels and of the untrained encoder, by name."""
    classes: ClassTable | None = None
    """Accuracy per class; None for baselines."""
    tables: bool = False
    """Whether to print the classes however many there are."""

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        values = asdict(self)
        del values["classes"], values["tables"]
        values["remark"] = self.remark()
        return values | (self.classes.to_json() if self.classes else {})

    def to_text(self) -> str:
        """The result, its baselines and the protocol as a table."""
        rows = {"pretrained": self.to_json(), **self.baselines}
        lines = [f"{'':<12}{'top-1 %':>9}{'top-5 %':>9}"]
        lines += [f"{name:<12}{row['top1']:>9.2f}{row['top5']:>9.2f}" for name, row in rows.items()]
        lines += filter(None, [self.about(), self.remark_on_k(), self.remark()])
        if self.classes and (self.tables or len(self.classes.names) <= MAX_PRINTED):
            lines += ["", self.classes.to_text()]
        return "\n".join(lines)

    def remark(self) -> str:
        """Say which baselines are better; "" if none is."""
        others = {name: row["top1"] for name, row in self.baselines.items()}
        return better_baselines(self.top1, others, self.num_test)

    def remark_on_k(self) -> str:
        """Say that more neighbors vote than any class has; "" if not."""
        if self.k <= self.largest_class:
            return ""
        return (
            f"k={self.k} neighbors are more than the largest class has images "
            f"({self.largest_class}), so that other classes must vote; set k=20 or less"
        )

    def about(self) -> str:
        """The protocol in one line."""
        vote = f"T={self.temperature:g}" if self.vote == Vote.weighted else "majority"
        images = f"{self.num_train} training and {self.num_test} test images"
        images += shared_text(self.num_shared)
        if self.leave_one_out:
            images = f"{self.num_train} images, each by all others"
        reused = " (found on disk)" if self.features_reused else ""
        return f"kNN, k={self.k}, {vote}, {self.features} features{reused}, {images}"


@torch.no_grad()
def knn_votes(
    train: FeatureSet,
    queries: Tensor,
    *,
    k: int,
    temperature: float,
    vote: Vote = Vote.weighted,
    leave_one_out: bool = False,
) -> Tensor:
    """Compute class scores of each query, exactly, in chunks that bound the memory.

    Args:
        train: The n labeled features that vote.
        queries: ``(m, D)``, on the same device.
        k: Neighbors, at most n; with `leave_one_out` at most n - 1.
        temperature: T > 0.
        vote: How the neighbors vote.
        leave_one_out: The queries are those of `train`, and none votes for itself.

    Returns:
        ``(m, classes)`` float32: the sum of ``exp(similarity / T - 1 / T)`` over the neighbors of
        each class; with `Vote.majority` their number.
    """
    num_classes = int(train.labels.max()) + 1
    scores = torch.zeros(len(queries), num_classes, device=queries.device)
    start = 0
    for similarity, rows in nearest(train.vectors, queries, k, leave_one_out=leave_one_out):
        weights = torch.ones_like(similarity)
        if vote is Vote.weighted:
            # The common factor exp(-1 / T) keeps float32 in range at small T.
            weights = ((similarity - 1) / temperature).exp()
        scores[start : start + len(rows)].scatter_add_(1, train.labels[rows], weights)
        start += len(rows)
    return scores


def knn_accuracy(
    train: FeatureSet,
    test: FeatureSet,
    *,
    k: int,
    temperature: float,
    leave_one_out: bool = False,
) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent; k is reduced to the images that may vote."""
    scores = knn_votes(
        train,
        test.vectors,
        k=min(k, len(train.labels) - leave_one_out),
        temperature=temperature,
        leave_one_out=leave_one_out,
    )
    return top_accuracies(class_ranks(scores, test.labels))


def check_knn_config(cfg: KnnConfig) -> None:
    """Refuse settings that cannot work.

    Raises:
        UsageError: Naming the option to change.
    """
    if cfg.data.train is None:
        raise missing_set("train")
    if cfg.data.test is None and not cfg.leave_one_out:
        raise missing_set("test")


def knn(run: Path, cfg: KnnConfig) -> KnnResult:
    """Evaluate a run by kNN, and its baselines if the configuration asks for them.

    Args:
        run: Run folder or checkpoint.
        cfg: Datasets and protocol.

    Returns:
        The result; also written to ``evaluation/knn.json`` in the run folder.

    Raises:
        UsageError: If a dataset is missing or unsuitable, or a setting is out of range.
        CheckpointError: If there is no checkpoint, or it is damaged.
    """
    check_knn_config(cfg)
    assert cfg.data.train is not None
    trained, folder = open_encoder(run, cfg), features_folder(run) if cfg.cache else None
    test_path = cfg.data.train if cfg.leave_one_out else cfg.data.test
    assert test_path is not None
    with open_dataset(cfg.data.train) as train, open_dataset(test_path) as test:
        classes = check_labels(train, test)
        if cfg.leave_one_out and len(train) < 2:
            raise UsageError(f"leave_one_out=true needs two images, but {cfg.data.train} has one")
        shared = (
            0 if cfg.leave_one_out else check_overlap(train, test, is_allowed=cfg.allow_overlap)
        )
        measured = _Measured(train, test, classes, shared, cfg, folder)
        result = measured.result(trained, request_of(cfg))
        if cfg.baselines:
            untrained = open_encoder(run, cfg, untrained=True)
            for name, encoder, request in (
                ("untrained", untrained, request_of(cfg)),
                ("pixels", trained, request_of(cfg, PIXELS)),
            ):
                row = measured.result(encoder, request)
                row.classes = None
                result.baselines[name] = row.to_json()
    write_result(results_folder(run) / "knn.json", result.to_json())
    return result


@dataclass(frozen=True, slots=True)
class _Measured:
    """Datasets and protocol, the same for every encoder."""

    train: Dataset
    test: Dataset
    classes: Classes
    num_shared: int
    cfg: KnnConfig
    folder: Path | None

    def result(self, encoder: FrozenEncoder, request: FeatureRequest) -> KnnResult:
        """Measure one encoder."""
        start, cfg, alone = time.perf_counter(), self.cfg, self.cfg.leave_one_out
        device = encoder.mean.device
        datasets = [self.train] if alone else [self.train, self.test]
        sets = [dataset_features(encoder, one, request, self.folder) for one in datasets]
        voters, queries = (
            FeatureSet(one.vectors.to(device), one.labels.to(device)) for one in (sets[0], sets[-1])
        )
        k = min(cfg.k, len(self.train) - alone)
        scores = knn_votes(
            voters,
            queries.vectors,
            k=k,
            temperature=cfg.temperature,
            vote=cfg.vote,
            leave_one_out=alone,
        )
        top1, top5 = top_accuracies(class_ranks(scores, queries.labels))
        return KnnResult(
            top1=top1,
            top5=top5,
            k=k,
            temperature=cfg.temperature,
            vote=cfg.vote.value,
            leave_one_out=alone,
            features=request.features,
            num_train=len(self.train),
            num_test=len(self.test),
            num_shared=self.num_shared,
            largest_class=int(np.bincount(self.train.labels).max()),
            seconds=time.perf_counter() - start,
            features_reused=all(one.reused for one in sets),
            classes=ClassTable.count(self.classes.names, queries.labels, scores.argmax(1)),
            tables=cfg.tables,
        )
