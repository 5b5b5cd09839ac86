"""What a user gets for bad input: one line on stderr that says what, where and what to do."""

import os
import re
import shutil
from pathlib import Path

import pytest

from fastmoco import cli
from fastmoco.runs.checkpoint import load_checkpoint
from tests.end_to_end.test_training import dataset, eager_run, train_arguments  # noqa: F401
from tests.pictures import encoded, picture, write_class_folders


def fails(capsys, arguments, code, *words):
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("fastmoco: ")
    for word in words:
        assert str(word) in lines[0]


def test_wrong_words(capsys):
    fails(capsys, ["trian"], 2, "unknown command trian; did you mean train?")
    fails(capsys, ["convert", "x"], 2, "DST.beton is missing")
    fails(capsys, ["info", "x", "--jsn"], 2, "unknown flag --jsn")
    fails(capsys, ["knn", "run", "extra"], 2, "unexpected argument extra")
    fails(capsys, ["convert", "a", "b.beton", "qualty=3"], 2, "did you mean quality?")


def test_missing_path(capsys, tmp_path):
    fails(capsys, ["convert", tmp_path / "none", tmp_path / "x.beton"], 2, tmp_path / "none")
    fails(capsys, ["info", tmp_path / "none.beton"], 2, tmp_path / "none.beton")
    fails(capsys, ["train", f"data.train={tmp_path / 'none.beton'}"], 2, tmp_path / "none.beton")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_room_for_a_run_is_refused_at_once(capsys, monkeypatch, tmp_path):
    """As root may write everywhere, the system's answer is played."""
    (tmp_path / "x.beton").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda folder, _: Path(folder) != tmp_path)
    words = ("run_dir=runs/moco: no permission to write to", tmp_path, "choose another path")
    fails(capsys, ["train", "data.train=x.beton"], 2, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["x.beton"]


def test_train_without_data_prints_the_convert_line(capsys):
    fails(capsys, ["train"], 2, "data.train is not set", "fastmoco convert")


def test_folder_without_images(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    fails(capsys, ["convert", tmp_path / "empty", tmp_path / "x.beton"], 2, tmp_path / "empty")
    assert not (tmp_path / "x.beton").exists()


@pytest.mark.filterwarnings("always")  # it says that a fifth is left out
def test_broken_image(capsys, tmp_path):
    write_class_folders(tmp_path / "images", classes=2, per_class=2)
    (tmp_path / "images/class_0/cut.jpg").write_bytes(encoded(picture(1))[:-200])
    target = tmp_path / "x.beton"
    fails(capsys, ["convert", tmp_path / "images", target, "on_error=fail"], 1, "class_0/cut.jpg")
    assert not target.exists()
    assert cli.main(["convert", str(tmp_path / "images"), str(target)]) == 0
    assert "class_0/cut.jpg" in (tmp_path / "x.quarantine.csv").read_text()
    assert cli.main(["verify", str(target)]) == 0


def test_cut_or_foreign_beton(capsys, tmp_path, dataset):  # noqa: F811
    for name, content, code in (
        ("cut.beton", dataset.read_bytes()[:-500], 1),
        ("foreign.beton", b"PK\x03\x04" + bytes(5000), 2),
        ("empty.beton", b"", 2),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        for arguments in (["info", path], ["verify", path], ["train", f"data.train={path}"]):
            fails(capsys, arguments, code, path)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (
            "moco.queue_size=7",
            [
                "moco.queue_size must be 8 or more",
                "global_batch_size=8, got 7",
                "set moco.queue_size=8",
            ],
        ),
        ("moco.queue_sise=64", ["unknown option moco.queue_sise; did you mean moco.queue_size?"]),
        ("global_batch_size=64", ["dataset of 48 images", "set global_batch_size=48 or less"]),
        ("moco.batch_norm_splits=3", ["moco.batch_norm_splits=3", "set it to a divisor"]),
        ("moco.temperature=0", ["moco.temperature must be above 0, got 0"]),
        ("model.encoder=resnet19", ["model.encoder=resnet19 is unknown"]),
        ("pipeline.name=fast", ["fast is unknown"]),
        ("device=tpu", ["device=tpu"]),
        ("optimizer.name=lamb", ["optimizer.name must be one of sgd, adam, adamw, lars, got lamb"]),
        ("pipeline.channel_mean=[0.5,0.5,0.5]", ["pipeline.channel_std=[] cannot normalize"]),
    ],
)
def test_settings_that_do_not_fit(capsys, tmp_path, dataset, option, words):  # noqa: F811
    run = tmp_path / "run"
    arguments = train_arguments(dataset, run, "moco.queue_size=64", "train.compile=never", option)
    capsys.readouterr()
    assert cli.main(arguments) in (1, 2)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    for word in words:
        assert word in line
    assert not (run / "checkpoints").exists()


@pytest.mark.full
def test_the_advised_command_works_in_the_folder_of_a_refused_start(capsys, tmp_path, dataset):  # noqa: F811
    """Only a checkpoint binds a folder to its settings."""
    run = tmp_path / "run"
    arguments = train_arguments(dataset, run, "moco.queue_size=64", "train.compile=never")
    arguments += ["train.max_steps=1", "monitor.every_epochs=0"]
    assert cli.main([*arguments, "global_batch_size=64"]) in (1, 2)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    advised = re.search(r"set (global_batch_size=\d+) or less", line)[1]
    assert cli.main([*arguments, advised]) == 0
    assert load_checkpoint(run).facts["config"]["global_batch_size"] == 48
    assert (run / "config.yaml").read_text().count("global_batch_size: 48") == 1
    words = ["global_batch_size: 48 there, 16 now", "moco.dim: 8 there, 4 now"]
    fails(capsys, [*arguments, "global_batch_size=16", "moco.dim=4"], 2, run, *words)


def test_a_symmetric_batch_brings_two_keys_an_image(capsys, tmp_path, dataset):  # noqa: F811
    arguments = train_arguments(
        dataset, tmp_path / "run", "moco.symmetric=true", "moco.queue_size=15"
    )
    fails(capsys, arguments, 2, "queue_size must be 16 or more", "set moco.queue_size=16 or more")


def test_a_folder_that_is_no_run(capsys, tmp_path, dataset):  # noqa: F811
    (tmp_path / "thesis.txt").write_text("precious")
    fails(
        capsys, train_arguments(dataset, tmp_path, "train.compile=never"), 2, "is not a run folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_checkpoint_of_another_model(capsys, tmp_path, dataset, eager_run):  # noqa: F811
    run = tmp_path / "run"
    more = ["model.width=8", "train.compile=never"]
    assert cli.main(train_arguments(dataset, run, *more, "train.max_steps=2")) == 0
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    for file in (eager_run / "checkpoints").iterdir():
        shutil.copy(file, run / "checkpoints")
    fails_last(capsys, train_arguments(dataset, run, *more), "is of another model", "conv1.weight")
    assert load_checkpoint(run).step == 20


def test_checkpoint_of_another_dataset(capsys, tmp_path, eager_run):  # noqa: F811
    write_class_folders(tmp_path / "images", classes=4, per_class=13)
    other = tmp_path / "other.beton"
    assert cli.main(["convert", str(tmp_path / "images"), str(other)]) == 0
    arguments = train_arguments(other, eager_run, "train.compile=never")
    fails_last(capsys, arguments, "was trained on another dataset")


def fails_last(capsys, arguments, *words):
    capsys.readouterr()
    assert cli.main(arguments) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    for word in words:
        assert word in line


def test_no_checkpoint(capsys, tmp_path, dataset):  # noqa: F811
    data = [f"data.train={dataset}", f"data.test={dataset}"]
    fails(capsys, ["knn", tmp_path, *data], 2, "contains no checkpoint")
    fails(capsys, ["knn", tmp_path / "none", *data], 2, "does not exist")
