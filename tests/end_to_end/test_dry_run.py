"""`train.dry_run` and `train.profile`: figures of a run that leaves nothing behind."""

import json
import re

import pytest

import fastmoco
from fastmoco import cli
from fastmoco.configuration import load_config
from fastmoco.train.dry_run import DryRun
from fastmoco.train.settings import Compile, TrainConfig
from fastmoco.train.step import STAGES
from tests.end_to_end.test_training import dataset, train_arguments  # noqa: F401
from tests.pictures import write_class_folders

EAGER = "train.compile=never"


def test_a_dry_run_says_what_the_run_costs_and_leaves_nothing(capsys, tmp_path, dataset):  # noqa: F811
    run = tmp_path / "run"
    assert cli.main(train_arguments(dataset, run, EAGER, "train.dry_run=true")) == 0
    text = capsys.readouterr().out
    for name in ("images/s", "data wait", "peak memory", "first step", "roof", "whole run"):
        assert re.search(rf"^{name} +[\d.,]+", text, re.MULTILINE), name
    assert "20 steps" in text  # of the whole run: OPTIONS ask for 20
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_leaves_a_run_as_it_is(tmp_path, dataset):  # noqa: F811
    run = tmp_path / "run"
    arguments = train_arguments(dataset, run, EAGER, "train.max_steps=2")
    assert cli.main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert cli.main([*arguments, "train.dry_run=true", "train.epochs=3"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_a_dry_run_reads_a_folder_of_images(capsys, tmp_path):
    write_class_folders(tmp_path / "images", classes=2, per_class=12)
    arguments = train_arguments(tmp_path / "images", tmp_path / "run", EAGER, "train.dry_run=true")
    assert cli.main([*arguments, "data.test=null", "monitor.every_epochs=0"]) == 0
    printed = capsys.readouterr()
    assert "20 steps" in printed.out
    assert "24 images" in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_python_gets_a_dry_run_too(capsys, tmp_path, dataset):  # noqa: F811
    cfg = load_config(TrainConfig, ["model.encoder=resnet18", "model.width=4"])
    cfg.data.train, cfg.run_dir = dataset, tmp_path / "run"
    cfg.global_batch_size, cfg.moco.queue_size, cfg.pipeline.view_size = 8, 16, 16
    cfg.train.dry_run, cfg.train.compile = True, Compile.never
    assert fastmoco.pretrain(cfg) == tmp_path / "run"
    assert not (tmp_path / "run").exists()
    assert "images/s" in capsys.readouterr().out


def test_a_profile_has_all_stages_and_a_trace(capsys, tmp_path, dataset):  # noqa: F811
    run = tmp_path / "run"
    arguments = train_arguments(dataset, run, EAGER, "train.profile=true", "train.max_steps=4")
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    for stage in STAGES:
        assert float(re.search(rf"^{re.escape(stage)} +([\d.]+)", text, re.MULTILINE)[1]) > 0
    trace = json.loads((tmp_path / "run-trace.json").read_text())
    counts = [sum(event.get("name") == stage for event in trace["traceEvents"]) for stage in STAGES]
    assert counts == [3] * len(STAGES)  # 4 steps, the first of which is not profiled
    assert [path.name for path in tmp_path.iterdir()] == ["run-trace.json"]


def test_what_is_derived_from_the_figures():
    found = DryRun(
        first_step_seconds=10.0,
        images_per_second=500.0,
        data_wait_fraction=0.1,
        peak_bytes=2_000_000_000,
        reserved_bytes=3_000_000_000,
        flops_per_image=1e9,
        device_flops=2e12,
        number_format="bf16",
        total_steps=36_000,
        global_batch_size=50,
    )
    assert found.share_of_roof == pytest.approx(0.25)
    assert found.total_seconds == pytest.approx(10 + 3600)
    assert "1 h 0 min 10 s" in found.to_text()
    assert "2.00 GB, 3.00 GB reserved" in found.to_text()
