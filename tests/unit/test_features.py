from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fastmoco.data.dataset import open_dataset
from fastmoco.evaluate import feature_cache
from fastmoco.evaluate.features import (
    FeatureRequest,
    dataset_features,
    extract_features,
    feature_batches,
    features_folder,
)
from fastmoco.evaluate.frozen_encoder import FrozenEncoder
from fastmoco.moco.encoder import Encoder
from fastmoco.moco.encoders import build_encoder
from fastmoco.moco.settings import ModelConfig, Precision, Stem
from fastmoco.pipelines.settings import PipelineConfig
from tests.pictures import write_class_folders

REQUEST = FeatureRequest(features="backbone", batch_size=5)


def frozen(seed=0):
    torch.manual_seed(seed)
    backbone = build_encoder(ModelConfig(encoder="resnet18", stem=Stem.small_stride2, width=2))
    encoder = Encoder(backbone, nn.Linear(backbone.feature_dim, 3))
    pipeline = PipelineConfig(view_size=16, center_crop=0.8)
    return FrozenEncoder(encoder, pipeline, mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_class_folders(folder, classes=3, per_class=4)
    return open_dataset(folder)


def test_every_image_has_its_row_whatever_the_batch(dataset):
    encoder = frozen()
    whole = extract_features(encoder, dataset, replace(REQUEST, batch_size=12))
    parts = extract_features(encoder, dataset, REQUEST)  # 5, 5, 2
    assert whole.vectors.shape == (12, 16)
    assert whole.labels.tolist() == dataset.labels.tolist()
    torch.testing.assert_close(parts.vectors, whole.vectors, atol=1e-5, rtol=1e-4)
    ids = np.array([7, 0, 11])
    some = extract_features(encoder, dataset, replace(REQUEST, sample_ids=ids))
    torch.testing.assert_close(some.vectors, whole.vectors[ids], atol=1e-5, rtol=1e-4)
    assert some.labels.tolist() == dataset.labels[ids].tolist()


def test_the_kinds_of_vectors(dataset):
    encoder = frozen()
    backbone = extract_features(encoder, dataset, REQUEST).vectors
    embedding = extract_features(encoder, dataset, replace(REQUEST, features="embedding")).vectors
    torch.testing.assert_close(embedding, encoder.head(backbone), atol=1e-5, rtol=1e-4)
    pixels = extract_features(encoder, dataset, replace(REQUEST, features="pixels")).vectors
    assert pixels.shape == (12, 3 * 16 * 16)
    images = pixels.view(12, 3, 16, 16) * encoder.std[:, None, None] + encoder.mean[:, None, None]
    again = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(encoder(again), backbone, atol=1e-4, rtol=1e-3)
    halves = extract_features(encoder, dataset, replace(REQUEST, precision=Precision.bf16)).vectors
    assert halves.dtype == torch.float32
    assert 0 < (halves - backbone).abs().max() < 0.1 * backbone.abs().max()


def test_large_crops_give_small_pixels(dataset):
    encoder = frozen()
    encoder.eval_size = 224
    pixels = extract_features(encoder, dataset, replace(REQUEST, features="pixels")).vectors
    assert pixels.shape == (12, 3 * 32 * 32)


@pytest.fixture
def counted(monkeypatch):
    """Counts how often features are computed."""
    calls = []
    plain = feature_batches

    def counting(*arguments):
        calls.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr("fastmoco.evaluate.features.feature_batches", counting)
    return calls


def test_they_are_computed_once(dataset, tmp_path, counted):
    first = dataset_features(frozen(), dataset, REQUEST, tmp_path / "features")
    second = dataset_features(frozen(), dataset, REQUEST, tmp_path / "features")
    assert (first.reused, second.reused, len(counted)) == (False, True, 1)
    assert torch.equal(first.vectors, second.vectors)
    assert torch.equal(second.vectors, extract_features(frozen(), dataset, REQUEST).vectors)
    assert second.labels.tolist() == dataset.labels.tolist()
    second.vectors[0] = 0  # a private map
    third = dataset_features(frozen(), dataset, REQUEST, tmp_path / "features")
    assert torch.equal(first.vectors, third.vectors)


def test_what_changes_them_is_not_confused(dataset, tmp_path, counted):
    encoder = frozen()
    dataset_features(encoder, dataset, REQUEST, tmp_path)
    trained = frozen()
    with torch.no_grad():
        trained.backbone.layer4[1].bn2.running_mean[3] += 0.5
    other_crop = frozen()
    other_crop.center_crop = 1.0
    for one, request in (
        (trained, REQUEST),
        (other_crop, REQUEST),
        (encoder, replace(REQUEST, features="embedding")),
        (encoder, replace(REQUEST, precision=Precision.bf16)),
    ):
        assert not dataset_features(one, dataset, request, tmp_path).reused
    assert dataset_features(encoder, dataset, REQUEST, tmp_path).reused
    assert len(counted) == 5


@pytest.mark.parametrize("harm", ["flip", "cut", "no json", "json", "other shape"])
def test_damaged_ones_are_computed_anew(dataset, tmp_path, counted, harm):
    whole = dataset_features(frozen(), dataset, REQUEST, tmp_path).vectors.clone()
    (rows,), (record,) = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
    data = bytearray(rows.read_bytes())
    if harm == "flip":
        data[-5] ^= 1
    elif harm == "cut":
        del data[-4:]
    elif harm == "no json":
        record.unlink()
    elif harm == "json":
        record.write_text("[1]")
    else:
        np.save(rows, whole.numpy()[:, :8])
        data = bytearray(rows.read_bytes())
    rows.write_bytes(data)
    again = dataset_features(frozen(), dataset, REQUEST, tmp_path)
    assert not again.reused
    assert torch.equal(again.vectors, whole)
    assert dataset_features(frozen(), dataset, REQUEST, tmp_path).reused
    assert len(counted) == 2


def test_a_folder_that_cannot_be_written_is_done_without(dataset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="features are not kept in .*file"):
        result = dataset_features(frozen(), dataset, REQUEST, tmp_path / "file" / "features")
    assert result.vectors.shape == (12, 16)

    def refused(*_):
        raise PermissionError(13, "permission denied")

    monkeypatch.setattr("fastmoco.files.fcntl.flock", refused)  # root may write anywhere
    assert not dataset_features(frozen(), dataset, REQUEST, tmp_path / "other").reused


def test_a_full_disk_is_done_without(dataset, tmp_path, monkeypatch):
    usage = feature_cache.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.warns(UserWarning, match="not kept.*0.0 GB are needed"):
        result = dataset_features(frozen(), dataset, REQUEST, tmp_path)
    assert torch.equal(result.vectors, extract_features(frozen(), dataset, REQUEST).vectors)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_where_a_runs_features_are(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000001.json"
    assert features_folder(checkpoint) == tmp_path / "run" / "features"
    assert features_folder(tmp_path) == tmp_path / "features"
    assert features_folder(tmp_path / "weights.safetensors") == tmp_path / "features"
