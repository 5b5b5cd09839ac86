from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from fastmoco.evaluate import knn
from fastmoco.evaluate.features import FeatureSet
from fastmoco.schema import UsageError


def clusters(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(7, (count,), generator=generator)
    centers = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    return FeatureSet(centers[labels] + 1.5 * torch.randn(count, 16, generator=generator), labels)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (20, 0.07), (200, 0.5)])
def test_equals_scikit_learn(monkeypatch, k, temperature):
    train, test = clusters(300, 1), clusters(90, 2)
    sklearn = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
    )
    sklearn.fit(train.vectors.double().numpy(), train.labels.numpy())
    probability = sklearn.predict_proba(test.vectors.double().numpy())
    expected = np.argsort(-probability, axis=1)
    monkeypatch.setattr(knn, "CHUNK_ELEMENTS", 300 * 32)  # several chunks, the last one partial
    scores = knn.knn_votes(train, test.vectors, k=k, temperature=temperature)
    torch.testing.assert_close(
        scores / scores.sum(1, keepdim=True),
        torch.from_numpy(probability).float(),
        atol=1e-5,
        rtol=1e-4,
    )
    top1, top5 = knn.knn_accuracy(train, test, k=k, temperature=temperature)
    assert top1 == pytest.approx(100 * (expected[:, 0] == test.labels.numpy()).mean(), abs=1e-4)
    if k > 5:  # below, classes without a vote tie
        hits = (expected[:, :5] == test.labels.numpy()[:, None]).any(1)
        assert top5 == pytest.approx(100 * hits.mean(), abs=1e-4)


def test_small_temperatures_stay_finite():
    train, test = clusters(50, 1), clusters(10, 2)
    scores = knn.knn_votes(train, test.vectors, k=50, temperature=0.01)
    assert torch.isfinite(scores).all()
    assert (scores.max(dim=1).values > 0).all()


def test_k_is_cut_to_the_training_set():
    train, test = clusters(30, 1), clusters(10, 2)
    assert knn.knn_accuracy(train, test, k=200, temperature=0.1) == knn.knn_accuracy(
        train, test, k=30, temperature=0.1
    )


def test_sets_that_cannot_serve_are_refused():
    def labeled(labels, classes):
        return SimpleNamespace(labels=np.array(labels), classes=classes)

    train = labeled([0, 1, 1], ["cat", "dog"])
    with pytest.raises(UsageError, match=r"data\.test has images without a label"):
        knn.check_knn_labels(train, labeled([0, -1], []))
    with pytest.raises(UsageError, match=r"class 2 of data\.test has no image in data\.train"):
        knn.check_knn_labels(train, labeled([0, 2], []))
    with pytest.raises(UsageError, match=r"different classes \(such as cow\)"):
        knn.check_knn_labels(train, labeled([0, 1], ["cat", "cow"]))
    knn.check_knn_labels(train, labeled([1], ["cat", "dog"]))
