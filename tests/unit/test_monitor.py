"""The kNN monitor with and without a test set, and its baselines."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastmoco.data.dataset import open_dataset
from fastmoco.data.settings import DataConfig
from fastmoco.errors import UsageError
from fastmoco.evaluate import features
from fastmoco.evaluate import monitor as module
from fastmoco.evaluate.baselines import read_baselines, write_baselines
from fastmoco.evaluate.frozen_encoder import PIXELS, load_encoder
from fastmoco.evaluate.knn import knn_accuracy
from fastmoco.evaluate.monitor import KnnMonitor
from fastmoco.evaluate.rankme import effective_rank
from fastmoco.evaluate.settings import MonitorConfig
from fastmoco.pipelines import resident_loader
from fastmoco.ranks import Ranks
from tests.pictures import write_class_folders
from tests.ranks import run_ranks
from tests.runs import write_colors, write_run

MONITOR = MonitorConfig(every_epochs=2, k=3)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("train"), seed=0, per_class=6)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(write_run(tmp_path_factory.mktemp("run")))


def test_without_a_test_set_images_classify_each_other(images, encoder):
    with KnnMonitor(MONITOR, DataConfig(train=images), 8) as monitor:
        assert [monitor.is_due(epoch) for epoch in (1, 2)] == [False, True]
        found = monitor.baselines(encoder).knn_top1_pixels
    allowed = replace(MONITOR, allow_overlap=True)
    with KnnMonitor(allowed, DataConfig(train=images, test=images), 8) as seen:
        assert seen.baselines(encoder).knn_top1_pixels >= found  # each votes for itself
    # Colors are classes here; an image's own class has five others to vote.
    assert found > 80


def test_a_single_image_of_a_class_is_always_wrong(tmp_path, encoder):
    """Leave-one-out: nothing of its class is left to vote."""
    write_class_folders(tmp_path, classes=4, per_class=1)
    with KnnMonitor(MonitorConfig(every_epochs=1, k=1), DataConfig(train=tmp_path), 4) as monitor:
        assert monitor.measure(encoder).knn_top1 == 0.0


def test_the_images_are_bounded_and_the_same_each_time(images, encoder, monkeypatch):
    monkeypatch.setattr(module, "MOST_IMAGES", 9)
    parts, plain = [], module.shared_features

    def recorded(encoder, dataset, request, ranks):
        parts.append(request.sample_ids.tolist())
        return plain(encoder, dataset, request, ranks)

    monkeypatch.setattr(module, "shared_features", recorded)
    for _ in range(2):
        with KnnMonitor(MONITOR, DataConfig(train=images), 8) as monitor:
            found = monitor.baselines(encoder)
    assert parts[0] == parts[2]
    assert (len(set(parts[0])), found.num_images) == (9, 9)
    assert np.bincount(np.array(parts[0]) // 6).tolist() == [3, 3, 3]  # of each class


def test_baselines_are_of_pixels_and_of_the_start(images, encoder, tmp_path):
    data, path = DataConfig(train=images, test=images), tmp_path / "baselines.json"
    with KnnMonitor(replace(MONITOR, allow_overlap=True), data, 8) as monitor:
        found = monitor.baselines(encoder)
        assert found.knn_top1_start == pytest.approx(monitor.measure(encoder).knn_top1)
        (train, _) = monitor._features(encoder, PIXELS)
    assert found.knn_top1_pixels == knn_accuracy(train, train, k=3, temperature=0.1)[0]
    assert "on 18 images of data.test" in found.to_text()
    write_baselines(path, found)
    assert read_baselines(path) == found
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"baselines\.json is damaged .*; remove it"):
        read_baselines(path)


def test_it_reads_by_the_loader_of_the_run(images, tmp_path, encoder, monkeypatch):
    """Training's decoded images are used, those of data.test are decoded once and then kept."""
    other = write_colors(tmp_path / "test", seed=9, per_class=3)
    decoded, decode = [], resident_loader._decode_set
    monkeypatch.setattr(
        resident_loader,
        "_decode_set",
        lambda dataset, threads: decoded.append(dataset.path) or decode(dataset, threads),
    )
    with KnnMonitor(MONITOR, DataConfig(train=images, test=other), 8) as monitor:
        chosen = monitor.measure(encoder)
        assert len(decoded) == 2  # auto keeps small images, for this measurement only
        with open_dataset(images) as dataset:
            training = resident_loader.resident_set(dataset, 1, encoder.mean.device)
            monitor.read_by("resident", 1)
            decoded.clear()
            assert monitor.baselines(encoder).knn_top1_start == chosen.knn_top1
            assert not monitor._kept
            decoded.clear()
            assert [monitor.measure(encoder) for _ in range(3)] == [chosen] * 3
            assert decoded == [other]
            del training
    assert not resident_loader._open_sets


def test_a_test_set_that_the_loader_cannot_read_is_read_by_beton(images, encoder, monkeypatch):
    names, extract = [], module.shared_features

    def recorded(encoder, dataset, request, ranks):
        names.append(request.loader)
        return extract(encoder, dataset, request, ranks)

    monkeypatch.setattr(module, "shared_features", recorded)
    with KnnMonitor(MONITOR, DataConfig(train=images), 8) as monitor:
        chosen = monitor.measure(encoder)
        monitor.read_by("resident", 1)
        monkeypatch.setattr(resident_loader, "free_bytes", lambda _: 0)
        assert monitor.measure(encoder) == chosen
    assert names == ["auto", "beton"]


def test_it_needs_no_labels_if_it_is_off(tmp_path):
    write_class_folders(tmp_path / "in", classes=1, per_class=2)
    flat = tmp_path / "in" / "class_0"
    with KnnMonitor(MonitorConfig(), DataConfig(train=flat), 8) as monitor:
        assert not monitor.is_on
        assert not monitor.is_due(1)


def test_without_labels_only_the_effective_rank_is_measured(tmp_path, encoder):
    write_class_folders(tmp_path / "in", classes=1, per_class=6)
    flat = tmp_path / "in" / "class_0"
    with KnnMonitor(MONITOR, DataConfig(train=flat), 8) as monitor:
        found = monitor.measure(encoder)
        assert (monitor.is_on, monitor.has_labels, found.knn_top1) == (True, False, None)
        (features,) = monitor._features(encoder, "backbone")
    assert 1 < found.rankme <= 6
    assert found.rankme == pytest.approx(effective_rank(features.vectors))
    with pytest.raises(UsageError, match=r"data\.train has images without a label"):
        KnnMonitor(MONITOR, DataConfig(train=flat, test=tmp_path / "in"), 8)


def test_measuring_changes_no_generator(images, encoder):
    with KnnMonitor(MONITOR, DataConfig(train=images), 8) as monitor:
        before = torch.get_rng_state()
        monitor.measure(encoder)
        assert torch.equal(before, torch.get_rng_state())


def measured_by_all(ranks, images, run):
    encoder = load_encoder(run)
    shapes, plain = [], module.shared_features

    def noting(encoder, dataset, request, ranks):
        found = plain(encoder, dataset, request, ranks)
        shapes.append(None if found is None else (found.vectors, found.labels))
        return found

    module.shared_features = noting
    with KnnMonitor(MONITOR, DataConfig(train=images), 4) as monitor:
        found = monitor.measure(encoder, ranks)
    return None if found is None else tuple(found), shapes[0]


@pytest.mark.full
def test_ranks_that_share_the_images_measure_what_one_does(images, tmp_path):
    """18 images on four ranks: 5, 5, 4 and 4. Other batches may round otherwise."""
    run = write_run(tmp_path)
    (first, shared), *others = run_ranks(measured_by_all, images, run, world_size=4)
    assert others == [(None, None)] * 3
    with KnnMonitor(MONITOR, DataConfig(train=images), 4) as monitor:
        alone = monitor.measure(load_encoder(run))
        whole = monitor._features(load_encoder(run), MONITOR.features.value)[0]
    torch.testing.assert_close(shared[0], whole.vectors, rtol=1e-5, atol=1e-5)
    assert torch.equal(shared[1], whole.labels)
    assert first == pytest.approx(tuple(alone), rel=1e-4)


def test_fewer_images_than_ranks_are_measured_by_the_first(images, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "gather_on_first", None)  # no rank waits for another
    encoder = load_encoder(write_run(tmp_path))
    with open_dataset(str(images)) as dataset:
        request = features.FeatureRequest(features="backbone", batch_size=4)
        found = [
            features.shared_features(encoder, dataset, request, Ranks(rank, 19)) for rank in (0, 1)
        ]
    assert found[1] is None
    assert len(found[0].vectors) == 18
