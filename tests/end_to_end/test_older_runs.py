"""Runs that an older version wrote: today's code resumes them and evaluates their encoders.

The folder of ``tests/golden/run_before_floors`` was written on a CPU by commit 6d9686d, before the
modules moved: the run, interrupted after step 7 of 12 (within an epoch, and within a line of the
metrics), its export, and in ``expected.json`` what the same run reached uninterrupted. The images
are made again from a seed; that they give the file's fingerprint is part of what is tested.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import fastmoco
from fastmoco import cli
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.runs.metrics_file import read_metrics

GOLDEN = Path(__file__).parents[1] / "golden" / "run_before_floors"
STEPS, STOPPED = 12, 7
CONVERT = ["encoding=raw", "page_bytes=2097152", "workers=1"]
TRAIN = [
    "train",
    "data.train=train.beton",
    "run_dir=run",
    "seed=3",
    "device=cpu",
    "global_batch_size=16",
    "pipeline.view_size=32",
    "model.encoder=resnet18",
    "model.width=2",
    "model.stem=small_stride2",
    "moco.dim=16",
    "moco.queue_size=64",
    "moco.batch_norm_splits=2",
    "train.epochs=4",
    "train.compile=never",
    "train.log_every_steps=2",
    "checkpoint.every_steps=3",
    "checkpoint.keep=1",
]
# Measured: instruction sets of oneDNN from SSE 4.1 to AVX-512, ATen with and without vectors, and 1
# or 2 threads are within 2e-7 of each other here. Other versions of torch may sum in another order.
CLOSE = {"rel": 1e-4, "abs": 1e-4}
ONE_OF_32, ONE_OF_24 = 100 / 32 + 1e-6, 100 / 24 + 1e-6
TOLERANCES = {
    "step": {"abs": 0},
    "epoch": {"rel": 1e-12},
    "learning_rate": {"rel": 1e-12},
    "accuracy_top1": {"abs": ONE_OF_32},  # one image of a row's two steps, at a tie
    "accuracy_top5": {"abs": ONE_OF_32},
}
KNN = ["data.train=train.beton", "data.test=test.beton", "k=5", "device=cpu", "cache=false"]
KNN += ["baselines=false"]


def write_datasets(folder: Path) -> None:
    """``train.beton`` and ``test.beton``: noise around a tone of its own in each class.

    RandomState's numbers are the same in every version of NumPy; PNG and ``encoding=raw`` keep
    them.
    """
    for seed, (name, count) in enumerate({"train": 48, "test": 24}.items()):
        random = np.random.RandomState(seed)
        for number in range(count):
            label = number % 3
            pixels = random.randint(0, 160, (40, 44, 3))
            pixels[..., label] += 60
            path = folder / name / f"class{label}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        target = folder / f"{name}.beton"
        assert cli.main(["convert", str(folder / name), str(target), *CONVERT]) == 0


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets")
    write_datasets(folder)
    return folder


@pytest.fixture
def place(datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder as the older version left it: its run, its export and its datasets."""
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    for path in datasets.glob("*.beton*"):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expected() -> dict[str, Any]:
    return json.loads((GOLDEN / "expected.json").read_text())


def test_an_interrupted_run_reaches_what_it_would_have_reached(place: Path) -> None:
    run = place / "run"
    before = (run / "metrics.jsonl").read_text()
    config = OmegaConf.load(run / "config.yaml")
    assert load_checkpoint(run).step == STOPPED
    assert cli.main(TRAIN) == 0
    assert load_checkpoint(run).step == STEPS
    assert (run / "metrics.jsonl").read_text().startswith(before)
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    for row, earlier in zip(rows, expected()["rows"], strict=True):
        for name, value in earlier.items():
            found = {"step": row["step"], "name": name, "value": row[name]}
            assert found == {**found, "value": pytest.approx(value, **TOLERANCES.get(name, CLOSE))}
    # Options that are younger than the run may be there too.
    assert OmegaConf.merge(OmegaConf.load(run / "config.yaml"), config) == OmegaConf.load(
        run / "config.yaml"
    )


@pytest.mark.parametrize("encoder", ["run", "encoder.safetensors"])
@pytest.mark.usefixtures("place")
def test_its_encoder_is_as_good_as_it_was(encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["knn", encoder, *KNN, "--json"]) == 0
    top1 = json.loads(capsys.readouterr().out)["top1"]
    assert top1 == pytest.approx(expected()["knn_top1"][encoder], abs=ONE_OF_24)


def some_images() -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32).cos()


@pytest.mark.parametrize("encoder", ["run", "encoder.safetensors"])
@torch.no_grad()
def test_its_features_are_what_they_were(encoder: str) -> None:
    features = fastmoco.load_encoder(GOLDEN / encoder).backbone(some_images())
    torch.testing.assert_close(features, torch.tensor(expected()["features"]), rtol=1e-4, atol=1e-5)
