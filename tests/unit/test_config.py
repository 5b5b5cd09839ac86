import dataclasses

import numpy as np
import pytest

from fastmoco import cli
from fastmoco.commands import COMMANDS
from fastmoco.commands.help_text import help_lines
from fastmoco.configuration import (
    config_from_dict,
    config_to_dict,
    load_config,
    preset_names,
    quote_values,
)
from fastmoco.draws.host import random_resized_crop_boxes
from fastmoco.errors import UsageError
from fastmoco.moco.settings import BatchNorm, Head, Precision
from fastmoco.schema_options import describe
from fastmoco.train.settings import TrainConfig
from tests.pictures import write_class_folders

SCHEMAS = list(dict.fromkeys(command.config for command in COMMANDS.values() if command.config))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_without_options_it_is_the_schema(schema):
    def lists(value):
        return [*value] if isinstance(value, tuple) else value

    composed = dataclasses.asdict(load_config(schema))
    expected = dataclasses.asdict(schema())
    for key, value in expected.items():
        if isinstance(value, dict):
            assert {k: lists(v) for k, v in composed[key].items()} == {
                k: lists(v) for k, v in value.items()
            }
        else:
            assert composed[key] == value


def test_options_win_over_presets_and_presets_over_defaults():
    cfg = load_config(TrainConfig, ["experiment=moco_v1", "moco.temperature=0.5"])
    assert (cfg.name, cfg.moco.head, cfg.moco.temperature) == ("moco_v1", Head.linear, 0.5)
    assert cfg.optimizer.schedule == "multistep"
    assert cfg.policy.grayscale_first
    assert load_config(TrainConfig, ["policy=moco_v1"]).policy.hue == 0.4


def test_published_settings():
    v1 = load_config(TrainConfig, ["experiment=moco_v1"])
    v2 = load_config(TrainConfig, ["experiment=moco_v2"])
    for cfg in (v1, v2):
        assert (cfg.global_batch_size, cfg.train.epochs, cfg.model.encoder) == (
            256,
            200,
            "resnet50",
        )
        assert (cfg.moco.queue_size, cfg.moco.momentum, cfg.moco.dim) == (65536, 0.999, 128)
        optimizer = cfg.optimizer
        assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == (
            "sgd",
            0.03,
            1e-4,
        )
    assert (v1.moco.temperature, v1.optimizer.milestones) == (0.07, [120, 160])
    assert (v2.moco.temperature, v2.optimizer.schedule) == (0.2, "cosine_per_epoch")
    assert (v2.moco.head, v2.policy.blur_probability) == (Head.mlp, 0.5)


def test_competition96_and_its_ablation():
    cfg = load_config(TrainConfig, ["experiment=competition96"])
    assert (cfg.moco.queue_size, cfg.moco.momentum, cfg.train.epochs) == (2048, 0.99, 100)
    assert (cfg.pipeline.view_size, cfg.model.encoder, cfg.moco.head) == (96, "resnet50", Head.mlp)
    assert (cfg.moco.batch_norm, cfg.moco.batch_norm_splits) == (BatchNorm.shuffled, 8)
    assert (list(cfg.policy.crop_scale), cfg.policy.blur_probability) == ([0.2, 1.0], 0.5)
    bare = load_config(TrainConfig, ["experiment=competition96_no_crop"])
    bare.name, bare.policy.crop_scale, bare.policy.crop_ratio = (
        cfg.name,
        cfg.policy.crop_scale,
        cfg.policy.crop_ratio,
    )
    assert bare == cfg
    bare = load_config(TrainConfig, ["experiment=competition96_no_crop"])
    boxes = random_resized_crop_boxes(
        np.arange(9),
        np.full(9, 96),
        np.full(9, 96),
        scale=bare.policy.crop_scale,
        ratio=bare.policy.crop_ratio,
        num_views=2,
    )
    assert np.unique(boxes.reshape(-1, 4), axis=0).tolist() == [[0, 0, 96, 96]]


@pytest.mark.parametrize("name", preset_names("experiment"))
def test_every_preset_composes(name, tmp_path):
    options = [f"experiment={name}"]
    if name == "own":  # it chooses by the images
        write_class_folders(tmp_path, classes=2, per_class=8)
        options.append(f"data.train={tmp_path}")
    assert load_config(TrainConfig, options).name == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["moco.queue_sise=5"], "unknown option moco.queue_sise; did you mean moco.queue_size?"),
        (["queue_size=5"], "unknown option queue_size; did you mean moco.queue_size?"),
        (["experiment=moco_v4"], "unknown experiment=moco_v4; did you mean moco_v"),
        (["policy=moco"], "unknown policy=moco; did you mean moco_v"),
        (["moco.dim=many"], "moco.dim must be a whole number, got many"),
        (
            ["precision=fp8"],
            "precision must be one of auto, float32, fp16, bf16, got fp8",
        ),
        (["seed"], "cannot read seed; options are given as key=value"),
    ],
)
def test_wrong_options_get_one_line(options, message):
    with pytest.raises(UsageError) as caught:
        load_config(TrainConfig, options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["a b", "x=1,[y]{z}", 'quo"te', "back\\slash", 'both"', "end\\", "ü", "[x]/t"]
)
def test_paths_of_any_spelling(path):
    options = quote_values(TrainConfig, [f"data.train={path}", "seed=3"])
    cfg = load_config(TrainConfig, options)
    assert str(cfg.data.train) == path
    assert cfg.seed == 3


def test_the_home_folder_is_meant_in_every_path(monkeypatch):
    """A shell and the command line expand it in words; files and Python do not."""
    monkeypatch.setenv("HOME", "/a me")
    cfg = config_from_dict(TrainConfig, {"data": {"train": "~/x"}, "weights": "~b", "name": "~/c"})
    assert (str(cfg.data.train), str(cfg.weights), cfg.name) == ("/a me/x", "~b", "~/c")
    cfg = load_config(TrainConfig, quote_values(TrainConfig, ["data.test=~/x y"]))
    assert str(cfg.data.test) == "/a me/x y"


def test_a_configuration_survives_json():
    cfg = load_config(TrainConfig, ["experiment=demo", "precision=bf16", "data.train=a b"])
    again = config_from_dict(TrainConfig, config_to_dict(cfg))
    assert again == cfg
    assert again.precision is Precision.bf16


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_option_says_what_it_means(schema):
    assert [key for key, _, text in describe(schema) if not text] == []
    assert any("moco.queue_size" in line and "65536" in line for line in help_lines(TrainConfig))


def test_help_fits_the_screen_and_shows_defaults_as_they_are_given():
    for schema in SCHEMAS:
        assert max(map(len, help_lines(schema))) <= 100
    text = "\n".join(help_lines(TrainConfig))
    for shown in ("moco.symmetric=false ", "data.train=null ", "optimizer.milestones=[120,160] "):
        assert f"  {shown}" in text


def test_the_name_of_a_sweep_is_told_from_a_preset(capsys):
    assert cli.main(["train", "experiment=overview"]) == 2
    expected = "experiment=overview is a sweep of several runs; use: fastmoco sweep overview"
    assert capsys.readouterr().err == f"fastmoco: {expected}\n"
