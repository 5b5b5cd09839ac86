"""Numbers that are not finite during a run: what stays, what is said, and how it goes on."""

import json
import shlex

import pytest
import torch

from fastmoco import cli
from fastmoco.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.train.step import TrainStep
from tests.end_to_end.test_training import dataset, train_arguments  # noqa: F401

STEPS, EVERY = 12, 5
MORE = [
    "train.compile=never",
    "monitor.every_epochs=0",
    f"train.max_steps={STEPS}",
    f"checkpoint.every_steps={EVERY}",
]


@pytest.fixture
def spoiled_image(monkeypatch):
    """Views of one image become NaN; the image is chosen by the test."""
    plain, chosen = TrainStep.make_views, []

    def make_views(self, crops, sample_id, draw_key):
        views = plain(self, crops, sample_id, draw_key)
        views.query[torch.isin(sample_id, torch.tensor(chosen, dtype=torch.int64))] = torch.nan
        return views

    monkeypatch.setattr(TrainStep, "make_views", make_views)
    return chosen


def image_of_step(arguments, step, capsys, monkeypatch):
    """Id of an image of a step, from a run that is stopped there."""
    ids = []
    plain = TrainStep.learn

    def learn(self, batch):
        ids.append(batch.sample_id.tolist())
        return plain(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "learn", learn)
        assert cli.main([*arguments, f"train.max_steps={step}"]) == 0
    capsys.readouterr()
    return ids[step - 1][0]


@pytest.mark.parametrize("place", ["other", "saving", "last"])
def test_a_bad_step_stops_the_run_and_can_be_computed_again(
    dataset,  # noqa: F811
    tmp_path,
    capsys,
    monkeypatch,
    spoiled_image,
    place,
):
    run, whole = tmp_path / "run", tmp_path / "whole"
    step = {"other": 8, "saving": 10, "last": STEPS}[place]
    wanted = image_of_step(train_arguments(dataset, whole, *MORE), step, capsys, monkeypatch)
    spoiled_image.append(wanted)  # an epoch has 6 steps, so it is also in the epoch before
    arguments = train_arguments(dataset, run, *MORE)
    assert cli.main(arguments) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    (record,) = run.glob("bad-step-*.json")
    bad = json.loads(record.read_text())
    assert wanted in bad["sample_ids"]
    assert 1 <= bad["step"] <= 6
    assert f"step {bad['step']}: the loss, a gradient or a running statistic" in line
    assert "fastmoco replay" in line
    saved = sorted(path.stem for path in (run / "checkpoints").glob("*.json"))
    assert saved == ([] if bad["step"] <= EVERY else ["step-00000005"])

    assert cli.main(["replay", str(run), "device=cpu", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["step"] == bad["step"]
    assert again["images"] == [bad["names"][bad["sample_ids"].index(wanted)]]
    assert again["first_layer"] == "backbone.conv1"
    assert len(again["gradients"]) > 10
    assert not again["changed"]

    # As advised. The image is bad in every epoch.
    assert cli.main([*arguments, "train.on_nonfinite=skip"]) == 0
    output = capsys.readouterr()
    assert f"warning   step {bad['step']}" in output.out + output.err
    rows = read_metrics(run / "metrics.jsonl")
    assert sum(row["skipped_steps"] for row in rows) == 2
    assert rows[-1]["step"] == STEPS
    assert all(t.isfinite().all() for t in load_checkpoint(run).tensors.values())
    assert len(list(run.glob("bad-step-*.json"))) == 1


def test_a_good_step_computed_again_is_finite(dataset, tmp_path, capsys):  # noqa: F811
    run = tmp_path / "run"
    assert cli.main([*train_arguments(dataset, run, *MORE), "train.log_every_steps=1"]) == 0
    capsys.readouterr()
    losses = {row["step"]: row["loss"] for row in read_metrics(run / "metrics.jsonl")}
    for step in (3, 11, 12):  # from the start, and from the checkpoints 5 and 10
        assert cli.main(["replay", str(run), f"step={step}", "device=cpu", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["loss"] == losses[step]
        assert (found["changed"], found["images"], found["first_layer"]) == (True, [], None)
    assert cli.main(["replay", str(run), "step=13"]) == 2
    assert "ends at step 12, got step=13" in capsys.readouterr().err
    assert cli.main(["replay", str(run)]) == 2
    assert "has no bad-step-N.json; give step=N" in capsys.readouterr().err


def test_weights_that_grow_without_bound_stop_the_run(dataset, tmp_path, capsys):  # noqa: F811
    run = tmp_path / "run"
    arguments = train_arguments(dataset, run, *MORE, "optimizer.learning_rate=1e4")
    assert cli.main(arguments) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "times as large as at the start, most of all query_encoder." in line
    assert "lower optimizer.learning_rate" in line
    assert not list((run / "checkpoints").glob("*.json"))


def test_a_state_that_is_not_finite_is_neither_saved_nor_read(dataset, tmp_path, capsys):  # noqa: F811
    run = tmp_path / "run"
    assert cli.main(train_arguments(dataset, run, *MORE)) == 0
    checkpoint = load_checkpoint(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for name in ("model.queue.keys", "model.key_encoder.backbone.bn1.running_var"):
        for value in (torch.nan, -torch.inf, 1e38):
            checkpoint.tensors[name].view(-1)[1] = value
            with pytest.raises(ValueError, match=f"{name} has values that are not finite"):
                save_checkpoint(run / "checkpoints", checkpoint, keep=1)
            checkpoint.tensors[name].view(-1)[1] = 0.5
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    # As an older version could save it.
    checkpoint.tensors["model.query_encoder.backbone.conv1.weight"].view(-1)[0] = torch.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastmoco.runs.checkpoint.first_not_finite", lambda _: None)
        save_checkpoint(run / "checkpoints", checkpoint, keep=2)
    with pytest.raises(CheckpointError, match=r"conv1\.weight has values that are not finite"):
        load_checkpoint(run)
    for words in ("knn {} leave_one_out=true data.train={}", "export {} out=x.pth data.train={}"):
        capsys.readouterr()
        cli.main(shlex.split(words.format(shlex.quote(str(run)), shlex.quote(str(dataset)))))
        assert "conv1.weight has values that are not finite" in capsys.readouterr().err
