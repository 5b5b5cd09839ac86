"""`pipeline.augmentation=auto`: a rule by the device, chosen once for a run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastmoco.pipelines import augment
from fastmoco.pipelines.augment import choose_augmentation, uses_kornia
from fastmoco.pipelines.settings import Augmentation, PipelineConfig
from fastmoco.runs.run_folder import RunFolder, RunIdentity
from fastmoco.train.device_rules import with_augmentation, with_schedule
from fastmoco.train.settings import FREE_KEYS, TrainConfig
from tests.steps import make_batch, make_step

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
OPTION = "pipeline.augmentation"


def begun(path: Path, augmentation: str, without: str = "") -> RunFolder:
    """A run with a checkpoint, without a line of its ``config.yaml``."""
    run = RunFolder(path)
    pipeline = PipelineConfig(augmentation=Augmentation(augmentation))
    cfg = replace(TrainConfig(), pipeline=pipeline)
    run.config.write_text(RunIdentity(cfg, FREE_KEYS).to_yaml().replace(without, ""))
    run.checkpoints.mkdir()
    (run.checkpoints / "step-00000001.json").touch()
    return run


def test_a_gpu_takes_kornia_and_a_cpu_its_loops():
    assert choose_augmentation(GPU)[0] is Augmentation.kornia
    assert choose_augmentation(CPU)[0] is Augmentation.planes
    assert [uses_kornia(Augmentation.auto, device) for device in (GPU, CPU)] == [True, False]
    for device in (GPU, CPU):
        assert uses_kornia(Augmentation.kornia, device)
        assert not uses_kornia(Augmentation.planes, device)


def test_the_choice_and_its_reason_are_part_of_the_configuration():
    given = TrainConfig()
    cfg = with_augmentation(given, GPU)
    assert given.pipeline.augmentation is Augmentation.auto
    assert cfg.pipeline.augmentation is Augmentation.kornia
    assert cfg.advice == [f"{OPTION}=kornia: {choose_augmentation(GPU)[1]}"]
    assert with_augmentation(cfg, CPU) is cfg


@pytest.mark.parametrize("stored", ["kornia", "planes"])
@pytest.mark.parametrize("device", [GPU, CPU], ids=str)
def test_a_resumed_run_keeps_its_operations(tmp_path, stored, device):
    run = begun(tmp_path, stored)
    cfg = with_augmentation(TrainConfig(), device, run)
    assert (cfg.pipeline.augmentation, cfg.advice) == (stored, [])
    assert RunIdentity(cfg, FREE_KEYS).differences(run.config) == []


@pytest.mark.parametrize("device", [GPU, CPU], ids=str)
def test_a_run_of_an_older_version_resumes_by_planes(tmp_path, device):
    run = begun(tmp_path, "planes", without="  augmentation: planes\n")
    assert "augmentation" not in run.config.read_text()
    cfg = with_augmentation(TrainConfig(), device, run)
    assert cfg.pipeline.augmentation is Augmentation.planes
    assert RunIdentity(cfg, FREE_KEYS).differences(run.config) == []


def test_a_run_of_an_older_version_keeps_its_schedule(tmp_path):
    """Its cosine spanned all epochs; one without a warm-up resumes too."""
    run = begun(tmp_path, "planes", without="  cosine_after_warmup: true\n")
    assert "cosine_after_warmup" not in run.config.read_text()
    cfg = with_schedule(with_augmentation(TrainConfig(), CPU, run), run)
    assert not cfg.optimizer.cosine_after_warmup
    assert RunIdentity(cfg, FREE_KEYS).differences(run.config) == []
    fresh = RunFolder(tmp_path / "fresh")
    assert with_schedule(TrainConfig(), fresh).optimizer.cosine_after_warmup


def test_a_step_makes_its_views_as_it_was_told(monkeypatch):
    made = []
    plain = augment.kornia_views
    monkeypatch.setattr(augment, "kornia_views", lambda *a: made.append(1) or plain(*a))
    batch = make_batch(0)
    views = []
    for by_kornia in (None, False, True):
        step = make_step(policy="moco_v3", by_kornia=by_kornia)
        views.append(step.make_views(batch.crops, batch.sample_id, batch.draw_key))
        assert made == [1] * bool(by_kornia)
    for name in ("query", "key"):
        by_loops, again, by_kornia = (getattr(pair, name) for pair in views)
        assert torch.equal(by_loops, again)
        torch.testing.assert_close(by_loops, by_kornia, rtol=0, atol=1e-5 / 0.2)
