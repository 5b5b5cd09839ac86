"""Keys made anew, against a plain twin; what measuring them leaves alone."""

import copy
from contextlib import closing

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastmoco.configuration import load_config
from fastmoco.data.dataset import open_dataset
from fastmoco.draws.device import permutation
from fastmoco.draws.host import draw_keys
from fastmoco.draws.streams import hashed_order
from fastmoco.moco.queue import UNKNOWN
from fastmoco.pipelines.augment import augment_views
from fastmoco.ranks import ALONE, Ranks
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train import fresh_keys as module
from fastmoco.train.checks import check_config
from fastmoco.train.fresh_keys import FRESH_METRICS, fresh_metrics
from fastmoco.train.number_format import with_precision
from fastmoco.train.settings import TrainConfig
from fastmoco.train.trainer import Trainer
from tests.runs import write_colors
from tests.steps import TINY_RUN, differing

BATCH, ROWS = 8, 28
GROUPS = ("moco.batch_norm_splits=2", "optimizer.learning_rate=0.3")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    with open_dataset(write_colors(tmp_path_factory.mktemp("train"), seed=0, per_class=7)) as found:
        yield found


@pytest.fixture(autouse=True)
def _few_queries(monkeypatch):
    monkeypatch.setattr(module, "QUERIES", 2 * BATCH)


def build(images, *options, ranks=ALONE):
    overrides = [*TINY_RUN, "pipeline.name=beton", "train.epochs=50", "precision=float32", *options]
    cfg = load_config(TrainConfig, overrides)
    device, run = check_config(cfg, ranks), RunFolder(images.path / "none")
    return Trainer(with_precision(cfg, device, run), run, images, device, ranks)


def train(trainer, steps):
    """Take steps; return the crops and draw keys of each, and those of the steps that follow."""
    seen = []
    with closing(trainer.open_loader()) as loader:
        for step in range(steps + 2):
            batch = next(loader)
            seen.append((batch.crops.clone(), batch.draw_key.clone()))
            if step < steps:
                trainer.take(batch, 0.3)
    return seen[:steps], seen[steps:]


def views_of(trainer, crops, draw_key):
    step = trainer.step
    return augment_views(crops, draw_key, step.policy, step.mean, step.std, torch.float32)


@torch.no_grad()
def twin(trainer, seen, following):
    """The same figures from a list of past views, a dense loss and no code of the module."""
    model = copy.deepcopy(trainer.step.model)
    history = [None] * ROWS
    place = 0
    for crops, draw_key in seen:
        views = views_of(trainer, crops, draw_key)
        for view in (views[1], views[0])[: 1 + model.symmetric]:
            for image in view:
                history[place % ROWS] = image
                place += 1
    order = hashed_order(ROWS).tolist()
    wanted = torch.stack([history[row] for row in [*order, *order[:4]]])  # 32: four batches
    wanted = wanted.to(memory_format=torch.channels_last)
    fresh = torch.cat([F.normalize(model.key_encoder(part)) for part in wanted.split(BATCH)])[:ROWS]
    stale = model.queue.keys[order]
    losses, firsts = {"stale": [], "fresh": []}, []
    for crops, draw_key in following:
        first, second = views_of(trainer, crops, draw_key)
        query, places = F.normalize(model.query_encoder(first)), permutation(draw_key)
        keys = torch.empty(BATCH, query.shape[1])
        keys[places] = F.normalize(model.key_encoder(second[places]))
        positive = (query * keys).sum(1, keepdim=True)
        for name, negatives in (("stale", stale), ("fresh", fresh)):
            logits = torch.cat([positive, query @ negatives.T], 1) / model.temperature
            losses[name].append(F.cross_entropy(logits, torch.zeros(BATCH, dtype=torch.int64)))
        firsts += (logits.argmax(1) == 0).tolist()
    return {
        "loss_stale": np.mean(losses["stale"]),
        "loss_fresh": np.mean(losses["fresh"]),
        "accuracy_top1_fresh": 100 * np.mean(firsts),
        "key_drift": (1 - (stale * fresh).sum(1)).mean().item(),
    }


@pytest.mark.parametrize("symmetric", [False, True])
def test_figures_are_those_of_a_plain_twin(images, symmetric):
    trainer = build(images, *GROUPS, f"moco.symmetric={symmetric}".lower())
    seen, following = train(trainer, 5)
    found, expected = fresh_metrics(trainer), twin(trainer, seen, following)
    assert tuple(found) == FRESH_METRICS
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found["key_drift"] > 1e-3  # else old and new keys could be mistaken for each other
    assert abs(found["loss_stale"] - found["loss_fresh"]) > 1e-3


@pytest.mark.parametrize(("options", "ranks"), [(["train.accumulate=2"], ALONE), ([], Ranks(0, 2))])
def test_parts_of_a_batch_are_groups_of_the_fresh_keys_too(images, options, ranks):
    """Two micro-batches, or two ranks, are the groups of a split batch norm, and shuffled so."""
    split, parts = build(images, "moco.batch_norm_splits=2"), build(images, *options, ranks=ranks)
    train(split, 4)
    parts.step.model.load_state_dict(split.step.model.state_dict())
    parts.steps_done = split.steps_done
    found, expected = fresh_metrics(parts), fresh_metrics(split)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("option", ["moco.batch_norm_splits=2", "moco.batch_norm=eman"])
def test_measuring_changes_and_draws_nothing(images, option):
    measured, plain = build(images, option), build(images, option)
    for trainer in (measured, plain):
        train(trainer, 4)
    before = torch.get_rng_state()
    assert fresh_metrics(measured).keys() == set(FRESH_METRICS)
    assert torch.equal(before, torch.get_rng_state())
    for trainer in (measured, plain):
        train(trainer, 1)
    assert differing(measured.step, plain.step) == []


def test_no_more_queries_than_an_epoch_has(images, monkeypatch):
    trainer = build(images, *GROUPS)
    train(trainer, 4)
    monkeypatch.setattr(module, "QUERIES", trainer.steps_per_epoch * BATCH)
    of_an_epoch = fresh_metrics(trainer)
    monkeypatch.setattr(module, "QUERIES", 512)
    assert fresh_metrics(trainer) == of_an_epoch


def test_nothing_is_said_of_rows_whose_images_are_unknown(images):
    trainer = build(images)
    train(trainer, 3)  # 24 of 28 rows
    assert fresh_metrics(trainer) == {}
    assert (trainer.step.model.queue.source[:, 0] == UNKNOWN).sum() == 4
    train(trainer, 1)
    assert fresh_metrics(trainer)


def test_nothing_is_said_of_a_mechanism_without_a_queue(images):
    assert fresh_metrics(build(images, "moco.mechanism=memory_bank")) == {}


@pytest.mark.parametrize(
    ("option", "count"),
    [
        ("moco.batch_norm=shuffled", 4),
        ("moco.batch_norm=synchronized", 8),
        ("moco.objective=binary_nce", 4),  # its normalizer is gathered
    ],
)
def test_one_of_several_ranks_measures_alone(images, monkeypatch, option, count):
    """There is no process group here: a collective would raise an error."""
    trainer = build(images, option, ranks=Ranks(0, 2))
    ids = np.arange(ROWS) % len(images)
    source = torch.from_numpy(np.stack([ids, draw_keys(0, 0, ids)], 1))
    trainer.step.model.queue.source.copy_(source)
    sizes, plain = set(), module.MoCo.embed_keys
    monkeypatch.setattr(
        module.MoCo, "embed_keys", lambda model, view: sizes.add(len(view)) or plain(model, view)
    )
    assert fresh_metrics(trainer).keys() == set(FRESH_METRICS)
    assert sizes == {count}
    assert trainer.step.model.ranks.several
