"""`train.tracker=wandb` by the real package, without network and login."""

import sys

import pytest

from fastmoco.cli import main
from tests.optional import require
from tests.runs import OPTIONS, write_colors


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    require("wandb")
    for name in ("WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    data = write_colors(tmp_path / "images", seed=0, per_class=8)
    fixed = [*OPTIONS, "train.tracker=wandb", "train.compile=never", "device=cpu"]
    fixed += ["train.log_every_steps=1", f"data.train={data}", f"run_dir={tmp_path / 'run'}"]
    yield ["train", *fixed, "monitor.every_epochs=0"]
    sys.modules["wandb"].teardown()  # what it read of the environment is the process's


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb itself
def test_a_run_is_logged_offline_and_resumes_as_the_same(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in (2, 3):
        assert main([*arguments, f"train.max_steps={steps}"]) == 0, capsys.readouterr().err
    folder = tmp_path / "run/wandb"
    name = (folder / "run-id.txt").read_text().strip()
    assert f"tracker   W&B run {name}, offline" in capsys.readouterr().err
    files = sorted(folder.glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == len(list(folder.glob("offline-run-*"))) == 2
    assert all(b"positive_similarity" in file.read_bytes() for file in files)
    assert not (tmp_path / "run/tensorboard").exists()


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb itself
def test_a_missing_login_is_one_line_and_no_question(arguments, tmp_path, capfd):
    assert main([*arguments, "train.max_steps=1"]) == 2
    error = capfd.readouterr().err
    assert error.startswith("fastmoco: train.tracker=wandb finds no account; log in by")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
