"""Encoders by name: shapes, weights that are torchvision's, settings that are refused."""

import sys

import pytest
import torch
import torchvision
from torch import nn

from fastmoco.configuration import load_config
from fastmoco.draws.host import draw_keys
from fastmoco.errors import UsageError
from fastmoco.moco.alexnet import SMALLEST_VIEW
from fastmoco.moco.batchnorm import SplitBatchNorm2d
from fastmoco.moco.build import build_model
from fastmoco.moco.encoders import build_encoder
from fastmoco.moco.resnet_designs import RESNETS
from fastmoco.moco.settings import MocoConfig, ModelConfig, Stem
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import POLICIES
from fastmoco.train.settings import TrainConfig
from fastmoco.train.step import TrainStep

SMALL = {"stem": Stem.small_stride2, "width": 4}

# One of each kind, tiny; all have batch norm but alexnet and test_vit.
TINY = {
    "resnet18": SMALL,
    "resnext50_32x4d": SMALL | {"width": 16},
    "alexnet": SMALL,
    "alexnet_bn": SMALL | {"stem": Stem.small},
    "halves:resnet18": SMALL,
    "halves:alexnet_bn": SMALL,
    "timm:test_resnet": {},
    "timm:test_efficientnet": {},  # its batch norm is activation as well
    "timm:test_vit": {},
}
WITHOUT_BATCH_NORM = ("alexnet", "timm:test_vit")
WITH_BATCH_NORM = [name for name in TINY if name not in WITHOUT_BATCH_NORM]


def tiny(name, **changes):
    return ModelConfig(encoder=name, **(TINY[name] | changes))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", [*RESNETS, "alexnet"])
def test_names_and_shapes_are_torchvisions(name):
    """What loads into the one loads into the other, strictly, but for the last layer."""
    with torch.device("meta"):
        ours = build_encoder(ModelConfig(encoder=name))
        if name == "resnext50_32x8d":  # torchvision has it without a name
            theirs = torchvision.models.ResNet(
                torchvision.models.resnet.Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=8
            )
        else:
            theirs = getattr(torchvision.models, name)()
    last = ("fc.", "classifier.6.")
    expected = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith(last)}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    last_layer = theirs.fc if name != "alexnet" else theirs.classifier[6]
    assert ours.feature_dim == last_layer.in_features
    assert count(ours) == count(theirs) - count(last_layer)


@pytest.mark.parametrize(
    ("name", "side"), [("resnet18", 64), ("resnext50_32x4d", 64), ("alexnet", 128)]
)
def test_features_are_torchvisions(name, side):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)()
    setattr(*((theirs.classifier, "6") if name == "alexnet" else (theirs, "fc")), nn.Identity())
    ours = build_encoder(ModelConfig(encoder=name))
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, side, side)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize(
    ("name", "width", "millions"),
    [
        ("resnet50", 64, 24),
        ("resnet50", 128, 94),
        ("resnet50", 256, 375),
        ("resnext50_32x8d", 64, 46),
    ],
)
def test_wide_and_grouped_resnets_are_the_papers(name, width, millions):
    """Parameters as in arXiv:1911.05722, section 4.1, the comparison under linear evaluation."""
    with torch.device("meta"):
        encoder = build_encoder(ModelConfig(encoder=name, width=width))
    assert round(count(encoder) / 1e6) == millions


@pytest.mark.parametrize(
    ("stem", "side"), [(Stem.imagenet, 1), (Stem.small, 4), (Stem.small_stride2, 2)]
)
def test_stems_and_width(stem, side):
    encoder = build_encoder(ModelConfig(encoder="resnet18", stem=stem, width=8))
    maps = []
    encoder.layer4.register_forward_hook(lambda _module, _args, output: maps.append(output))
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 64) == (2, encoder.feature_dim)
    assert maps[0].shape == (2, 64, side, side)


@pytest.mark.parametrize(
    ("stem", "size", "side"),
    [(Stem.imagenet, 224, 6), (Stem.small, 32, 7), (Stem.small_stride2, 32, 3)],
)
def test_stems_of_alexnet(stem, size, side):
    encoder = build_encoder(ModelConfig(encoder="alexnet", stem=stem, width=4))
    images = torch.randn(2, 3, size, size)
    assert encoder.features(images).shape == (2, 16, side, side)
    assert encoder(images).shape == (2, 256) == (2, encoder.feature_dim)


@pytest.mark.parametrize(("stem", "smallest"), SMALLEST_VIEW.items())
def test_views_that_are_too_small_for_alexnet_are_refused(stem, smallest):
    config = ModelConfig(encoder="alexnet", stem=stem, width=4)
    encoder = build_encoder(config, view_size=smallest)
    encoder(torch.randn(1, 3, smallest, smallest))
    with pytest.raises(RuntimeError):
        encoder(torch.randn(1, 3, smallest - 1, smallest - 1))
    with pytest.raises(UsageError, match=rf"needs {smallest} pixels; set model\.stem=small"):
        build_encoder(config, view_size=smallest - 1)


@pytest.mark.parametrize("block", ["resnet18", "resnet50"])
def test_residual_blocks_can_start_as_the_identity(block):
    theirs = getattr(torchvision.models, block)(zero_init_residual=True)
    ours = build_encoder(ModelConfig(encoder=block, zero_init_residual=True))

    def zeros(module):
        return {
            name for name, p in module.named_parameters() if name[-6:] == "weight" and not p.any()
        }

    assert zeros(ours) == zeros(theirs) != set()


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_split_batch_norm_is_each_group_alone(name):
    """In training, all that couples images is batch norm; names in the state stay the same."""
    torch.manual_seed(0)
    plain = build_encoder(tiny(name), view_size=32).double()
    split = build_encoder(
        tiny(name), norm_layer=lambda c: SplitBatchNorm2d(c, num_splits=2), view_size=32
    ).double()
    for parameter in plain.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    split.load_state_dict(plain.state_dict())
    images = torch.rand(8, 3, 32, 32, dtype=torch.float64)
    expected = torch.cat([plain(half) for half in images.chunk(2)])
    torch.testing.assert_close(split(images), expected)
    assert not torch.allclose(plain(images), expected, atol=1e-3)


def batch_of(count, size):
    ids = torch.arange(count)
    keys = torch.from_numpy(draw_keys(3, 0, ids.numpy()))
    crops = torch.randint(256, (count, 2, size, size, 3), dtype=torch.uint8)
    return Batch(crops, torch.zeros(count, 2, 4, dtype=torch.int32), ids, keys, ids, 0.0)


def step_of(model, **settings):
    optimizer = build_optimizer(model.query_encoder.parameters(), OptimizerConfig(**settings))
    statistics = {"mean": torch.full((3,), 0.5), "std": torch.full((3,), 0.25)}
    return TrainStep(model, optimizer, policy=POLICIES["moco_v2"], **statistics)


@pytest.mark.parametrize("name", TINY)
def test_a_step_trains_every_layer(name):
    torch.manual_seed(0)
    moco = MocoConfig(
        dim=8,
        queue_size=32,
        momentum=0.5,
        batch_norm_splits=1 if name in WITHOUT_BATCH_NORM else 2,
    )
    model = build_model(tiny(name), moco, view_size=32).to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in model.named_parameters()}
    step = step_of(model, weight_decay=0.0)
    for _ in range(2):  # timm's residual blocks start as the identity: their inside moves second
        assert step(batch_of(8, 32), 0.1).isfinite().all()
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    # A bias before batch norm has no gradient but rounding errors; SGD may leave it where it was.
    assert [key for key in still if not key.endswith("bias")] == []


def test_a_frozen_patch_projection_stays_as_it_was_drawn():
    """In both encoders, also under momentum and weight decay."""
    moco, config = (
        MocoConfig(dim=8, queue_size=32),
        tiny("timm:test_vit", freeze_patch_projection=True),
    )
    torch.manual_seed(0)
    model = build_model(config, moco, view_size=32)
    before = {key: value.clone() for key, value in model.named_parameters()}
    step = step_of(model, name="adamw", weight_decay=0.1)
    for _ in range(2):
        step(batch_of(4, 32), 0.1)
    still = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    assert still == {
        f"{encoder}.backbone.network.patch_embed.proj.{part}"
        for encoder in ("query_encoder", "key_encoder")
        for part in ("weight", "bias")
    }


def test_timm_models_for_one_size_take_the_views_size_and_others():
    encoder = build_encoder(ModelConfig(encoder="timm:vit_tiny_patch16_224"), view_size=32).eval()
    assert encoder.network.patch_embed.img_size == (32, 32)
    for size in (32, 48):
        assert encoder(torch.randn(2, 3, size, size)).shape == (2, encoder.feature_dim)


def test_timm_models_draw_nothing():
    """Dropout would need a generator's state in the checkpoint."""
    import timm

    from fastmoco.moco.timm_backbone import remove_dropout

    model = timm.create_model("test_vit", num_classes=0, drop_path_rate=0.5, proj_drop_rate=0.5)
    remove_dropout(model)
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(model.train()(images), model(images))
    functional = build_encoder(ModelConfig(encoder="timm:ghostnet_050"), view_size=64)
    assert torch.equal(functional(images), functional(images))


def test_a_replaced_batch_norm_keeps_its_settings():
    from fastmoco.moco.timm_backbone import replace_batch_norm

    old = nn.BatchNorm2d(3, eps=0.1, momentum=0.3)
    nn.init.normal_(old.weight)
    network = nn.Sequential(old)
    replace_batch_norm(network, "name", lambda c: SplitBatchNorm2d(c, num_splits=2))
    new = network[0]
    assert (type(new), new.eps, new.momentum) == (SplitBatchNorm2d, 0.1, 0.3)
    assert torch.equal(new.weight, old.weight)
    with pytest.raises(UsageError, match=r"timm:name has a BatchNorm2d that cannot"):
        replace_batch_norm(nn.Sequential(nn.BatchNorm2d(3, affine=False)), "name", nn.BatchNorm2d)


def test_names_with_a_colon_pass_the_command_line():
    for name in ("halves:resnet50", "timm:vit_small_patch16_224.augreg_in1k"):
        assert load_config(TrainConfig, [f"model.encoder={name}"]).model.encoder == name


SPLIT = MocoConfig(batch_norm_splits=2)


@pytest.mark.parametrize(
    ("settings", "moco", "message"),
    [
        ({"encoder": "resnet19"}, None, r"model\.encoder=resnet19 is unknown; .*resnet1"),
        ({"encoder": "halves:resnet51"}, None, "halves:resnet51 is unknown; did you mean resnet50"),
        ({"encoder": "tim:resnet18"}, None, "tim:resnet18 is unknown"),
        ({"encoder": "timm:resnet19"}, None, r"unknown to timm .*; did you mean timm:resnet18\?"),
        ({"encoder": "timm:hf-hub:a/b"}, None, "unknown"),
        ({"encoder": "timm:resnet18", "width": 32}, None, r"set model\.stem=imagenet"),
        ({"encoder": "timm:test_vit"}, SPLIT, r"no batch norm .* set moco\.batch_norm=plain"),
        ({"encoder": "timm:levit_128s"}, SPLIT, r"BatchNorm1d that cannot .*batch_norm=plain"),
        ({"encoder": "alexnet"}, SPLIT, r"no batch norm .* set moco\.batch_norm=plain"),
        ({"encoder": "alexnet", "zero_init_residual": True}, None, r"zero_init_residual=false"),
        ({"encoder": "halves:resnet18", "width": 5}, None, r"model\.width must be even .* got 5"),
        ({"encoder": "resnext50_32x4d", "width": 8}, None, r"set model\.width=16 or more"),
        ({"encoder": "resnet18", "freeze_patch_projection": True}, None, "no patch projection"),
        ({"encoder": "timm:resnet18", "freeze_patch_projection": True}, None, "a patch projection"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings, moco, message):
    with pytest.raises(UsageError, match=message) as caught:
        build_model(ModelConfig(**settings), moco or MocoConfig(queue_size=16), view_size=224)
    assert "\n" not in str(caught.value)


def test_a_view_that_a_model_does_not_take_is_refused():
    with pytest.raises(UsageError, match=r"does not take views of 20 pixels.*pipeline\.view_size"):
        build_encoder(tiny("timm:test_vit"), view_size=20)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"timm:resnet18 needs timm; .*pip install timm"):
        build_encoder(ModelConfig(encoder="timm:resnet18"))
