from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from fastmoco.evaluate import knn, nearest
from fastmoco.evaluate.classes import ClassTable, class_ranks, top_accuracies
from fastmoco.evaluate.features import FeatureSet
from fastmoco.evaluate.settings import EvaluateConfig, KnnConfig, MonitorConfig, Vote
from fastmoco.schema_options import describe


def clusters(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(7, (count,), generator=generator)
    centers = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    return FeatureSet(centers[labels] + 1.5 * torch.randn(count, 16, generator=generator), labels)


class SimpleSet(SimpleNamespace):
    """Labels of a dataset."""

    def __init__(self, labels):
        super().__init__(labels=labels)

    def __len__(self):
        return len(self.labels)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (20, 0.07), (200, 0.5)])
def test_equals_scikit_learn(monkeypatch, k, temperature):
    train, test = clusters(300, 1), clusters(90, 2)
    sklearn = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
    )
    sklearn.fit(train.vectors.double().numpy(), train.labels.numpy())
    probability = sklearn.predict_proba(test.vectors.double().numpy())
    expected = np.argsort(-probability, axis=1)
    monkeypatch.setattr(nearest, "MIN_QUERIES", 32)
    monkeypatch.setattr(nearest, "CHUNK_ELEMENTS", 0)  # several chunks, the last one partial
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


@pytest.mark.parametrize("k", [1, 3, 40, 300])
def test_the_nearest_are_those_of_a_whole_sort(monkeypatch, k):
    monkeypatch.setattr(nearest, "MIN_QUERIES", 32)
    monkeypatch.setattr(nearest, "CHUNK_ELEMENTS", 0)
    bank, queries = clusters(300, 1).vectors, clusters(90, 2).vectors
    similarity = F.normalize(queries) @ F.normalize(bank).T
    values, rows = zip(*nearest.nearest(bank, queries, k), strict=True)
    torch.testing.assert_close(torch.cat(values), similarity.sort(1, descending=True)[0][:, :k])
    torch.testing.assert_close(torch.cat(values), similarity.gather(1, torch.cat(rows)))
    assert all(len(set(row)) == k for row in torch.cat(rows).tolist())


@pytest.mark.parametrize("k", [1, 3, 40])
def test_what_fills_the_last_group_is_no_neighbor(k):
    bank, queries = clusters(301, 1).vectors.abs(), -clusters(20, 2).vectors.abs()
    values, rows = next(nearest.nearest(bank, queries, k))
    similarity = F.normalize(queries) @ F.normalize(bank).T  # all below 0
    torch.testing.assert_close(values, similarity.sort(1, descending=True)[0][:, :k])
    assert rows.max() < 301


def test_majority_equals_scikit_learn():
    train, test = clusters(300, 1), clusters(90, 2)
    sklearn = KNeighborsClassifier(10, metric="cosine", algorithm="brute")
    sklearn.fit(train.vectors.double().numpy(), train.labels.numpy())
    scores = knn.knn_votes(train, test.vectors, k=10, temperature=1.0, vote=Vote.majority)
    assert (scores.sum(1) == 10).all()
    predicted = sklearn.predict(test.vectors.double().numpy())  # of equal classes the first, too
    assert scores.argmax(1).tolist() == predicted.tolist()


def test_leaving_one_out_equals_taking_it_out(monkeypatch):
    monkeypatch.setattr(nearest, "MIN_QUERIES", 7)
    monkeypatch.setattr(nearest, "CHUNK_ELEMENTS", 0)
    train = clusters(40, 1)
    train.labels[:7] = torch.arange(7)
    scores = knn.knn_votes(train, train.vectors, k=9, temperature=0.2, leave_one_out=True)
    for one in range(7, 40):
        others = torch.arange(40) != one
        rest = FeatureSet(train.vectors[others], train.labels[others])
        expected = knn.knn_votes(rest, train.vectors[one : one + 1], k=9, temperature=0.2)
        torch.testing.assert_close(scores[one : one + 1], expected)


def test_ranks_break_ties_by_the_number_of_the_class():
    scores = torch.tensor([[2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    ranks = [class_ranks(scores, torch.tensor([label])).item() for label in range(7)]
    assert ranks == [0, 1, 2, 3, 4, 5, 6]
    assert top_accuracies(torch.tensor([0, 4, 5, 1])) == (25.0, 75.0)


def test_classes_are_counted():
    table = ClassTable.count(
        ["cat", "dog", "eel"], torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 2, 0])
    )
    assert table.confusion == [[2, 0, 1], [1, 0, 0], [0, 0, 0]]
    cat, dog, eel = table.to_json()["classes"]
    assert cat == {"name": "cat", "images": 3, "top1": pytest.approx(200 / 3)}
    assert (dog["top1"], eel["top1"]) == (0.0, None)
    lines = table.to_text().splitlines()
    assert lines[1].split() == ["0", "cat", "3", "66.67", "2", "0", "1"]
    assert lines[3].split() == ["2", "eel", "0", "-", "0", "0", "0"]


def test_an_image_does_not_answer_for_itself_when_left_out():
    """Of noise nothing can be learned, which a set that is classified by itself hides."""
    generator = torch.Generator().manual_seed(3)
    noise = FeatureSet(torch.randn(300, 16, generator=generator), torch.arange(300) % 5)
    found = {}
    for alone in (False, True):
        scores = knn.knn_votes(noise, noise.vectors, k=1, temperature=0.1, leave_one_out=alone)
        found[alone], _ = top_accuracies(class_ranks(scores, noise.labels))
    assert found[False] == 100
    assert 10 < found[True] < 30


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(("k", "temperature", "vote"), [(9, 0.5, "weighted"), (99, 1, "majority")])
def test_the_command_measures_by_its_options(monkeypatch, alone, k, temperature, vote):
    sets = {30: clusters(30, 1), 12: clusters(12, 2)}
    monkeypatch.setattr(knn, "dataset_features", lambda _, one, *__: sets[len(one.labels)])
    train, test = (SimpleSet(sets[count].labels.numpy()) for count in (30, 12))
    if alone:
        test = train
    cfg = KnnConfig(k=k, temperature=temperature, vote=Vote[vote], leave_one_out=alone)
    names = SimpleNamespace(names=list("abcdefg"))
    measured = knn._Measured(train, test, names, 0, cfg, None)
    encoder = SimpleNamespace(mean=torch.zeros(3))
    result = measured.result(encoder, SimpleNamespace(features="backbone"))
    assert result.k == min(k, 29 if alone else 30)
    scores = knn.knn_votes(
        sets[30],
        sets[len(test)].vectors,
        k=result.k,
        temperature=temperature,
        vote=Vote[vote],
        leave_one_out=alone,
    )
    ranks = class_ranks(scores, sets[len(test)].labels)
    assert (result.top1, result.top5) == top_accuracies(ranks)
    right = sum(row[number] for number, row in enumerate(result.classes.confusion))
    assert 100 * right / len(test) == pytest.approx(result.top1)
    counts = [sum(row) for row in result.classes.confusion]
    assert counts == np.bincount(test.labels, minlength=7).tolist()


@pytest.mark.parametrize(("k", "said"), [(200, True), (31, True), (30, False)])
def test_more_neighbors_than_a_class_has_images_are_told(k, said):
    result = knn.KnnResult(
        top1=50.0,
        top5=90.0,
        k=k,
        temperature=0.1,
        vote="weighted",
        leave_one_out=False,
        features="backbone",
        num_train=300,
        num_test=80,
        num_shared=0,
        largest_class=30,
        seconds=1.0,
    )
    assert ("than the largest class has images (30)" in result.to_text()) == said


@pytest.mark.parametrize("schema", [EvaluateConfig, MonitorConfig])
def test_whatever_measures_knn_names_its_options_as_the_command_does(schema):
    def options(one):
        found = {key: (kind, text) for key, kind, text in describe(one)}
        return found["k"], found["temperature"], one().k, one().temperature

    assert options(schema) == options(KnnConfig)
