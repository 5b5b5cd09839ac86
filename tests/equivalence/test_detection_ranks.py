"""Two ranks against one: batch norm over images of different sizes, and fine-tuning."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastmoco.configuration import load_config
from fastmoco.detection import detect as command
from fastmoco.detection.fitting import Fitting, build_sgd
from fastmoco.detection.models import build_detector
from fastmoco.detection.norm import DetectionBatchNorm2d
from fastmoco.detection.samples import Sample
from fastmoco.detection.segmenter import Segmenter
from fastmoco.detection.settings import (
    DetectConfig,
    DetectionOptimizerConfig,
    DetectionTask,
)
from fastmoco.ranks import ALONE
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.runs.checkpoint_files import CheckpointError
from tests.detection_data import voc_options, write_run, write_small_scenes
from tests.ranks import run_ranks
from tests.unit.test_detection_models import SMALL, make_resnet, sample


def normalize_parts(ranks, parts):
    torch.manual_seed(0)
    layer = DetectionBatchNorm2d(3, ranks=ranks).double()
    nn.init.normal_(layer.weight)
    mine = parts if ranks is ALONE else [parts[ranks.rank]]
    inputs = [part.clone().requires_grad_() for part in mine]
    columns = torch.cat([part.permute(1, 0, 2, 3).flatten(1) for part in inputs], dim=1)
    output = layer(columns[None, :, :, None])[0, :, :, 0]
    (output.sin() ** 2).sum().backward()
    return {
        "gradients": [part.grad for part in inputs],
        "mean": layer.running_mean,
        "var": layer.running_var,
    }


def segment_sample(seed):
    torch.manual_seed(seed)
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    return Sample(image, {"classes": torch.randint(3, (32, 32))})


def fit_segmenter(ranks, samples):
    """Two steps; each rank has its share of the samples."""
    cfg = replace(
        SMALL,
        task=DetectionTask.segment,
        optimizer=DetectionOptimizerConfig(learning_rate=0.1, warmup_steps=0),
    )
    model = Segmenter(make_resnet(), cfg, num_classes=3, mean=[0.5] * 3, std=[0.2] * 3, ranks=ranks)
    fitting = Fitting(cfg, model, build_sgd(model, cfg), torch.device("cpu"), "d", "e", ranks)
    for _ in range(2):
        fitting.take([segment_sample(seed) for seed in samples[ranks.rank :: ranks.world_size]])
    return model.state_dict()


def fit_detector(ranks):
    """Two steps on images of each rank's own, of different sizes."""
    model = build_detector(
        make_resnet(),
        SMALL,
        num_classes=3,
        num_keypoints=0,
        mean=[0.5] * 3,
        std=[0.2] * 3,
        ranks=ranks,
    )
    fitting = Fitting(SMALL, model, build_sgd(model, SMALL), torch.device("cpu"), "d", "e", ranks)
    for step in range(2):
        one = sample(10 * step + ranks.rank)
        fitting.take([Sample(one.image[:, : 64 - 16 * ranks.rank], one.target)])
    return model.state_dict()


def detect_options(scenes, folder):
    sizes = ["train.steps=4", "global_batch_size=4", "train_sizes=[64,96]", "test_size=64"]
    more = ["precise_norm_steps=1", "checkpoint.every_steps=3", "trials=2", "device=cpu"]
    return [*voc_options(scenes), *sizes, *more, f"run_dir={folder}"]


def detect_on_rank(run, options):
    """The command's function, in the group that is there."""
    command.process_group = lambda *_: nullcontext()
    command.detect(run, load_config(DetectConfig, options))
    maps = ["task=segment", "crop_size=48", "trials=1", f"{options[-1]}-maps"]
    command.detect(run, load_config(DetectConfig, [*options, *maps]))


def on_rank(ranks, parts, samples, run, options):
    detect_on_rank(run, options)
    normalized = normalize_parts(ranks, parts)
    return {**normalized, "map": fit_segmenter(ranks, samples), "boxes": fit_detector(ranks)}


@pytest.mark.full
def test_two_ranks_learn_as_one(tmp_path):
    scenes = write_small_scenes(tmp_path / "scenes", train=5, test=2)
    run, options = write_run(tmp_path / "run"), detect_options(scenes, tmp_path / "d")
    torch.manual_seed(1)
    # Of different sizes and numbers, as padded images and regions are.
    parts = [torch.randn(2, 3, 5, 7).double(), 3 + torch.randn(3, 3, 2, 4).double()]
    alone, whole = normalize_parts(ALONE, parts), fit_segmenter(ALONE, [0, 1, 2, 3])
    results = run_ranks(on_rank, parts, [0, 1, 2, 3], run, options)
    for rank, result in enumerate(results):
        torch.testing.assert_close(result["gradients"][0], alone["gradients"][rank])
        torch.testing.assert_close(result["mean"], alone["mean"])
        torch.testing.assert_close(result["var"], alone["var"])
        # float32, two steps: sums of another order.
        torch.testing.assert_close(result["map"], whole, atol=1e-4, rtol=1e-3)
    for name, tensor in results[0]["boxes"].items():
        assert torch.equal(tensor, results[1]["boxes"][name]), name
    written = json.loads((tmp_path / "d/result.json").read_text())
    assert [trial["seed"] for trial in written["trials"]] == [0, 1]
    saved = load_checkpoint(tmp_path / "d/seed-1")
    assert (saved.step, saved.facts["world_size"]) == (4, 2)
    with pytest.raises(CheckpointError, match="was trained on 2 devices, here are 1"):
        command.detect(run, load_config(DetectConfig, options))
