"""Weighted k-nearest-neighbor classification of frozen features.

The protocol of instance discrimination (arXiv:1805.01978, section 3.4): cosine similarity, the k
nearest training images vote for their classes with weights ``exp(similarity / T)``.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmoco.evaluate.features import (
    PIXELS,
    FeatureRequest,
    FeatureSet,
    FrozenEncoder,
    dataset_features,
    extract_features,
    features_folder,
    open_encoder,
    request_of,
)
from fastmoco.evaluate.schema import KnnConfig
from fastmoco.pipelines.source_set import ImageSet, open_image_set
from fastmoco.schema import UsageError

CHUNK_ELEMENTS = 1 << 26  # similarities per chunk: 256 MB of float32


@dataclass(slots=True)
class KnnResult:
    """What the classifier reached, with the protocol that it followed."""

    top1: float
    """Percent."""
    top5: float
    """Percent."""
    k: int
    temperature: float
    features: str
    """backbone, embedding or pixels."""
    num_train: int
    num_test: int
    seconds: float
    """Features and classification."""
    features_reused: bool = False
    """Whether both sets' features were found on disk."""
    baselines: dict[str, Any] = field(default_factory=dict)
    """By name: results of raw pixels and of the untrained encoder."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """The result beside its baselines, and the protocol, as a table."""
        rows = {"trained" if self.baselines else self.features: self.to_json(), **self.baselines}
        lines = [f"{'':<12}{'top-1 %':>9}{'top-5 %':>9}"]
        lines += [f"{name:<12}{row['top1']:>9.2f}{row['top5']:>9.2f}" for name, row in rows.items()]
        lines.append(
            f"weighted kNN, k={self.k}, T={self.temperature:g}, {self.features} features, "
            f"{self.num_train} training and {self.num_test} test images"
        )
        return "\n".join(lines)


def check_knn_labels(train: ImageSet, test: ImageSet) -> None:
    """Refuse sets that a classifier cannot learn from or be measured on.

    Raises:
        UsageError: If a set is unlabeled, its classes have other names, or the test set has one
            that the training set lacks.
    """
    classes = []
    for which, labels in (("train", train.labels), ("test", test.labels)):
        values = torch.as_tensor(labels)
        if bool((values < 0).any()):
            raise UsageError(
                f"data.{which} has images without a label; kNN needs a dataset of class folders"
            )
        classes.append(set(values.tolist()))
    names = [train.classes, test.classes]
    if all(names) and names[0] != names[1]:
        odd = sorted(set(names[0]) ^ set(names[1])) or names[0]
        raise UsageError(
            f"data.train and data.test have different classes (such as {odd[0]}); "
            "convert both from folders of the same classes"
        )
    if missing := classes[1] - classes[0]:
        raise UsageError(
            f"class {min(missing)} of data.test has no image in data.train; "
            "both must have the same classes"
        )


@torch.no_grad()
def knn_votes(train: FeatureSet, queries: Tensor, *, k: int, temperature: float) -> Tensor:
    """Class scores of each query, exact, in chunks that bound the memory.

    Args:
        train: Features that vote; n of them.
        queries: ``(m, D)``, on the same device.
        k: Neighbors, at most n.
        temperature: T > 0.

    Returns:
        ``(m, classes)`` float32: the sum of ``exp(similarity / T - 1 / T)`` over the neighbors of
        each class.
    """
    bank = F.normalize(train.vectors, dim=1)
    num_classes = int(train.labels.max()) + 1
    scores = torch.zeros(len(queries), num_classes, device=queries.device)
    for start in range(0, len(queries), max(1, CHUNK_ELEMENTS // len(bank))):
        rows = slice(start, start + max(1, CHUNK_ELEMENTS // len(bank)))
        similarity = F.normalize(queries[rows], dim=1) @ bank.T
        nearest, index = similarity.topk(k, dim=1)
        weights = (
            (nearest - 1) / temperature
        ).exp()  # the common factor keeps float32 in range at small T
        scores[rows].scatter_add_(1, train.labels[index], weights)
    return scores


def knn_accuracy(
    train: FeatureSet, test: FeatureSet, *, k: int, temperature: float
) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent; k is cut to the size of the training set."""
    scores = knn_votes(train, test.vectors, k=min(k, len(train.labels)), temperature=temperature)
    top = scores.topk(min(5, scores.shape[1]), dim=1).indices
    hits = top == test.labels[:, None]
    return 100 * hits[:, 0].float().mean().item(), 100 * hits.any(dim=1).float().mean().item()


def encoder_accuracy(
    encoder: FrozenEncoder,
    request: FeatureRequest,
    train: ImageSet,
    test: ImageSet,
    *,
    k: int,
    temperature: float,
) -> tuple[float, float]:
    """Top-1 and top-5 in percent of an encoder's features, of which nothing is kept.

    Args:
        encoder: On its device.
        request: Which vectors.
        train: Images that vote.
        test: Images to classify.
        k: Neighbors.
        temperature: Of their votes.
    """
    sets = [extract_features(encoder, dataset, request) for dataset in (train, test)]
    return knn_accuracy(*sets, k=k, temperature=temperature)


def knn(run: Path, cfg: KnnConfig) -> KnnResult:
    """Evaluate a run by kNN, and its baselines where asked for.

    Args:
        run: Run folder or checkpoint.
        cfg: Datasets and protocol.

    Raises:
        UsageError: If a dataset is not given or cannot serve.
        CheckpointError: If there is no sound checkpoint.
    """
    for which in ("train", "test"):
        if getattr(cfg.data, which) is None:
            raise UsageError(
                f"data.{which} is not set; give a labeled dataset file, data.{which}=FILE.beton"
            )
    assert cfg.data.train
    assert cfg.data.test
    trained, folder = open_encoder(run, cfg), features_folder(run) if cfg.cache else None
    with open_image_set(cfg.data.train) as train, open_image_set(cfg.data.test) as test:
        check_knn_labels(train, test)
        result = _measure(trained, request_of(cfg), train, test, cfg, folder)
        if cfg.baselines:
            untrained = open_encoder(run, cfg, untrained=True)
            for name, encoder, request in (
                ("untrained", untrained, request_of(cfg)),
                ("pixels", trained, request_of(cfg, PIXELS)),
            ):
                row = _measure(encoder, request, train, test, cfg, folder)
                result.baselines[name] = row.to_json()
    return result


def _measure(
    encoder: FrozenEncoder,
    request: FeatureRequest,
    train: ImageSet,
    test: ImageSet,
    cfg: KnnConfig,
    folder: Path | None,
) -> KnnResult:
    start = time.perf_counter()
    sets = [dataset_features(encoder, one, request, folder) for one in (train, test)]
    device = encoder.mean.device
    top1, top5 = knn_accuracy(
        *(FeatureSet(one.vectors.to(device), one.labels.to(device)) for one in sets),
        k=cfg.k,
        temperature=cfg.temperature,
    )
    return KnnResult(
        top1=top1,
        top5=top5,
        k=min(cfg.k, len(train)),
        temperature=cfg.temperature,
        features=request.features,
        num_train=len(train),
        num_test=len(test),
        seconds=time.perf_counter() - start,
        features_reused=all(one.reused for one in sets),
    )
