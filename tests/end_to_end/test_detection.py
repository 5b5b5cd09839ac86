"""`fastmoco detect`: train, kill, resume, measure; through the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import fastmoco
from fastmoco import cli
from fastmoco.detection.settings import DetectConfig
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.runs.metrics_file import read_metrics
from tests.detection_data import coco_options, voc_options, write_run, write_small_scenes
from tests.limits import HANG_SECONDS

SHORT = [
    "train.steps=6",
    "global_batch_size=2",
    "train_sizes=[64,96]",
    "test_size=80",
    "model.anchor_sizes=[12,24,40]",
    "model.roi_samples=8",
    "model.test_proposals=10",
    "precise_norm_steps=2",
    "train.log_every_steps=2",
    "checkpoint.every_steps=4",
    "pipeline.num_threads=2",
]

# Runs the command line, and kills its own process with SIGKILL when a step is to be taken.
KILLER = """
import os, signal, sys
from fastmoco import cli
from fastmoco.detection import fitting

take, left = fitting.Fitting.take, [int(sys.argv[1])]

def killing(self, batch):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return take(self, batch)

fitting.Fitting.take = killing
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_small_scenes(tmp_path_factory.mktemp("scenes"), train=5, test=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "moco")


@pytest.fixture(scope="module")
def whole(scenes, run, tmp_path_factory):
    """The folder of an uninterrupted command."""
    folder = tmp_path_factory.mktemp("whole") / "d"
    arguments = ["detect", str(run), *voc_options(scenes), *SHORT, f"run_dir={folder}"]
    assert cli.main(arguments) == 0
    return folder


def trial_of(folder: Path):
    rows = [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in read_metrics(folder / "seed-0/metrics.jsonl")
    ]
    result = json.loads((folder / "seed-0/result.json").read_text())
    del result["seconds"]
    return load_checkpoint(folder / "seed-0"), rows, result


@pytest.mark.full
def test_killed_and_resumed_is_bit_equal(scenes, run, whole, tmp_path):
    folder = tmp_path / "d"
    arguments = ["detect", str(run), *voc_options(scenes), *SHORT, f"run_dir={folder}"]
    places = [str(Path(fastmoco.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-c", KILLER, "5", *arguments]
    killed = subprocess.run(command, env=environment, timeout=HANG_SECONDS, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert load_checkpoint(folder / "seed-0").step == 4
    assert cli.main(arguments) == 0
    (ours, our_rows, result), (theirs, their_rows, expected) = trial_of(folder), trial_of(whole)
    assert ours.step == theirs.step == 6
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert [n for n, t in theirs.tensors.items() if not torch.equal(ours.tensors[n], t)] == []
    assert our_rows == their_rows
    assert [row["step"] for row in our_rows] == [2, 4, 6]
    assert result == expected


def test_a_finished_command_prints_its_result_again(scenes, run, whole, capsys):
    arguments = ["detect", str(run), *voc_options(scenes), *SHORT, f"run_dir={whole}"]
    before = (whole / "seed-0/result.json").stat().st_mtime_ns
    assert cli.main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((whole / "result.json").read_text())
    assert (whole / "seed-0/result.json").stat().st_mtime_ns == before
    assert (
        printed["protocol"]
        | {
            "task": "boxes",
            "arch": "c4",
            "init": "pretrained",
            "steps": 6,
            "seeds": [0],
            "num_train": 5,
            "num_test": 3,
        }
        == printed["protocol"]
    )
    assert printed["trials"][0]["seed"] == 0
    for name in ("ap", "ap50", "ap75", "voc07_ap50"):
        assert 0 <= printed["summary"][name]["mean"] <= 100
    assert cli.main([*arguments, "trials=2", "pipeline.num_threads=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["seed", "seed", "mean", "std"]
    assert "seeds 0, 1" in lines[5]
    first, second = (load_checkpoint(whole / f"seed-{seed}").tensors for seed in (0, 1))
    name = "model.roi_heads.box_predictor.cls_score.weight"
    assert not torch.equal(first[name], second[name])


def test_a_finished_trial_is_tested_on_other_images(scenes, run, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "d")
    shutil.copytree(scenes, tmp_path / "s")
    path = tmp_path / "s/VOCdevkit/VOC2007/ImageSets/Main/test.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:2]))
    data = [*voc_options(scenes), f"data.test={tmp_path / 's/VOCdevkit'}"]
    assert cli.main(["detect", str(run), *data, *SHORT, f"run_dir={tmp_path / 'd'}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["protocol"]["num_test"] == 2
    before = json.loads((whole / "seed-0/result.json").read_text())
    assert result["trials"][0]["test_fingerprint"] != before["test_fingerprint"]


def test_the_loss_falls(scenes, run, tmp_path):
    more = [
        "train.steps=30",
        "train.log_every_steps=5",
        "optimizer.warmup_steps=5",
        "optimizer.milestones=[]",
        "train_sizes=[96]",
    ]
    options = [*voc_options(scenes), *SHORT, *more, "precise_norm_steps=0"]
    assert cli.main(["detect", str(run), *options, f"run_dir={tmp_path / 'd'}"]) == 0
    rows = read_metrics(tmp_path / "d/seed-0/metrics.jsonl")
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    assert rows[-1]["loss_objectness"] < 0.7 * rows[0]["loss_objectness"]


@pytest.mark.parametrize(
    ("options", "figures"),
    [
        (["arch=dc5", "model.roi_size=4", "weights=random"], {"ap", "ap50", "ap75", "voc07"}),
        (
            ["arch=fpn", "model.roi_size=4", "model.anchor_sizes=[8,16,24,32,48]"],
            {"ap", "ap50", "ap75", "voc07"},
        ),
        (["task=segment", "crop_size=64", "batch_norm=frozen"], {"mean_iou"}),
        (["task=masks"], {"ap", "ap50", "ap75", "mask_ap", "mask_ap50", "mask_ap75"}),
        (
            ["task=keypoints"],
            {"ap", "ap50", "ap75", "keypoint_ap", "keypoint_ap50", "keypoint_ap75"},
        ),
    ],
)
def test_every_task_is_trained_and_measured(scenes, run, options, figures, capsys):
    coco = options[0] in ("task=masks", "task=keypoints")
    data = (coco_options if coco else voc_options)(scenes)
    arguments = ["detect", str(run), *data, *SHORT, "train.steps=2", *options]
    assert cli.main([*arguments, "--json"]) == 0
    (trial,) = json.loads(capsys.readouterr().out)["trials"]
    assert set(trial) == figures | {"seed", "seconds", "per_class", "test_fingerprint"}
    task = options[0].removeprefix("task=") if "task" in options[0] else "boxes"
    assert list((run / "detect").glob(f"{task}-*/seed-0/result.json"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["data.train=null"], ["data.train is not set"]),
        (["task=masks"], ["task=masks needs layout=coco"]),
        (["layout=coco", "task=segment"], ["task=segment needs layout=voc"]),
        (["layout=coco"], ["data.test is not set"]),
        (["data.train_years=12"], ["VOC2012 is missing"]),
        (["data.train_split=test"], ["(100.00%) are also in data.train", "allow_overlap=true"]),
        (["data.classes=[]"], ["1100000.xml: class", "none of the 20", "data.classes"]),
        (["train.steps=0"], ["train.steps must be 1 or more, got 0"]),
        (["weights=random", "batch_norm=frozen"], ["batch_norm=frozen", "set batch_norm"]),
        (["weights=frist"], ["weights=frist does not exist", "torchvision:NAME"]),
        (["arch=fpn"], ["model.anchor_sizes has 3 sizes"]),
        (["arch=c5"], ["c5"]),
        (["stepps=3"], ["unknown option stepps; did you mean train.steps?"]),
        (["recipe=vok"], ["unknown recipe=vok; did you mean voc?"]),
        (["scale_range=[2,1]"], ["scale_range"]),
    ],
)
def test_bad_settings_are_one_line(scenes, run, tmp_path, capsys, options, words):
    arguments = ["detect", str(run), *voc_options(scenes), *SHORT, f"run_dir={tmp_path / 'd'}"]
    if "layout=coco" in options:
        arguments[3] = f"data.train={scenes / 'annotations/instances_trainval.json'}"
        images = scenes / "VOCdevkit/VOC2007/JPEGImages"
        arguments.append(f"data.train_images={images}")
    fails(capsys, [*arguments, *options], words)
    assert not (tmp_path / "d/seed-0/checkpoints").exists()


@pytest.mark.parametrize("package", ["torchmetrics", "faster_coco_eval"])
def test_what_it_would_be_measured_by_is_asked_for_first(scenes, run, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    fails(
        capsys,
        ["detect", str(run), *voc_options(scenes)],
        [package, "faster-coco-eval torchmetrics"],
    )


def fails(capsys, arguments, words):
    capsys.readouterr()
    assert cli.main(arguments) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


def test_a_broken_image_stops_the_run_by_name(scenes, run, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / "s")
    path = tmp_path / "s/VOCdevkit/VOC2007/JPEGImages/1100003.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    arguments = ["detect", str(run), *voc_options(tmp_path / "s"), *SHORT]
    assert cli.main([*arguments, f"run_dir={tmp_path / 'd'}"]) == 1
    assert "1100003.jpg cut JPEG" in capsys.readouterr().err.splitlines()[-1]


def test_a_trial_of_version_0_1_goes_on(scenes, run, whole, tmp_path, capsys):
    """Its options had other names."""
    folder = tmp_path / "d"
    shutil.copytree(whole, folder)
    path = folder / "seed-0/config.yaml"
    values = OmegaConf.load(path)
    for former, name in DetectConfig.FORMER.items():
        group, _, option = name.partition(".")
        values[former] = values[group].pop(option)
    for group in ("optimizer", "train", "checkpoint", "pipeline"):
        assert not values.pop(group)
    OmegaConf.save(values, path)
    arguments = ["detect", str(run), *voc_options(scenes), *SHORT, f"run_dir={folder}"]
    assert cli.main(arguments) == 0
    OmegaConf.save(values, path)
    fails(capsys, [*arguments, "train.steps=7"], ["train.steps: 6 there, 7 now"])


def test_folders_of_something_else_are_refused(scenes, run, whole, tmp_path, capsys):
    arguments = ["detect", str(run), *voc_options(scenes), *SHORT]
    other = [*arguments, f"run_dir={whole}", "optimizer.learning_rate=0.01"]
    fails(capsys, other, ["optimizer.learning_rate: 0.02 there, 0.01 now", "another run_dir"])
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0/thesis.txt").write_text("precious")
    fails(capsys, [*arguments, f"run_dir={tmp_path}"], ["seed-0 exists and is not a run folder"])
    fails(capsys, ["detect", str(tmp_path / "none"), *arguments[2:]], ["does not exist"])


def test_another_encoder_or_other_data_are_refused(scenes, run, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "d")
    (tmp_path / "d/seed-0/result.json").unlink()
    options = [*SHORT, f"run_dir={tmp_path / 'd'}"]
    other = write_run(tmp_path / "wide", width=16)
    fails(
        capsys,
        ["detect", str(other), *voc_options(scenes), *options],
        ["started from other weights"],
    )
    more = write_small_scenes(tmp_path / "s", train=6, test=3)
    fails(capsys, ["detect", str(run), *voc_options(more), *options], ["other data"])


def test_help_lists_options_and_recipes(capsys):
    assert cli.main(["detect", "--help"]) == 0
    text = capsys.readouterr().out
    assert "fastmoco detect RUN data.train=VOCdevkit" in text
    for word in ("data.train_years", "c4|dc5|fpn", "24000", "precise_norm_steps"):
        assert word in text
    presets = text.partition("recipe=NAME, a preset:\n")[2].partition("\n\n")[0].splitlines()
    names = [line.split()[0] for line in presets]
    assert names == ["coco_1x", "coco_2x", "scenes", "voc", "voc_segment"]


@pytest.mark.parametrize("recipe", ["voc", "coco_1x", "coco_2x", "voc_segment", "scenes"])
def test_recipes_compose(recipe):
    from fastmoco.configuration import load_config
    from fastmoco.detection.settings import DetectConfig

    cfg = load_config(DetectConfig, [f"recipe={recipe}"])
    if recipe == "voc":
        assert (cfg.train.steps, cfg.optimizer.milestones, cfg.optimizer.learning_rate) == (
            24000,
            [18000, 22000],
            0.02,
        )
        assert (cfg.data.train_years, cfg.data.test_years) == ("07+12", "07")
        assert (min(cfg.train_sizes), max(cfg.train_sizes), cfg.test_size) == (480, 800, 800)
    assert cfg.train.steps > max(cfg.optimizer.milestones)
