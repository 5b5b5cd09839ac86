"""The presets `mnist` on real digits and `tiny_imagenet` on a tree in Tiny ImageNet's layout."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmoco import cli
from fastmoco.data.dataset import open_dataset
from fastmoco.runs.metrics_file import read_metrics
from tests.optional import require

SMALL = ["model.width=4", "global_batch_size=16", "moco.queue_size=64", "train.max_steps=3"]
SMALL += ["train.compile=never", "train.report=false", "train.log_every_steps=1", "device=cpu"]
SMALL += ["monitor.every_epochs=0"]


def train(folder: Path, preset: str) -> list[float]:
    """Convert ``train`` and ``val`` of a folder, train 3 steps, and return the losses."""
    for part in ("train", "val"):
        paths = [str(folder / part), str(folder / f"{part}.beton")]
        assert cli.main(["convert", *paths, "workers=1", "page_bytes=2097152"]) == 0
    options = [f"experiment={preset}", *data_of(folder), f"run_dir={folder}/run", *SMALL]
    assert cli.main(["train", *options]) == 0
    return [row["loss"] for row in read_metrics(folder / "run" / "metrics.jsonl")]


def data_of(folder: Path) -> list[str]:
    return [f"data.train={folder}/train.beton", f"data.test={folder}/val.beton"]


def test_mnist_trains_on_real_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scanned digits of 8 pixels that scikit-learn ships, enlarged to MNIST's 28."""
    require("sklearn")
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:96], digits.target, strict=False)):
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((28, 28))
        path = tmp_path / ("val" if number >= 64 else "train") / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    losses = train(tmp_path, "mnist")
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    with open_dataset(tmp_path / "train.beton") as dataset:
        assert dataset.classes == list("0123456789")
    capsys.readouterr()
    knn = ["knn", f"{tmp_path}/run", *data_of(tmp_path), "k=5", "baselines=false", "--json"]
    assert cli.main(knn) == 0
    # Their pixels alone tell most digits apart: an encoder of 3 steps keeps some of that.
    assert json.loads(capsys.readouterr().out)["top1"] > 30


@pytest.mark.full
def test_tiny_imagenet_trains_on_its_layout(tmp_path: Path) -> None:
    """``train/WNID/images``; ``val/images`` with labels in ``val_annotations.txt``."""
    random, wnids = np.random.default_rng(0), ["n01443537", "n01629819"]
    lines = []
    for number in range(40):
        wnid = wnids[number % 2]
        name = f"val_{number}.JPEG" if number >= 32 else f"{wnid}_{number}.JPEG"
        folder = "val/images" if number >= 32 else f"train/{wnid}/images"
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / folder / name)
        if number >= 32:
            lines.append(f"{name}\t{wnid}\t0\t0\t63\t63")
    (tmp_path / "wnids.txt").write_text("\n".join(wnids))
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines))
    losses = train(tmp_path, "tiny_imagenet")
    assert np.isfinite(losses).all()
    with open_dataset(tmp_path / "val.beton") as validation:
        assert validation.classes == wnids
        assert validation.labels.tolist() == [0, 1] * 4
