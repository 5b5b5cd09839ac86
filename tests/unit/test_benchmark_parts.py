"""Parts of single benchmarks: images, sparse files, growth, time to accuracy, limits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import accuracy_subject, pictures
from benchmarks.bench_growth import curve_rows, exponents
from benchmarks.bench_time_to_accuracy import Task, result_rows
from benchmarks.limits import disk_write, roof
from benchmarks.report import Report, Row
from benchmarks.sparse_file import write_sparse
from benchmarks.step_subject import built_model
from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import ConvertConfig, Encoding, convert
from fastmoco.moco.settings import MocoConfig, ModelConfig, Stem
from fastmoco.roofline import OperationCounter


def test_own_images_are_found_at_any_depth_and_evenly_chosen(tmp_path: Path) -> None:
    pictures.write_thumbnails(tmp_path / "own/deep", 20)
    (tmp_path / "own/deep/notes.txt").write_text("no image")
    (tmp_path / "own/top.JPG").write_bytes(b"jpeg")
    source = pictures.make_photographs(tmp_path / "tree", 7, tmp_path / "own")
    found = sorted(path for path in source.folder.rglob("*") if path.is_file())
    assert source.num_bytes == sum(path.stat().st_size for path in found)
    name = f"7 JPEGs of own, {source.num_bytes / 7e3:.3g} kB each"
    assert (source.name, source.count, len(found)) == (name, 7, 7)
    assert len({path.parent for path in found}) > 3
    assert all(path.parent.parent == source.folder for path in found)
    with pytest.raises(ValueError, match=r"holds no \.jpg"):
        pictures.make_photographs(tmp_path / "other", 7, tmp_path / "own/deep/class_0/none")


def test_a_sparse_file_opens_and_reads_as_black_images(tmp_path: Path) -> None:
    path = tmp_path / "sparse.beton"
    write_sparse(path, 500, side=256)
    with BetonFile.open(path) as beton:
        assert len(beton) == 500
        assert beton.labels.max() == 998
        assert beton.num_bytes > 500 * 3 * 256 * 256
        assert not beton.decode(499).any()
    assert path.stat().st_blocks * 512 < 1e6


def test_exponents_are_those_of_the_costs() -> None:
    sizes = (64, 256, 2048)
    seconds = {size: [3e-5 * size**1.5, 7e-5 * size**0.5] for size in sizes}
    assert exponents(seconds) == pytest.approx([1.5, 0.5])
    *points, fitted = curve_rows("batch", seconds)
    assert [row.size for row in points] == list(sizes)
    assert fitted.value is not None
    assert (fitted.value.median, fitted.unit) == (pytest.approx(1.0), "exponent")
    assert len(curve_rows("threads", {1: [1.0]})) == 1  # one core: nothing to fit


def test_curves_are_drawn(tmp_path: Path) -> None:
    rows = curve_rows("K, keys", {64: [1.0, 1.1], 4096: [2.0, 2.1]})
    Report("growth", "small", rows=[*rows, Row(what="none", unit="s")]).plot(tmp_path)
    text = (tmp_path / "growth.svg").read_text()
    assert "K, keys" in text
    assert "exponent" in text


def test_time_to_accuracy_is_of_the_seeds_that_reached_it() -> None:
    curves = [[(10.0, 600, 20.0), (20.0, 1200, 41.0)], [(11.0, 600, 25.0), (21.0, 1200, 39.0)]]
    rows = result_rows(Task((), 40.0, seeds=(0, 1), goal="< 60 s"), curves)
    seconds, images, *points = rows
    assert seconds.value is not None
    assert images.value is not None
    assert (seconds.value.median, images.value.median) == (20.0, 1200)
    assert seconds.goal == "< 60 s"
    assert "not reached by 1 of 2: [39.0]" in seconds.note
    assert [(row.size, row.value and row.value.median) for row in points] == [
        (second, top1) for curve in curves for second, _, top1 in curve
    ]
    missed = result_rows(Task((), 99.0), curves[:1])
    assert missed[0].value is None


def test_whole_runs_count_where_they_end_at_the_target() -> None:
    curve = [(10.0, 600, 20.0), (20.0, 1200, 41.0)]
    reached, _, whole, *_ = result_rows(Task((), 20.0, goal="< 60 s", whole=True), [curve])
    assert reached.value is not None
    assert whole.value is not None
    assert (reached.value.median, whole.value.median) == (10.0, 20.0)
    assert (whole.what, whole.note) == ("all epochs", "kNN at the end [41.0] %")
    fell = result_rows(Task((), 20.0, whole=True), [[*curve, (30.0, 1800, 19.0)]])[2]
    assert fell.value is None


@pytest.mark.full
def test_training_stops_at_the_target(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{split}.beton") for split in ("train", "test")]
    for count, file in zip((60, 30), files, strict=True):
        pictures.write_thumbnails(Path(file).with_suffix(""), count)
        convert(str(Path(file).with_suffix("")), Path(file), ConvertConfig(encoding=Encoding.raw))
    overrides = ["experiment=demo", "train.compile=never", "global_batch_size=20"]
    overrides += ["moco.queue_size=40", "model.width=4", "monitor.every_epochs=1"]
    overrides += ["train.epochs=3", "device=cpu", "monitor.allow_overlap=true"]
    run = str(tmp_path / "run")
    found = accuracy_subject.train_until(*files, run, 0.0, 0.0, overrides)
    ((seconds, images, _),) = found["curve"]
    assert images == 60
    assert seconds > 0
    whole = accuracy_subject.train_until(*files, f"{run}-whole", None, 0.0, overrides)
    assert [at[1] for at in whole["curve"]] == [60, 120, 180]


def test_operations_and_bytes_of_a_linear_layer_are_counted() -> None:
    layer, images = nn.Linear(16, 32, bias=False), torch.randn(8, 16)
    with OperationCounter() as counter:
        layer(images).sum().relu()
    (product,) = counter.operations
    assert product.flops == 2 * 8 * 16 * 32
    assert product.num_bytes == 4 * (8 * 16 + 16 * 32 + 8 * 32)


def test_a_roof_is_above_what_a_step_reaches() -> None:
    model = built_model(
        ModelConfig(encoder="resnet18", stem=Stem.small_stride2, width=4),
        MocoConfig(queue_size=32, dim=8),
        torch.device("cpu"),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    what, rate = roof(model, 16, 8, torch.float32)
    assert "TFLOP/s in float32" in what
    assert 1e3 < rate < 1e9
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_disk_is_timed_and_left_as_it_was(tmp_path: Path) -> None:
    assert 0 < disk_write(tmp_path / "file", 3_000) < 10
    assert not list(tmp_path.iterdir())
    assert np.isfinite(disk_write(tmp_path / "file", 1))
