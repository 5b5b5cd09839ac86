"""Policies by name and by file, what they draw, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import ColorJitter, GaussianBlur

from fastmoco.commands.help_text import help_lines
from fastmoco.configuration import (
    check_overrides,
    config_from_dict,
    config_to_dict,
    load_config,
    quote_values,
)
from fastmoco.draws.host import draw_keys, random_resized_crop_boxes
from fastmoco.errors import UsageError
from fastmoco.pipelines.policies import POLICIES, Policy, PoolOp, SecondView
from fastmoco.pipelines.pool import draw_ops
from fastmoco.pipelines.view_parameters import draw_parameters
from fastmoco.ranks import ALONE
from fastmoco.runs.run_folder import RunFolder, RunIdentity, check_run_folder, claim_run_folder
from fastmoco.train.settings import FREE_KEYS, TrainConfig
from fastmoco.visualize.settings import ViewsConfig
from tests.statistics import assert_same_distribution

NUM_DRAWS = 100_000
POOL = POLICIES["imagenette_pool"]


def keys(num_samples: int = NUM_DRAWS) -> Tensor:
    return torch.from_numpy(draw_keys(4, 0, np.arange(num_samples, dtype=np.int64)))


def assert_share(chosen: Tensor, share: float) -> None:
    """Within five standard deviations."""
    spread = math.sqrt(share * (1 - share) / len(chosen))
    assert abs(chosen.double().mean().item() - share) <= 5 * spread


# ---------------------------------------------------------------- the published recipes


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"imagenette_pool", "supervised"}))
def test_parameters_are_distributed_as_torchvisions(name: str, view: int):
    policy = POLICIES[name]
    jitter = ColorJitter(policy.brightness, policy.contrast, policy.saturation, policy.hue)
    settings = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
    theirs = [ColorJitter.get_params(*settings) for _ in range(8000)]
    drawn = draw_parameters(keys(), [view], policy)
    assert drawn.flip is not None
    assert drawn.jitter is not None
    assert drawn.grayscale is not None
    jittered = drawn.jitter.brightness != 1
    for column, field in enumerate(("brightness", "contrast", "saturation", "hue"), 1):
        ours = getattr(drawn.jitter, field)[jittered].numpy()
        assert_same_distribution(ours, np.array([draw[column] for draw in theirs]), field)
    assert_share(drawn.flip, policy.flip_probability)
    assert_share(jittered, policy.jitter_probability)
    assert_share(drawn.grayscale, policy.grayscale_probability)
    solarized = policy.of_view("solarize_probability", view)
    if drawn.solarize is None:
        assert solarized == 0
    else:
        assert_share(drawn.solarize <= 1, solarized)
    if drawn.blur_sigma is None:
        assert policy.blur_probability == 0
        return
    blurred = drawn.blur_sigma > 0
    assert_share(blurred, policy.of_view("blur_probability", view))
    sigmas = np.array([GaussianBlur.get_params(*policy.blur_sigma) for _ in range(8000)])
    assert_same_distribution(drawn.blur_sigma[blurred].numpy(), sigmas, "sigma")


def test_published_values():
    simclr, cifar, v2 = POLICIES["simclr"], POLICIES["cifar"], POLICIES["moco_v2"]
    assert (simclr.crop_scale, simclr.jitter_probability) == ((0.08, 1.0), 0.8)
    assert (simclr.brightness, simclr.contrast, simclr.saturation, simclr.hue) == (0.8,) * 3 + (
        0.2,
    )
    assert cifar == dataclasses.replace(v2, blur_probability=0.0)
    assert POLICIES["moco_v3"] == dataclasses.replace(
        v2,
        crop_scale=(0.08, 1.0),
        saturation=0.2,
        blur_probability=1.0,
        second_view=SecondView(blur_probability=0.1, solarize_probability=0.2),
    )
    assert all(policy.second_view == SecondView() for policy in (simclr, cifar, v2))


def test_a_new_operation_leaves_the_published_pool_as_it_is():
    assert [op.name for op in POOL.pool] == [
        "none",
        "blur",
        "gaussian_blur",
        "channel_shuffle",
        "coarse_dropout",
        "cutout",
        "rain",
        "gaussian_noise",
        "hue_saturation",
        "fog",
        "flip",
        "color_jitter",
        "vertical_flip",
        "sharpen",
        "brightness_contrast",
    ]


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (224, 224), (33, 40)])
def test_scale_1_takes_the_whole_image(height: int, width: int):
    """A drawn shape that is the image's own but for rounding may lose one row or column."""
    boxes = pool_boxes(height, width)
    assert boxes[..., 2].min() >= height - 1
    assert boxes[..., 3].min() >= width - 1


def test_scale_1_takes_the_central_part_of_a_long_image():
    boxes = pool_boxes(100, 300)
    assert np.array_equal(np.unique(boxes.reshape(-1, 4), axis=0), [[0, 83, 100, 133]])


def pool_boxes(height: int, width: int) -> np.ndarray:
    return random_resized_crop_boxes(
        keys(2000).numpy(),
        np.full(2000, height),
        np.full(2000, width),
        scale=POOL.crop_scale,
        ratio=POOL.crop_ratio,
        num_views=2,
    )


# ---------------------------------------------------------------- what a pool draws


def test_a_pool_draws_two_different_operations_of_all_alike():
    certain = dataclasses.replace(POOL, pool_probability=1.0)
    drawn = draw_ops(keys(), [0], certain)
    assert drawn.shape == (NUM_DRAWS, 2)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    pairs = torch.bincount(drawn[:, 0] * 15 + drawn[:, 1], minlength=225).view(15, 15)
    expected = NUM_DRAWS / (15 * 14)
    off_diagonal = pairs[~torch.eye(15, dtype=torch.bool)]
    assert (off_diagonal - expected).abs().max() < 5 * math.sqrt(expected)


def test_each_drawn_operation_is_applied_with_its_probability():
    drawn = draw_ops(keys(), [1], dataclasses.replace(POOL, pool=list(PoolOp)[1:]))
    assert_share(drawn[:, 0] > 0, 0.6)
    assert_share(drawn[:, 1] > 0, 0.6)
    assert_share((drawn > 0).all(1), 0.36)


def test_a_smaller_pool_holds_only_its_own():
    policy = Policy(pool=[PoolOp.fog, PoolOp.rain, PoolOp.cutout], pool_probability=1.0)
    drawn = draw_ops(keys(5000), [0, 1], policy)
    names = {list(PoolOp)[place] for place in drawn.unique().tolist()}
    assert names == set(policy.pool)
    assert not torch.equal(drawn[:5000], drawn[5000:])


# ---------------------------------------------------------------- a user's own


def test_a_policy_file(tmp_path):
    path = tmp_path / "my own" / "mild crops.yaml"
    path.parent.mkdir()
    path.write_text("base: moco_v2\ncrop_scale: [0.3, 1.0]\nblur_probability: 0\n")
    for options in ([f"policy={path}"], quote_values(TrainConfig, [f"policy={path}"])):
        policy = load_config(TrainConfig, options).policy
        assert (list(policy.crop_scale), policy.blur_probability) == ([0.3, 1.0], 0)
        assert (policy.hue, policy.jitter_probability) == (0.1, 0.8)
    changed = load_config(TrainConfig, [f"policy={path}", "policy.hue=0.3", "experiment=moco_v1"])
    assert (changed.policy.hue, list(changed.policy.crop_scale)) == (0.3, [0.3, 1.0])
    assert load_config(ViewsConfig, [f"policy='{path}'"]).policy.hue == 0.1


def test_a_second_view_names_what_differs(tmp_path):
    path = tmp_path / "unlike.yaml"
    path.write_text("base: moco_v3\nhue: 0.2\nsecond_view: {blur_probability: 0, hue: 0.05}\n")
    options = [f"policy={path}", "policy.second_view.jitter_probability=0.5"]
    policy = load_config(TrainConfig, options).policy
    assert policy.second_view == SecondView(
        blur_probability=0, hue=0.05, solarize_probability=0.2, jitter_probability=0.5
    )
    assert [policy.of_view("hue", view) for view in (0, 1)] == [0.2, 0.05]
    assert [policy.of_view("brightness", view) for view in (0, 1)] == [0.4, 0.4]
    again = load_config(TrainConfig, [*options, "policy.second_view.hue=null"]).policy
    assert again.of_view("hue", 1) == 0.2
    saved = config_to_dict(load_config(TrainConfig, options))
    assert config_from_dict(TrainConfig, saved).policy == policy


def test_a_file_of_a_known_name_stays_itself(tmp_path):
    path = tmp_path / "moco_v1.yaml"
    path.write_text("hue: 0.01\n")
    assert (
        load_config(TrainConfig, [f"policy={path}"]).policy
        == load_config(
            TrainConfig,
            ["policy=moco_v1", *(f"policy.{k}={v}" for k, v in lists(Policy(hue=0.01)))],
        ).policy
    )
    assert load_config(TrainConfig, ["policy=moco_v1"]).policy.hue == 0.4


def lists(policy: Policy) -> list[tuple[str, object]]:
    fields = dataclasses.asdict(policy)
    del fields["second_view"]  # no option itself; as the first view in all that is tried here
    return [(key, list(v) if isinstance(v, tuple) else v) for key, v in fields.items()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crop_scal: [0.3, 1]", "unknown key crop_scal; did you mean crop_scale?"),
        ("base: mocov2", "unknown base: mocov2; did you mean moco_v2?"),
        ("base: [1]", "unknown base: [1]"),
        ("hue: red", "Value 'red' of type 'str' could not be converted to Float (key hue)"),
        ("hue: 0.6", "policy.hue must be in [0, 0.5], got 0.6"),
        ("hue: null", "key hue"),
        ("second_view: {hue: 0.6}", "policy.second_view.hue must be in [0, 0.5], got 0.6"),
        ("second_view: {crop_scale: [0.1, 1]}", "Key 'crop_scale' not in 'SecondView'"),
        (
            "second_view: {blur_sigma: [2, 1]}",
            "policy.second_view.blur_sigma must be [low,high] with low <= high, got [2.0, 1.0]",
        ),
        ("solarize_threshold: 128", "policy.solarize_threshold must be in [0, 1], got 128.0"),
        (
            "crop_scale: [0.5]",
            "policy.crop_scale must be [low,high] with low <= high, got [0.5]",
        ),
        ("crop_scale: [0, 1]", "policy.crop_scale must be in (0, 1], got [0.0, 1.0]"),
        ("pool: [fog, snow]", "Invalid value 'snow'"),
        ("pool: [fog]", "policy.pool_draws must be at most 1, the pool's size, got 2"),
        (
            "pool: [fog, fog]",
            "policy.pool must be a list of different operations, got ['fog', 'fog']",
        ),
        ("- 1", "must hold `key: value` lines"),
        ("", "must hold `key: value` lines"),
        ("a: [1", "expected ',' or ']'"),
    ],
)
def test_wrong_policy_files_get_one_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(TrainConfig, [f"policy={path}"])
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sweep_over_files_and_names(tmp_path):
    path = tmp_path / "my own.yaml"
    path.write_text("base: cifar\n")
    (override,) = quote_values(TrainConfig, [f"policy={path},moco_v1"])
    (parsed,) = check_overrides(TrainConfig, [override], sweeping=True)
    assert parsed.is_sweep_override()
    assert str(parsed.value().list[0]).endswith("my_own_yaml")
    with pytest.raises(UsageError, match=r"unknown policy=moco_v9; did you mean moco_v"):
        check_overrides(TrainConfig, ["policy=moco_v1,moco_v9"], sweeping=True)


def test_a_missing_policy_file():
    with pytest.raises(UsageError, match=r"policy=none\.yaml: no such file; .*moco_v1"):
        load_config(TrainConfig, ["policy=none.yaml"])


def test_values_out_of_range_on_the_command_line():
    with pytest.raises(UsageError, match=r"policy\.flip_probability must be in \[0, 1\], got 1\.5"):
        load_config(TrainConfig, ["policy.flip_probability=1.5"])


def test_help_tells_of_policy_files():
    for schema in (TrainConfig, ViewsConfig):
        text = "\n".join(help_lines(schema))
        assert "policy=FILE.yaml" in text
        assert "imagenette_pool" in text


def test_resume_compares_the_files_values_not_its_name(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("base: cifar\nhue: 0.2\n")
    second.write_text("base: cifar\nhue: 0.2\n")
    run = RunFolder(tmp_path / "run")

    def check(path):
        identity = RunIdentity(load_config(TrainConfig, [f"policy={path}"]), FREE_KEYS)
        check_run_folder(run, identity)
        return identity

    with claim_run_folder(run, check(first), ALONE):
        run.checkpoints.mkdir()
        (run.checkpoints / "step-00000001.json").write_text("{}")
    check(second)
    second.write_text("base: cifar\nhue: 0.1\n")
    with pytest.raises(UsageError, match=r"policy\.hue: 0\.2 there, 0\.1 now"):
        check(second)


def test_a_pool_survives_json():
    cfg = load_config(TrainConfig, ["policy=imagenette_pool", "policy.pool=[fog,rain,cutout]"])
    again = config_from_dict(TrainConfig, config_to_dict(cfg))
    assert again == cfg
    assert again.policy.pool == [PoolOp.fog, PoolOp.rain, PoolOp.cutout]
