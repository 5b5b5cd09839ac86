"""Runs with encoders of other kinds than a ResNet: trained, resumed, evaluated."""

import json
import shutil

import pytest
import torch

import fastmoco
from fastmoco import cli
from fastmoco.moco.lab_pair import scaled_lab
from fastmoco.runs.checkpoint import load_checkpoint
from tests.pictures import write_class_folders

OPTIONS = [
    "global_batch_size=8",
    "pipeline.view_size=32",
    "pipeline.center_crop=1.0",
    "moco.dim=8",
    "moco.queue_size=20",
    "optimizer.name=adamw",
    "optimizer.learning_rate=0.002",
    "train.epochs=2",
    "train.max_steps=4",
    "train.compile=never",
    "train.report=false",
    "checkpoint.every_steps=2",
]
CROSS_CHANNEL = [
    "moco.pretext=cross_channel",
    "moco.batch_norm_splits=2",
    "model.encoder=halves:resnet18",
    "model.stem=small_stride2",
    "model.width=8",
]
VIT = ["model.encoder=timm:test_vit", "model.freeze_patch_projection=true"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_class_folders(folder / "images", classes=3, per_class=8)
    target = folder / "images.beton"
    assert cli.main(["convert", str(folder / "images"), str(target)]) == 0
    return target


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(CROSS_CHANNEL, id="cross-channel"),
        pytest.param(VIT, id="vit", marks=pytest.mark.full),
    ],
)
def test_trained_resumed_and_evaluated(dataset, tmp_path, capfd, more):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    data = [f"data.train={dataset}", f"data.test={dataset}"]
    train = ["train", *data, *OPTIONS, *more]
    assert cli.main([*train, f"run_dir={whole}"]) == 0
    shutil.copytree(whole, resumed)
    for file in (resumed / "checkpoints").glob("step-00000004*"):
        file.unlink()
    assert cli.main([*train, f"run_dir={resumed}"]) == 0
    ours, theirs = load_checkpoint(resumed), load_checkpoint(whole)
    assert ours.step == theirs.step == 4
    assert [n for n, t in theirs.tensors.items() if not torch.equal(t, ours.tensors[n])] == []
    capfd.readouterr()
    knn = [f"data.train={dataset}", "leave_one_out=true", "k=3", "baselines=false"]
    assert cli.main(["knn", str(whole), *knn, "--json"]) == 0
    assert 0 <= json.loads(capfd.readouterr().out)["top1"] <= 100


def test_features_of_a_pair_are_both_halves_of_rgb_images(dataset, tmp_path):
    run = tmp_path / "run"
    data = [f"data.train={dataset}", f"run_dir={run}", "train.max_steps=1"]
    arguments = [*OPTIONS, *CROSS_CHANNEL, *data]
    assert cli.main(["train", *arguments]) == 0
    encoder = fastmoco.load_encoder(run)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    lab = scaled_lab(images / 255)
    expected = [encoder.backbone.lightness(lab[:, :1]), encoder.backbone.color(lab[:, 1:])]
    torch.testing.assert_close(encoder(images), torch.cat(expected, dim=1))
    assert encoder(images).shape == (2, encoder.backbone.feature_dim) == (2, 64)


def test_an_encoder_that_cannot_be_leaves_no_run_folder(dataset, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [f"data.train={dataset}", f"run_dir={run}", *OPTIONS]
    assert cli.main(["train", *arguments, "moco.pretext=cross_channel"]) == 2
    assert capsys.readouterr().err == (
        "fastmoco: moco.pretext=cross_channel needs a pair of encoders, got "
        "model.encoder=resnet50; set model.encoder=halves:resnet50\n"
    )
    assert not run.exists()
