"""Numbers that are not finite during a run: what stays, what is said, and how it goes on."""

import json

import pytest
import torch

from fastmoco import cli
from fastmoco.draws.host import draw_keys
from fastmoco.pipelines.contract import EpochPlan
from fastmoco.runs.checkpoint import load_checkpoint, save_checkpoint
from fastmoco.runs.checkpoint_files import CheckpointError
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
def spoiled(monkeypatch):
    """The view of an image becomes NaN in one epoch: draw keys, which the test chooses."""
    plain, chosen = TrainStep.make_views, []

    def make_views(self, crops, sample_id, draw_key):
        views = plain(self, crops, sample_id, draw_key)
        views.query[torch.isin(draw_key, torch.tensor(chosen, dtype=torch.int64))] = torch.nan
        return views

    monkeypatch.setattr(TrainStep, "make_views", make_views)
    return chosen


@pytest.mark.parametrize(
    ("step", "saved"),
    [
        pytest.param(8, 5, marks=pytest.mark.full),
        pytest.param(10, 5, marks=pytest.mark.full),
        (12, 10),
    ],
)
def test_a_bad_step_stops_the_run_and_can_be_computed_again(
    dataset,  # noqa: F811
    tmp_path,
    capsys,
    spoiled,
    step,
    saved,
):
    """Step 10 is a saving step, and step 12 the last."""
    run = tmp_path / "run"
    plan = EpochPlan(seed=0, epoch=1, num_samples=48, global_batch_size=8, start_batch=step - 7)
    ids = next(iter(plan.batches()))
    spoiled.append(int(draw_keys(0, 1, ids)[3]))
    arguments = train_arguments(dataset, run, *MORE)
    assert cli.main(arguments) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"step {step}: the loss, a gradient or a running statistic is not finite" in line
    assert f"`fastmoco replay {run} step={step}`" in line
    bad = json.loads((run / f"bad-step-{step}.json").read_text())
    assert bad["sample_ids"] == ids.tolist()
    assert bad["draw_keys"][3] == spoiled[0]
    assert load_checkpoint(run).step == saved

    assert cli.main(["replay", str(run), "device=cpu", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["step"], again["from_step"]) == (step, saved)
    assert again["images"] == [bad["names"][3]]
    assert again["first_layer"] == "backbone.conv1"
    assert len(again["gradients"]) > 10
    assert not again["changed"]

    # As advised.
    assert cli.main([*arguments, "train.on_nonfinite=skip"]) == 0
    output = capsys.readouterr()
    assert f"warning   step {step}: the loss" in output.out + output.err
    rows = read_metrics(run / "metrics.jsonl")
    assert {row["step"] for row in rows if row["skipped_steps"]} == {step}
    assert rows[-1]["step"] == STEPS
    assert all(t.isfinite().all() for t in load_checkpoint(run).tensors.values())


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
        save_checkpoint(run / "checkpoints", checkpoint, keep=1)
    with pytest.raises(CheckpointError, match=r"conv1\.weight has values that are not finite"):
        load_checkpoint(run)
    out = tmp_path / "x.pth"
    for words in (["knn", "leave_one_out=true", f"data.train={dataset}"], ["export", f"out={out}"]):
        capsys.readouterr()
        assert cli.main([words[0], str(run), *words[1:]]) == 1
        assert "conv1.weight has values that are not finite" in capsys.readouterr().err
