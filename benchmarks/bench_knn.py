"""Weighted kNN: all of the classification, features given, beside scikit-learn's.

The peer is `KNeighborsClassifier` with ``metric="cosine"``, ``algorithm="brute"`` and the same
weights, on as many threads. It runs once each round in the same process; its features are float32
too.
"""

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness import Plan, Work, again, host_timer, measure_blocks, summarize
from benchmarks.limits import matrix_rate
from benchmarks.report import Report, Row, absent, beside
from benchmarks.settings import Settings
from fastmoco.evaluate.features import FeatureSet
from fastmoco.evaluate.knn import knn_votes

DIM, K, TEMPERATURE, CLASSES = 512, 200, 0.1, 100
OURS, PEER = "fastmoco", "scikit-learn"
GOAL = "50,000 x 10,000 x 512 in under 15 s on 2 cores"


def bench_knn(settings: Settings, report: Report) -> None:
    """Votes for all test images, in seconds."""
    num_train, num_test = settings.pick(10_000, 50_000), settings.pick(4_000, 10_000)
    report.subject = (
        f"weighted kNN, k = {K}, {num_train:,} training and {num_test:,} test features of {DIM}, "
        f"{torch.get_num_threads()} threads"
    )
    report.device, report.peers = "cpu", ("scikit-learn",)
    train, test = _features(num_train, 0), _features(num_test, 1)
    contenders: dict[str, Work] = {OURS: _ours(train, test)}
    try:
        contenders[PEER] = _peer(train, test)
    except ImportError as error:
        report.rows.append(absent(PEER, "s", str(error)))
    seconds = measure_blocks(contenders, OURS, Plan(1, settings.pick(3, 3)), host_timer())
    flops = 2 * num_train * num_test * DIM
    least = flops / matrix_rate(torch.device("cpu"), torch.float32)
    peers = {OURS: PEER, again(OURS): OURS}
    for name, found in seconds.items():
        value = summarize(found)
        report.rows.append(
            Row(
                what=name,
                unit="s",
                value=value,
                ratio=beside(seconds, name, peers.get(name, ""), OURS),
                limit="the arithmetic of all similarities",
                share_of_limit=least / value.median,
                goal=GOAL if name == OURS else "",
                note="A/A: the noise floor" if name == again(OURS) else "",
            )
        )


def _features(count: int, seed: int) -> FeatureSet:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    centers = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(2))
    noise = torch.randn(count, DIM, generator=generator)
    return FeatureSet(centers[labels] + 3 * noise, labels)


def _ours(train: FeatureSet, test: FeatureSet) -> Work:
    return lambda: knn_votes(train, test.vectors, k=K, temperature=TEMPERATURE)


def _peer(train: FeatureSet, test: FeatureSet) -> Work:
    """scikit-learn's.

    Raises:
        ImportError: If it is not installed.
    """
    from sklearn.neighbors import KNeighborsClassifier

    def weigh(far: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.exp(-far / TEMPERATURE)

    classifier = KNeighborsClassifier(K, metric="cosine", algorithm="brute", weights=weigh)
    classifier.fit(train.vectors.numpy(), train.labels.numpy())
    return lambda: classifier.predict_proba(test.vectors.numpy())
