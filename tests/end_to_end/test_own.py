"""`experiment=own` from the command line: advice and warnings in the header, and a resumed run."""

from pathlib import Path

from fastmoco import cli
from fastmoco.train import own
from tests.pictures import write_class_folders


def test_advice_is_in_the_header_and_stays_for_the_run(tmp_path: Path, monkeypatch) -> None:
    write_class_folders(tmp_path / "images", classes=2, per_class=20)
    run = tmp_path / "run"
    command = ["train", "experiment=own", f"data.train={tmp_path / 'images'}", f"run_dir={run}"]
    command += ["device=cpu", "model.width=4", "moco.batch_norm=plain", "train.compile=never"]
    assert cli.main([*command, "train.max_steps=2"]) == 0
    first = (run / "train.log").read_text()
    assert "advice    40 images: too few to learn from nothing" in first
    assert "advice    moco.queue_size=8: 20% of 40 images" in first
    assert "model.width=" not in first
    assert "warning   batch norm has one group" in first

    monkeypatch.setattr(own, "advise", lambda *_: [])
    assert cli.main([*command, "train.max_steps=3"]) == 0
    log = (run / "train.log").read_text().removeprefix(first)
    assert "from step 2 to step 3" in log
    assert "advice    moco.queue_size=8: 20% of 40 images" in log
