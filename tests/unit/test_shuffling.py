"""The test of shuffling: its questions are those that it names, and what is done stays."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from benchmarks import shuffling
from benchmarks.shuffling import Answers, Setup, ask, embedded, percent_found
from fastmoco.moco.batchnorm import SplitBatchNorm2d
from fastmoco.moco.build import build_model
from fastmoco.moco.mechanism import Views
from fastmoco.moco.settings import MocoConfig, ModelConfig, Stem

BATCH, IMAGES, BATCHES = 8, 2, 12


def model_with(groups):
    """MoCo with two small encoders in float64, so that little time and rounding are left."""
    torch.manual_seed(0)
    moco = MocoConfig(dim=8, queue_size=8, batch_norm_splits=BATCH // IMAGES)
    model = build_model(ModelConfig(encoder="resnet18", stem=Stem.small, width=4), moco)
    model.query_encoder = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        SplitBatchNorm2d(6, num_splits=groups),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 8),
    )
    model.key_encoder = copy.deepcopy(model.query_encoder)
    return model.double()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def batches():
    """Views that differ so far that some keys are found and some are not."""
    torch.manual_seed(1)
    images = [torch.randn(BATCH, 3, 6, 6, dtype=torch.float64) for _ in range(BATCHES)]
    return [
        Views(*(part + 0.4 * torch.randn_like(part) for _ in range(2)), order, order, order)
        for part, order in zip(images, (torch.randperm(BATCH) for _ in images), strict=True)
    ]


def of_each_group(encoder, views):
    """The same embeddings by plain batch norm, one group after the other."""
    plain = copy.deepcopy(encoder)
    for layer in plain.modules():
        if isinstance(layer, SplitBatchNorm2d):
            layer.num_splits = 1
    return nn.functional.normalize(torch.cat([plain(part) for part in views.split(IMAGES)]))


@torch.no_grad()
def test_keys_are_encoded_in_the_groups_that_are_said(batches):
    model = model_with(BATCH // IMAGES)
    for shuffle in (False, True):
        query, key = embedded(model, batches[:1], shuffle=shuffle)
        views = batches[0]
        order = views.permutation if shuffle else torch.arange(BATCH)
        expected = torch.empty_like(key)
        expected[order] = of_each_group(model.key_encoder, views.key[order])
        torch.testing.assert_close(key, expected, atol=1e-10, rtol=0)
        wanted = of_each_group(model.query_encoder, views.query)
        torch.testing.assert_close(query, wanted, atol=1e-10, rtol=0)


@torch.no_grad()
def test_each_question_is_asked_of_its_own_groups(batches):
    model = model_with(BATCH // IMAGES)
    key = torch.cat([of_each_group(model.key_encoder, views.key) for views in batches])
    query = torch.cat([of_each_group(model.query_encoder, views.query) for views in batches])
    asked = len(query) // 2
    orders = [views.permutation + BATCH * index for index, views in enumerate(batches)]
    shuffled = torch.empty_like(key)
    for views, order in zip(batches, orders, strict=True):
        shuffled[order] = of_each_group(model.key_encoder, views.key[views.permutation])
    swapped = key.view(-1, IMAGES, 8).flip(1).view_as(key)  # in groups of two
    model.eval()
    runs = embedded(model, batches, shuffle=False)
    expected = Answers(
        *(
            percent_found(own[:asked], other[:asked], negatives[asked:])
            for own, other, negatives in (
                (query, key, key),
                (query, shuffled, key),
                (runs[0], runs[1], runs[1]),
                (query, swapped, key),
            )
        )
    )
    assert len(set(asdict(expected).values())) == 4
    assert ask(model_with(BATCH // IMAGES), batches, IMAGES) == expected


@torch.no_grad()
def test_without_groups_shuffling_changes_nothing(batches):
    evaluating = model_with(BATCH // IMAGES).eval()
    for model, differ in ((model_with(1), False), (evaluating, False), (model_with(4), True)):
        keys = [embedded(model, batches, shuffle=shuffle)[1] for shuffle in (False, True)]
        assert torch.allclose(*keys, atol=1e-10) != differ


def test_a_key_is_found_above_all_negatives_and_a_neighbor_is_another_image(batches):
    query, negatives = torch.eye(4), torch.tensor([[0.0, 0.6, 0.8, 0.0]])
    key = torch.tensor([[1.0, 0, 0, 0], [0, 0.7, 0, 0], [0, 0, 0.7, 0], [0, 0, 0, 0]])
    assert percent_found(query, key, negatives) == 50
    model = model_with(BATCH // IMAGES)
    model.embed_queries = model.embed_keys = lambda views: nn.functional.one_hot(
        views.flatten(1)[:, 0].long(), BATCHES * BATCH
    ).float()
    numbered = [
        views._replace(query=places, key=places)
        for views, places in zip(
            batches, torch.arange(float(BATCHES * BATCH)).view(BATCHES, BATCH, 1), strict=True
        )
    ]
    assert ask(model, numbered, IMAGES) == Answers(100, 100, 100, 0)
    marked = [
        views._replace(query=views.query // IMAGES, key=views.key // IMAGES) for views in numbered
    ]
    assert ask(model, marked, IMAGES).neighbor == 100  # of a group, and nothing of the image


def test_what_is_done_stays(tmp_path, monkeypatch):
    started = []

    def run(_, images, training, seed):
        started.append((images, training, seed))
        return Answers(10.0 + seed, 5.0, 4.0, 0.0)

    monkeypatch.setattr(shuffling, "run", run)
    monkeypatch.setattr(shuffling, "make_set", lambda *_: None)
    setup = Setup(tmp_path, tmp_path, seeds=(1, 2))
    for _ in range(2):
        shuffling.measure(setup, tmp_path / "results")
    assert len(set(started)) == len(started) == 12
    rows = json.loads((tmp_path / "results/shuffling.json").read_text())
    notes = {row["what"]: row["note"] for row in rows}
    assert len(notes) == len(rows) == 2 * 3 * 6
    assert notes["groups of 4, untrained, aligned"] == "each seed: 11.0, 12.0"
    assert notes["groups of 2, trained shuffled, aligned less running"] == "each seed: 7.0, 8.0"
