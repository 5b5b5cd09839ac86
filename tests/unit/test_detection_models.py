"""Detectors and segmenters: what is taken from the backbone, and what stands after it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from fastmoco.detection.backbones import Body, Conv5Head, check_resnet, dilate, set_batch_norm
from fastmoco.detection.detect import FREE_KEYS
from fastmoco.detection.fitting import Fitting, build_sgd, learning_rate, seed_region_sampling
from fastmoco.detection.models import build_detector, region_size
from fastmoco.detection.norm import DetectionBatchNorm2d
from fastmoco.detection.samples import Sample
from fastmoco.detection.segmenter import Segmenter
from fastmoco.detection.settings import (
    Arch,
    DetectConfig,
    DetectionNorm,
    DetectionOptimizerConfig,
    DetectionTask,
    DetectorConfig,
)
from fastmoco.detection.starting import open_backbone
from fastmoco.errors import DivergedError, UsageError
from fastmoco.moco.batchnorm import SplitBatchNorm2d
from fastmoco.moco.build import build_model
from fastmoco.moco.settings import MocoConfig, ModelConfig, Precision, Stem
from fastmoco.optim.loss_scaler import INITIAL_SCALE
from fastmoco.optim.precision import dtype_of
from fastmoco.ranks import ALONE
from fastmoco.runs.run_folder import RunFolder, RunIdentity
from fastmoco.train.number_format import kept_precision
from tests.detection_data import write_run

SMALL = DetectConfig(
    model=DetectorConfig(
        anchor_sizes=[16, 32],
        roi_size=4,
        rpn_samples=16,
        roi_samples=8,
        proposals=20,
        test_proposals=10,
    )
)
UNWARMED = DetectionOptimizerConfig(warmup_steps=0)


def make_resnet(name="resnet18", width=4, splits=1, stem=Stem.small_stride2):
    torch.manual_seed(0)
    model = ModelConfig(encoder=name, stem=stem, width=width)
    moco = MocoConfig(dim=4, queue_size=8, batch_norm_splits=splits)
    return build_model(model, moco).query_encoder.backbone


def make_detector(cfg, name="resnet18", num_keypoints=0):
    return build_detector(
        make_resnet(name),
        cfg,
        num_classes=3,
        num_keypoints=num_keypoints,
        mean=[0.5] * 3,
        std=[0.2] * 3,
        ranks=ALONE,
    )


def one_target(task):
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([2])}
    if task is DetectionTask.masks:
        target["masks"] = torch.zeros(1, 64, 64, dtype=torch.uint8)
        target["masks"][:, 10:40, 10:40] = 1
    if task is DetectionTask.keypoints:
        target["keypoints"] = torch.tensor([[[20.0, 20.0, 2.0], [30.0, 12.0, 2.0]]])
    return target


@pytest.mark.parametrize("stem", list(Stem))
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_body_and_box_head_compute_what_the_encoder_does(name, stem):
    resnet = make_resnet(name, stem=stem).eval()
    nn.init.normal_(resnet.bn1.weight)  # a negative scale does not change places with max-pooling
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = resnet(images)
        head = Conv5Head(resnet, None).eval()
        assert torch.equal(head(Body(resnet, 3).eval()(images)), expected)
        maps = Body(resnet, 4).eval().stages(images)
    assert torch.equal(maps[-1].mean(dim=(2, 3)), expected)
    assert [x.shape[1] for x in maps] == Body(resnet, 4).stage_channels


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_dilation_keeps_resolution_and_every_other_value(name):
    resnet = make_resnet(name).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = Body(resnet, 4)(images)
        block = resnet.layer4[0]
        x = Body(resnet, 3)(images)
        first = block.downsample(x)
        dilate(resnet.layer4)
        after = Body(resnet, 4)(images)
        assert torch.equal(block.downsample(x)[:, :, ::2, ::2], first)
    assert after.shape[2:] == (2 * before.shape[2], 2 * before.shape[3])
    convolutions = [m for m in resnet.layer4.modules() if isinstance(m, nn.Conv2d)]
    assert {m.dilation for m in convolutions if m.kernel_size == (3, 3)} == {(2, 2)}
    assert {m.stride for m in convolutions} == {(1, 1)}


def test_batch_norm_is_replaced_with_its_values():
    images = torch.randn(4, 3, 32, 32)
    resnet = make_resnet(splits=2)
    assert isinstance(resnet.bn1, SplitBatchNorm2d)
    resnet.train()(images)  # statistics that are not those of a new layer
    with torch.no_grad():
        expected = resnet.eval()(images)
    for kind, layer in (
        (DetectionNorm.synchronized, DetectionBatchNorm2d),
        (DetectionNorm.frozen, FrozenBatchNorm2d),
    ):
        other = make_resnet()
        other.load_state_dict(resnet.state_dict())
        set_batch_norm(other, kind, ALONE)
        norms = [m for m in other.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
        assert {type(m) for m in norms} == {layer}
        with torch.no_grad():
            torch.testing.assert_close(other.eval()(images), expected)
    weights = {name for name, _ in other.named_parameters()}
    assert not any("bn" in name for name in weights)
    with torch.no_grad():
        torch.testing.assert_close(other.train()(images), expected)


@pytest.mark.parametrize("kind", list(DetectionNorm))
@pytest.mark.parametrize("arch", list(Arch))
@pytest.mark.parametrize(
    ("task", "name"),
    [
        (DetectionTask.boxes, "resnet18"),
        (DetectionTask.boxes, "resnet50"),
        (DetectionTask.masks, "resnet18"),
        (DetectionTask.keypoints, "resnet18"),
    ],
)
def test_every_weight_of_every_detector_learns(task, arch, kind, name):
    cfg = replace(SMALL, task=task, arch=arch, batch_norm=kind)
    if arch is Arch.fpn:
        cfg.model = replace(cfg.model, anchor_sizes=[4, 8, 16, 24, 32])
    model = make_detector(cfg, name, num_keypoints=2).train()
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 56)]
    targets = [one_target(task)] * 2
    if task is DetectionTask.masks:
        targets[1] = {**targets[1], "masks": targets[1]["masks"][..., :56]}
    torch.manual_seed(0)
    losses = model(images, targets)
    assert len(losses) == (4 if task is DetectionTask.boxes else 5)
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # What a pyramid's levels that no region was cut from learn comes through the proposals alone.
    assert without == []
    found = model.eval().predict(torch.rand(3, 64, 48), (128, 96))
    assert found["boxes"].shape[1] == 4
    if task is DetectionTask.masks:
        assert found["masks"].shape[1:] == (1, 128, 96)
    if task is DetectionTask.keypoints:
        assert found["keypoints"].shape[1:] == (2, 3)


def test_boxes_are_found_in_the_original_images_coordinates():
    model = make_detector(replace(SMALL, arch=Arch.dc5)).eval()
    model.roi_heads.score_thresh = 0.0
    image = torch.rand(3, 64, 48)
    small, large = (model.predict(image, size) for size in ((64, 48), (256, 96)))
    assert len(small["boxes"]) > 3
    (plain,) = model([image])
    for name, values in plain.items():
        torch.testing.assert_close(small[name], values)
    scale = torch.tensor([2.0, 4.0, 2.0, 4.0])
    torch.testing.assert_close(large["boxes"], small["boxes"] * scale)


def test_a_segmenter_gives_each_pixel_a_class():
    cfg = replace(SMALL, task=DetectionTask.segment)
    cfg.model = replace(cfg.model, dilation=2)
    model = Segmenter(make_resnet(), cfg, num_classes=3, mean=[0.5] * 3, std=[0.2] * 3, ranks=ALONE)
    images = [torch.rand(3, 32, 48) for _ in range(2)]
    classes = [torch.randint(3, (32, 48)) for _ in range(2)]
    loss = model.train()(images, [{"classes": c} for c in classes])["loss_classes"]
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    half = [torch.where(torch.arange(48) < 24, c, 255) for c in classes]
    logits = model.logits(torch.stack(images))
    expected = nn.functional.cross_entropy(logits[..., :24], torch.stack(classes)[..., :24])
    torch.testing.assert_close(
        model(images, [{"classes": c} for c in half])["loss_classes"], expected
    )
    unknown = [{"classes": torch.full((32, 48), 255)}] * 2
    assert model(images, unknown)["loss_classes"].item() == 0
    assert model.eval().predict(images[0], (32, 48))["classes"].shape == (32, 48)


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (replace(SMALL, arch=Arch.fpn), r"model\.anchor_sizes has 2 sizes; arch=fpn needs one"),
        (
            replace(SMALL, task=DetectionTask.keypoints),
            r"no category of data\.train names keypoints",
        ),
        (replace(SMALL, model=DetectorConfig(anchor_sizes=[])), r"must name a size or more"),
    ],
)
def test_settings_that_no_detector_has(cfg, words):
    with pytest.raises(UsageError, match=words):
        make_detector(cfg)


def test_regions_of_c4_are_twice_as_large_for_conv5_halves_them():
    sizes = [region_size(DetectConfig(arch=arch)) for arch in (Arch.c4, Arch.dc5, Arch.fpn)]
    assert sizes == [14, 7, 7]
    assert region_size(SMALL) == 4


def test_the_published_schedule():
    cfg = DetectConfig()
    rates = {step: learning_rate(cfg, step) for step in (0, 50, 100, 17999, 18000, 22000, 23999)}
    expected = {
        0: 2e-5,
        50: 0.01001,
        100: 0.02,
        17999: 0.02,
        18000: 0.002,
        22000: 2e-4,
        23999: 2e-4,
    }
    assert rates == pytest.approx(expected)
    assert learning_rate(replace(cfg, optimizer=replace(cfg.optimizer, warmup_steps=0)), 0) == 0.02


def test_weight_decay_spares_batch_norm():
    model = make_detector(SMALL)
    decayed, free = build_sgd(model, SMALL).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (1e-4, 0.0)
    assert {p.ndim for p in free["params"]} == {1}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(free["params"]) == 2 * len(norms) > 30
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_weights_come_from_the_run_a_file_or_the_seed(tmp_path):
    run = write_run(tmp_path / "run")
    pretrained, encoder = open_backbone(run, DetectConfig())
    assert all(p.requires_grad for p in pretrained.parameters())
    assert encoder.std.tolist() == pytest.approx([0.1] * 3)
    random = [
        open_backbone(run, DetectConfig(weights=Path("random"), seed=s))[0] for s in (0, 0, 1)
    ]
    first = [m.conv1.weight for m in (pretrained, *random)]
    spread = random[0].layer3[0].conv1.weight.std().item()
    assert spread == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    assert torch.equal(first[1], first[2])
    assert not torch.equal(first[1], first[3])
    assert not torch.equal(first[0], first[1])
    path = tmp_path / "w.pth"
    torch.save({**random[2].state_dict(), "fc.weight": torch.zeros(2, 2)}, path)
    loaded, _ = open_backbone(run, DetectConfig(weights=path))
    assert torch.equal(loaded.layer4[1].conv2.weight, random[2].layer4[1].conv2.weight)


def test_torchvisions_own_weights_fit():
    torch.manual_seed(0)
    theirs, ours = resnet18(), make_resnet(width=64, stem=Stem.imagenet)
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(state)
    theirs.fc = nn.Identity()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(Conv5Head(ours, None).eval()(Body(ours, 3).eval()(images)),
                                   theirs.eval()(images))  # fmt: skip


def test_other_networks_are_refused():
    with pytest.raises(UsageError, match="needs a ResNet, this run has a Linear"):
        check_resnet(nn.Linear(2, 2))


def test_region_sampling_is_a_function_of_seed_step_and_rank():
    draws = []
    for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0)):
        seed_region_sampling(seed, step)
        draws.append(torch.randperm(50).tolist())
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 3


def small_fitting(cfg):
    model = make_detector(cfg)
    return Fitting(cfg, model, build_sgd(model, cfg), torch.device("cpu"), "d", "e")


def sample(seed):
    torch.manual_seed(seed)
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    return Sample(image, one_target(DetectionTask.boxes))


def test_precise_batch_norm_is_the_mean_over_batches():
    cfg = replace(SMALL, train=replace(SMALL.train, steps=3), precision=Precision.float32)
    fitting = small_fitting(cfg)
    fitting.model.train()(
        [torch.rand(3, 64, 64)], [one_target(DetectionTask.boxes)]
    )  # to be forgotten
    batches = [[sample(seed)] * 2 for seed in range(3)]
    fitting.average_statistics(iter(batches))
    norm = fitting.model.backbone.bn1
    means = []
    for batch in batches:
        x = torch.stack([s.image for s in batch]).float() / 255
        with torch.no_grad():
            means.append(fitting.model.backbone.conv1((x - 0.5) / 0.2).mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    assert norm.momentum == 0.1


def test_a_loss_that_is_no_number_stops_the_run():
    fitting = small_fitting(
        replace(SMALL, optimizer=replace(SMALL.optimizer, learning_rate=1e30, warmup_steps=0))
    )
    fitting.take([sample(0)])
    with pytest.raises(DivergedError, match=r"at step 1; lower optimizer\.learning_rate"):
        fitting.take([sample(1)])


def test_a_step_that_is_not_finite_changes_nothing():
    fitting = small_fitting(SMALL)
    fitting.take([sample(0)])
    before = {name: tensor.clone() for name, tensor in fitting.checkpoint().tensors.items()}
    weight = fitting.model.backbone.conv1.weight
    weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(DivergedError, match="the loss or its gradient is not finite at step 1"):
        fitting.take([sample(1)])
    after = fitting.checkpoint().tensors
    assert [name for name, tensor in before.items() if not torch.equal(after[name], tensor)] == []


@pytest.mark.parametrize("precision", [Precision.bf16, Precision.fp16])
def test_narrow_formats_learn_and_resume_with_their_scale(precision):
    cfg = replace(SMALL, precision=precision, optimizer=UNWARMED)
    fitting = small_fitting(cfg)
    seen = []
    fitting.model.backbone.conv1.register_forward_hook(lambda *found: seen.append(found[2].dtype))
    before = fitting.model.backbone.conv1.weight.clone()
    fitting.guard.scaler.scale.fill_(512)
    fitting.take([sample(0)])
    assert seen == [dtype_of(precision, torch.device("cpu"))]
    assert not torch.equal(fitting.model.backbone.conv1.weight, before)
    again = small_fitting(cfg)
    again.restore(fitting.checkpoint())
    assert again.guard.scaler.state() == fitting.guard.scaler.state()
    assert (again.guard.scaler.scale.item() == 512) == (precision is Precision.fp16)


def test_fp16_looks_for_its_scale():
    fitting = small_fitting(replace(SMALL, precision=Precision.fp16, optimizer=UNWARMED))
    weight = fitting.model.backbone.conv1.weight
    before = weight.clone()
    hook = weight.register_hook(lambda gradient: gradient * torch.inf)
    fitting.take([sample(0)])
    hook.remove()
    assert torch.equal(weight, before)
    assert fitting.guard.scaler.scale.item() == INITIAL_SCALE / 2


def test_trials_of_the_version_without_number_formats_resume_in_float32(tmp_path):
    run = RunFolder(tmp_path)
    cfg = replace(DetectConfig(), precision=Precision.float32)
    text = RunIdentity(cfg, FREE_KEYS).to_yaml()
    run.config.write_text(text.replace("precision: float32\n", ""))
    run.checkpoints.mkdir()
    (run.checkpoints / "step-00000001.json").touch()
    assert kept_precision(run) is Precision.float32
    assert RunIdentity(cfg, FREE_KEYS).differences(run.config) == []
    other = RunIdentity(replace(cfg, precision=Precision.bf16), FREE_KEYS)
    assert other.differences(run.config) == ["precision: float32 there, bf16 now"]


def test_trials_from_before_weights_had_one_spelling_resume(tmp_path):
    identity = RunIdentity(DetectConfig(), FREE_KEYS)
    path = tmp_path / "config.yaml"
    path.write_text(identity.to_yaml() + "init: pretrained\n")
    assert identity.differences(path) == []
    path.write_text(identity.to_yaml().replace("weights: null", "weights: w.pth") + "init: file\n")
    assert identity.differences(path) == ["weights: w.pth there, None now"]
