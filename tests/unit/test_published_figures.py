"""Figures of the write-ups that tables set ours beside, and settings outside the presets."""

from operator import attrgetter

import pytest

from fastmoco.configuration import load_config
from fastmoco.detection.settings import DetectConfig
from fastmoco.evaluate.settings import LinearConfig
from fastmoco.labeling.settings import RequestConfig
from fastmoco.pipelines.policies import IMAGENETTE_POOL
from fastmoco.reproduce.definition import load_definition
from fastmoco.reproduce.settings import Scale
from fastmoco.reproduce.voc import PUBLISHED
from tests.unit.test_presets import plain

V1, V2 = "arXiv:1911.05722", "arXiv:2003.04297"
TEMPERATURES = ("0.07", "0.1", "0.2", "0.3", "0.4", "0.5")
LINEAR_HEAD = ("60.6", "60.7", "59.0", "58.2", "57.2", "56.4")
MLP_HEAD = ("62.9", "64.9", "66.2", "65.7", "65.0", "64.3")
SWEEPS = {
    "momentum": (
        V1,
        {"0": "fails", "0.9": "55.2", "0.99": "57.8", "0.999": "59.0", "0.9999": "58.9"},
    ),
    "temperature": (
        V2,
        {f"{t},linear": top1 for t, top1 in zip(TEMPERATURES, LINEAR_HEAD, strict=True)}
        | {f"{t},mlp": top1 for t, top1 in zip(TEMPERATURES, MLP_HEAD, strict=True)},
    ),
    "dictionaries": (V1, {"moco,65536": "60.6", "memory_bank,65536": "58.0"}),
    "encoders": (
        V1,
        {
            "resnet50": "60.6",
            "resnext50": "63.9",
            "resnet50 width 2x": "65.4",
            "resnet50 width 4x": "68.6",
        },
    ),
    "epochs": (V2, {"200": "67.5", "800": "71.1"}),
    "v2": (
        V2,
        {
            "v1": "60.6; 81.5 / 55.9 / 62.6",
            "a mlp": "66.2; 82.0 / 56.4 / 62.6",
            "b aug+": "63.4; 82.2 / 56.8 / 63.2",
            "c mlp aug+": "67.3; 82.5 / 57.2 / 63.9",
            "d mlp aug+ cos": "67.5; 82.4 / 57.0 / 63.6",
            "e 4x epochs": "71.1; 82.5 / 57.4 / 64.0",
        },
    ),
    "memory": (
        V2,
        {
            "moco,256": "5.0 GB, 53 h",
            "end_to_end,256": "7.4 GB, 65 h",
            "end_to_end,4096": "93 GB (estimated)",
        },
    ),
    "overview": (
        V2,
        {
            "SimCLR b256 200 epochs": "61.9; 7.4 GB, 65 h",
            "SimCLR b8192 200 epochs": "66.6",
            "SimCLR b4096 1000 epochs": "69.3; 93 GB (estimated)",
            "MoCo v2 b256 200 epochs": "67.5; 5.0 GB, 53 h",
            "MoCo v2 b256 800 epochs": "71.1",
        },
    ),
    "competition96": ("a competition's final report", {"with": "15.98", "without": "2.1"}),
    "cifar10_moco": ("course report", {"as reported": "slightly over 20"}),
}
"""Source and published value of each run."""
VOC = {
    ("dc5", "random"): (64.4, 37.9, 38.6),
    ("dc5", "supervised, ImageNet"): (81.4, 54.0, 59.1),
    ("dc5", "end-to-end, ImageNet"): (79.2, 52.0, 56.6),
    ("dc5", "memory bank, ImageNet"): (79.8, 52.9, 57.9),
    ("dc5", "MoCo v1, ImageNet"): (81.1, 54.6, 59.9),
    ("dc5", "MoCo v1, Instagram 1B"): (81.6, 55.5, 61.2),
    ("c4", "random"): (60.2, 33.8, 33.1),
    ("c4", "supervised, ImageNet"): (81.3, 53.5, 58.8),
    ("c4", "end-to-end, ImageNet"): (80.4, 54.6, 60.3),
    ("c4", "memory bank, ImageNet"): (80.6, 54.9, 60.6),
    ("c4", "MoCo v1, ImageNet"): (81.5, 55.9, 62.6),
    ("c4", "MoCo v1, Instagram 1B"): (82.2, 57.2, 63.7),
    ("c4", "MoCo v2 (a): MLP head"): (82.0, 56.4, 62.6),
    ("c4", "MoCo v2 (b): augmentation"): (82.2, 56.8, 63.2),
    ("c4", "MoCo v2 (c): both"): (82.5, 57.2, 63.9),
    ("c4", "MoCo v2 (d): with cosine"): (82.4, 57.0, 63.6),
    ("c4", "MoCo v2 (e): 800 epochs"): (82.5, 57.4, 64.0),
}
"""AP50, AP and AP75 after 24,000 iterations on trainval07+12, tested on test2007."""
SETTINGS = {
    "request": (  # the competition report: 40 samples of 12,800, ranked by accuracy and loss
        RequestConfig,
        [],
        {"samples": 40, "sample_size": 12_800, "rank_by": "both"},
    ),
    "voc": (
        DetectConfig,
        ["recipe=voc"],
        {
            "train.steps": 24_000,
            "arch": "c4",
            "data.train_years": "07+12",
            "data.train_split": "trainval",
            "data.test_years": "07",
            "data.test_split": "test",
        },
    ),
    "official": (  # main_lincls.py
        LinearConfig,
        ["protocol=official"],
        {
            "global_batch_size": 256,
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 30.0,
            "optimizer.weight_decay": 0.0,
            "optimizer.schedule": "multistep",
            "optimizer.milestones": [60, 80],
            "optimizer.milestone_factor": 0.1,
            "train.epochs": 100,
        },
    ),
    "competition": (  # its classifier sees RandomResizedCrop, and is tested on a center crop
        LinearConfig,
        ["protocol=competition"],
        {
            "policy.crop_scale": [0.08, 1.0],
            "optimizer.milestones": [60, 80, 120, 160],
            "optimizer.milestone_factor": 0.1,
        },
    ),
}
POOL = "none blur gaussian_blur channel_shuffle coarse_dropout cutout rain gaussian_noise"
POOL += " hue_saturation fog flip color_jitter vertical_flip sharpen brightness_contrast"


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_sets_the_published_values_beside_ours(name):
    source, values = SWEEPS[name]
    definition = load_definition(name)
    assert dict(definition.published.values) == values
    assert source in definition.source


def test_the_momentum_sweep_has_the_papers_queue():
    """K = 4,096 in the text of section 4.1."""
    definition = load_definition("momentum").at(Scale.full)
    assert "moco.queue_size=4096" in definition.settings


def test_detection_sets_the_published_rows_beside_ours():
    assert {(row.arch, row.backbone): row.figures for row in PUBLISHED} == VOC
    assert all(row.source == (V2 if "v2" in row.backbone else V1) for row in PUBLISHED)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_outside_the_presets_are_published_too(name):
    schema, options, facts = SETTINGS[name]
    cfg = load_config(schema, options)
    assert {key: plain(attrgetter(key)(cfg)) for key in facts} == facts


def test_the_pool_has_the_operations_of_the_imagenette_report():
    assert [op.value for op in IMAGENETTE_POOL] == POOL.split()
