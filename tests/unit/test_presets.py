"""What each preset keeps of the system that it reproduces: an edit that departs from it fails."""

from enum import Enum
from operator import attrgetter
from pathlib import Path

import pytest
import torch

from fastmoco import configs
from fastmoco.configuration import load_config
from fastmoco.data.settings import DataConfig
from fastmoco.evaluate.settings import LinearConfig
from fastmoco.moco.batchnorm import resolve_batch_norm
from fastmoco.moco.build import build_query_encoder
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.ranks import Ranks
from fastmoco.train.checks import check_config
from fastmoco.train.settings import TrainConfig

SGD = {"optimizer.name": "sgd", "optimizer.sgd_momentum": 0.9}
JITTER = {
    "policy.jitter_probability": 0.8,
    "policy.brightness": 0.4,
    "policy.contrast": 0.4,
    "policy.saturation": 0.4,
    "policy.hue": 0.1,
    "policy.grayscale_probability": 0.2,
    "policy.flip_probability": 0.5,
}
NO_BLUR = {"policy.crop_scale": [0.08, 1.0], "policy.blur_probability": 0.0}
BLUR = {"policy.blur_probability": 0.5, "policy.blur_sigma": [0.1, 2.0]}
KNN = {"monitor.k": 200, "monitor.temperature": 0.1}
# Published statistics: main_moco.py of MoCo and MoCo v3; the notebook; the Imagenette report.
IMAGENET_PIXELS = {
    "pipeline.channel_mean": [0.485, 0.456, 0.406],
    "pipeline.channel_std": [0.229, 0.224, 0.225],
}
IMAGENET = {
    **IMAGENET_PIXELS,
    "model.encoder": "resnet50",
    "model.stem": "imagenet",
    "model.width": 64,
    "pipeline.view_size": 224,
    "policy.crop_scale": [0.2, 1.0],
    "global_batch_size": 256,
    "moco.mechanism": "moco",
    "moco.queue_size": 65536,
    "moco.momentum": 0.999,
    "moco.dim": 128,
    "moco.symmetric": False,
    **SGD,
    "optimizer.learning_rate": 0.03,
    "optimizer.weight_decay": 1e-4,
    "train.epochs": 200,
}
V1 = {
    **IMAGENET,
    "moco.temperature": 0.07,
    "moco.head": "linear",
    "optimizer.schedule": "multistep",
    "optimizer.milestones": [120, 160],
    "optimizer.milestone_factor": 0.1,
    "policy.grayscale_probability": 0.2,
    "policy.grayscale_first": True,
    "policy.jitter_probability": 1.0,
    "policy.brightness": 0.4,
    "policy.contrast": 0.4,
    "policy.saturation": 0.4,
    "policy.hue": 0.4,
    "policy.flip_probability": 0.5,
    "policy.blur_probability": 0.0,
}
V2 = {
    **IMAGENET,
    **JITTER,
    **BLUR,
    "moco.temperature": 0.2,
    "moco.head": "mlp",
    "moco.head_hidden_dim": 0,
    "optimizer.schedule": "cosine_per_epoch",  # main_moco.py, adjust_learning_rate
}
UNLIKE = {
    **JITTER,
    "policy.saturation": 0.2,
    "policy.blur_probability": 1.0,
    "policy.solarize_probability": 0.0,
    "policy.solarize_threshold": 0.5,
    "policy.second_view.blur_probability": 0.1,
    "policy.second_view.solarize_probability": 0.2,
}
V3 = {  # moco-v3: CONFIG.md's commands for ResNet-50, main_moco.py's defaults, builder.py's heads
    **UNLIKE,
    **IMAGENET_PIXELS,
    "model.encoder": "resnet50",
    "model.zero_init_residual": True,
    "policy.crop_scale": [0.2, 1.0],
    "moco.mechanism": "moco_v3",
    "moco.dim": 256,
    "moco.hidden_dim": 4096,
    "moco.v3_heads": "resnet",
    "moco.momentum": 0.99,
    "moco.final_momentum": None,  # --moco-m-cos: to 1
    "moco.temperature": 1.0,
    "optimizer.name": "lars",
    "optimizer.learning_rate": 0.3,
    "optimizer.scale_learning_rate": True,
    "optimizer.weight_decay": 1e-6,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_epochs": 10,
    "optimizer.cosine_after_warmup": True,
    "train.epochs": 300,
}
CIFAR = {
    "model.encoder": "resnet18",
    "model.width": 64,
    "pipeline.view_size": 32,
    "pipeline.center_crop": 1.0,
    "moco.mechanism": "moco",
    **SGD,
    **JITTER,
    **NO_BLUR,
}
COLAB = {
    **CIFAR,
    **KNN,
    "pipeline.channel_mean": [0.4914, 0.4822, 0.4465],
    "pipeline.channel_std": [0.2023, 0.1994, 0.2010],
    "model.stem": "small",
    "global_batch_size": 512,
    "optimizer.learning_rate": 0.06,
    "optimizer.scale_learning_rate": False,
    "optimizer.weight_decay": 5e-4,
    "optimizer.schedule": "cosine_from_1",
    "optimizer.warmup_epochs": 0,
    "moco.queue_size": 4096,
    "moco.momentum": 0.99,
    "moco.temperature": 0.1,
    "moco.head": "linear",
    "moco.dim": 128,
    "moco.batch_norm_splits": 8,
    "monitor.features": "embedding",
    "train.epochs": 200,
}
LIGHTLY = {
    **SGD,
    **JITTER,
    **KNN,
    "policy.crop_scale": [0.08, 1.0],
    **IMAGENET_PIXELS,
    "moco.queue_size": 4096,
    "moco.momentum": 0.99,
    "moco.temperature": 0.1,
    "moco.head": "mlp",
    "moco.dim": 128,
    "moco.symmetric": True,
    "optimizer.scale_learning_rate": True,
    "optimizer.weight_decay": 1e-3,  # of the sum: the mean's is half
    "optimizer.schedule": "cosine_per_epoch",
    "monitor.features": "backbone",
    "train.epochs": 200,
}
IMAGENETTE = {
    "model.encoder": "resnet50",
    "model.stem": "imagenet",
    "pipeline.view_size": 128,
    "moco.head": "mlp",
    "moco.head_hidden_dim": 512,
    "moco.dim": 128,
    "moco.queue_size": 4096,
    "moco.momentum": 0.999,
    "moco.temperature": 0.07,
    "global_batch_size": 256,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule": "constant",
    "policy.pool_draws": 2,
    "policy.pool_probability": 0.6,
    "policy.flip_probability": 0.0,
    "pipeline.channel_mean": [0.4661, 0.4581, 0.4292],
    "pipeline.channel_std": [0.2382, 0.2315, 0.2394],
    "train.epochs": 1000,
}
COMPETITION = {
    **JITTER,
    **BLUR,
    "model.encoder": "resnet50",
    "pipeline.view_size": 96,
    "global_batch_size": 256,  # this, the rate, T and C are MoCo v2's
    "optimizer.learning_rate": 0.03,
    "optimizer.weight_decay": 1e-4,
    "moco.temperature": 0.2,
    "moco.dim": 128,
    "moco.head": "mlp",
    "moco.queue_size": 2048,
    "moco.momentum": 0.99,
    "moco.batch_norm": "shuffled",
    "optimizer.schedule": "cosine",
    "train.epochs": 100,
}
COURSE = {
    "global_batch_size": 64,
    "model.encoder": "resnet50",
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.03,
    "train.epochs": 20,
}
CMC = {  # HobbitLong/CMC, train_moco_ins.py, under the report's batch and epochs
    **COURSE,
    **IMAGENET_PIXELS,
    **SGD,
    "moco.objective": "binary_nce",
    "moco.head": "linear",
    "moco.dim": 128,
    "moco.queue_size": 16384,
    "moco.momentum": 0.999,
    "moco.temperature": 0.07,
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule": "multistep",
    "optimizer.milestones": [120, 160, 200],
    "optimizer.milestone_factor": 0.1,
    "policy.crop_scale": [0.2, 1.0],
    "policy.grayscale_probability": 0.2,
    "policy.grayscale_first": True,
    "policy.jitter_probability": 1.0,
    "policy.brightness": 0.4,
    "policy.contrast": 0.4,
    "policy.saturation": 0.4,
    "policy.hue": 0.4,
    "policy.flip_probability": 0.5,
}
RECIPES = {
    "moco_v1": V1,
    "moco_v1_1gpu": {**V1, "moco.batch_norm_splits": 8},
    "moco_v2": V2,
    "moco_v2_1gpu": {**V2, "moco.batch_norm_splits": 8},
    "moco_v3": {**V3, "global_batch_size": 4096},
    "moco_v3_100": {**V3, "optimizer.learning_rate": 0.6, "train.epochs": 100},
    "moco_v3_1000": {
        **V3,
        "moco.momentum": 0.996,
        "optimizer.weight_decay": 1.5e-6,
        "train.epochs": 1000,
    },
    "moco_v3_1gpu": {**V3, "global_batch_size": 1024},
    "moco_v3_vit": {
        **UNLIKE,
        **IMAGENET_PIXELS,
        "policy.crop_scale": [0.08, 1.0],
        "moco.v3_heads": "vit",
        "model.freeze_patch_projection": True,  # arXiv:2104.02057, section 4.2
        "global_batch_size": 4096,
        "moco.momentum": 0.99,
        "moco.temperature": 0.2,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 1.5e-4,
        "optimizer.scale_learning_rate": True,
        "optimizer.weight_decay": 0.1,
        "optimizer.warmup_epochs": 40,
        "train.epochs": 300,
    },
    "fast_moco": {  # Fast-MoCo: config.yaml of 100 epochs, and the defaults of its heads
        **JITTER,
        **BLUR,
        **IMAGENET_PIXELS,
        **SGD,
        "policy.crop_scale": [0.2, 1.0],
        "model.encoder": "resnet50",
        "model.zero_init_residual": True,
        "global_batch_size": 512,
        "moco.mechanism": "fast_moco",
        "moco.dim": 2048,
        "moco.hidden_dim": 2048,
        "moco.momentum": 0.99,
        "moco.final_momentum": None,  # constant
        "moco.temperature": 1.0,
        "optimizer.learning_rate": 0.1,
        "optimizer.scale_learning_rate": False,
        "optimizer.weight_decay": 1e-4,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_epochs": 1,
        "optimizer.cosine_after_warmup": True,
        "optimizer.clip_gradient_norm": 1.0,
        "train.epochs": 100,
    },
    "simclr": {
        "moco.mechanism": "end_to_end",
        "moco.temperature": 0.1,
        "moco.dim": 128,
        "moco.head": "mlp_norm",
        "pipeline.channel_mean": [0.0, 0.0, 0.0],  # data_util.py only clips to 0..1
        "pipeline.channel_std": [1.0, 1.0, 1.0],
        "optimizer.cosine_after_warmup": True,
        "optimizer.name": "lars",
        "optimizer.learning_rate": 0.3,
        "optimizer.scale_learning_rate": True,
        "optimizer.weight_decay": 1e-6,
        "optimizer.warmup_epochs": 10,
        "optimizer.schedule": "cosine",
        "global_batch_size": 4096,
        "train.epochs": 100,
        "policy.crop_scale": [0.08, 1.0],
        "policy.flip_probability": 0.5,
        "policy.brightness": 0.8,
        "policy.contrast": 0.8,
        "policy.saturation": 0.8,
        "policy.hue": 0.2,
        "policy.jitter_probability": 0.8,
        "policy.grayscale_probability": 0.2,
        "policy.blur_probability": 0.5,
    },
    "cifar10_colab": {**COLAB, "moco.symmetric": False},
    "cifar10_colab_symmetric": {**COLAB, "moco.symmetric": True},
    "cifar10_lightly": {
        **CIFAR,
        **LIGHTLY,
        "model.stem": "small",
        "global_batch_size": 128,
        "moco.head_hidden_dim": 0,
        "moco.batch_norm_splits": 8,
        "optimizer.learning_rate": 0.06,  # x 128/256: half of the mean's 0.06
    },
    "cifar10_solo": {
        **CIFAR,
        "model.stem": "small_pad2",
        "global_batch_size": 256,
        "moco.head": "mlp",
        "moco.head_hidden_dim": 2048,
        "moco.dim": 256,
        "moco.queue_size": 32768,
        "moco.momentum": 0.99,
        "moco.final_momentum": 0.999,
        "moco.temperature": 0.2,
        "moco.symmetric": True,
        "optimizer.learning_rate": 0.15,  # of the sum: the mean's is twice
        "optimizer.weight_decay": 2e-4,  # likewise half
        "optimizer.schedule": "cosine",
        "optimizer.warmup_epochs": 10,
        "train.epochs": 1000,
    },
    "imagenette_lightly": {
        **LIGHTLY,
        **BLUR,
        "model.encoder": "resnet18",
        "model.stem": "imagenet",
        "pipeline.view_size": 128,
        "global_batch_size": 256,
        "moco.head_hidden_dim": 2048,
        "moco.batch_norm": "plain",
        "optimizer.learning_rate": 0.03,  # half of the mean's 0.06
    },
    "imagenette": {**IMAGENETTE, "policy.crop_scale": [1.0, 1.0]},
    "imagenette_crop": {**IMAGENETTE, "policy.crop_scale": [0.2, 1.0]},
    "competition96": {**COMPETITION, "policy.crop_scale": [0.2, 1.0]},
    "competition96_no_crop": {**COMPETITION, "policy.crop_scale": [1.0, 1.0]},
    "cifar10_moco": {**CMC, "pipeline.view_size": 224, "model.stem": "imagenet"},
    "cifar10_moco_32": {**CMC, "pipeline.view_size": 32, "model.stem": "small"},
    "cifar10_moco_mended": {
        **JITTER,
        "global_batch_size": 64,
        "model.encoder": "resnet50",
        "pipeline.view_size": 32,
        "policy.blur_probability": 0.0,
        "moco.queue_size": 4096,  # input, stem and dictionary are the notebook's
        "moco.momentum": 0.99,
        "moco.temperature": 0.1,
    },
    "mnist": {**COURSE, "pipeline.view_size": 28, "policy.flip_probability": 0.0},
    "tiny_imagenet": {**COURSE, "pipeline.view_size": 64},
}


def plain(value):
    return value.value if isinstance(value, Enum) else value


@pytest.mark.parametrize("name", RECIPES)
def test_a_preset_keeps_its_recipe(tmp_path, name):
    cfg = load_config(TrainConfig, [f"experiment={name}"])
    found = {key: plain(attrgetter(key)(cfg)) for key in RECIPES[name]}
    assert found == RECIPES[name]
    cfg.data = DataConfig(train=tmp_path, test=tmp_path)
    check_config(cfg)


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2"])
def test_one_device_has_the_groups_of_eight(tmp_path, name):
    paths = [f"data.train={tmp_path}"]
    eight = load_config(TrainConfig, [f"experiment={name}", *paths])
    one = load_config(TrainConfig, [f"experiment={name}_1gpu", *paths])
    check_config(eight, Ranks(0, 8))
    expected = resolve_batch_norm(eight.moco, Ranks(0, 8))
    for devices in (1, 2, 4, 8):
        check_config(one, Ranks(0, devices))
        assert resolve_batch_norm(one.moco, Ranks(0, devices)) == expected


def test_the_pool_is_the_reports():
    policy = load_config(TrainConfig, ["experiment=imagenette"]).policy
    assert len(policy.pool) == 15  # 14 and none
    assert policy.jitter_probability == policy.grayscale_probability == 0
    assert policy.blur_probability == 0


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "imagenette",
            {
                "global_batch_size": 32,
                "views": "both",
                "policy.pool_draws": 3,
                "policy.pool_probability": 0.6,
                "optimizer.name": "adam",
                "optimizer.learning_rate": 1e-3,
                "optimizer.weight_decay": 1e-4,
                "optimizer.schedule": "cosine",
                "train.epochs": 100,
            },
        ),
        ("competition", {"optimizer.milestones": [60, 80, 120, 160], "train.epochs": 200}),
        ("official", {"optimizer.learning_rate": 30.0, "optimizer.milestones": [60, 80]}),
        (
            "cmc",  # HobbitLong/CMC, eval_moco_ins.py
            {
                "global_batch_size": 256,
                "policy.crop_scale": [0.2, 1.0],
                "policy.hue": 0.4,
                "optimizer.learning_rate": 0.1,
                "optimizer.weight_decay": 0.0,
                "optimizer.milestones": [30, 40, 50],
                "optimizer.milestone_factor": 0.2,
                "train.epochs": 60,
            },
        ),
    ],
)
def test_a_protocol_keeps_its_recipe(name, facts):
    cfg = load_config(LinearConfig, [f"protocol={name}"])
    assert {key: plain(attrgetter(key)(cfg)) for key in facts} == facts


@pytest.mark.parametrize(
    ("name", "backbone", "head"),
    [
        ("cifar10_colab", 11_168_832, 512 * 128 + 128),
        ("cifar10_solo", 11_168_832, 512 * 2048 + 2048 + 2048 * 256 + 256),
        ("imagenette", 23_508_032, 1_114_752),  # the report: 1.12M
        # moco-v3's _build_mlp(2, ...): no bias; SimCLR's head: a scale and a shift, then a scale.
        ("moco_v3", 23_508_032, 2048 * 4096 + 2 * 4096 + 4096 * 256),
        # Fast-MoCo's projector: three layers, each with a scale and a shift.
        ("fast_moco", 23_508_032, 3 * (2048 * 2048 + 2 * 2048)),
        ("simclr", 23_508_032, 2048 * 2048 + 2 * 2048 + 2048 * 128 + 2 * 128),
    ],
)
def test_sizes_are_those_of_the_recipe(name, backbone, head):
    cfg = load_config(TrainConfig, [f"experiment={name}"])
    with torch.device("meta"):
        encoder = build_query_encoder(cfg.model, cfg.moco)
    assert sum(p.numel() for p in encoder.backbone.parameters()) == backbone
    assert sum(p.numel() for p in encoder.head.parameters()) == head


def test_half_the_rate_and_twice_the_decay_turn_a_mean_of_two_losses_into_their_sum():
    """What the presets of lightly and solo-learn say of SGD."""
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2)]
    of_mean, of_sum = (
        build_optimizer([weight], OptimizerConfig(learning_rate=rate, weight_decay=decay))
        for weight, rate, decay in zip(weights, (0.3, 0.15), (0.01, 0.02), strict=True)
    )
    for step in range(5):
        for weight, factor in zip(weights, (1, 2), strict=True):
            weight.grad = factor * (weight.detach() ** 2 + step)
        of_mean.step()
        of_sum.step()
    torch.testing.assert_close(*weights)


def test_every_preset_of_a_write_up_has_its_recipe_here():
    """Not of fastmoco's own, which have no source."""
    own = {"own", "demo", "cifar10_cpu"}
    folder = Path(configs.__file__).parent / "experiment"
    assert {path.stem for path in folder.glob("*.yaml")} - own == set(RECIPES)
