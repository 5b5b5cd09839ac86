"""Each mechanism through the command line: killed, resumed, evaluated."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastmoco
from fastmoco import cli
from fastmoco.moco.moco_v3 import MoCoV3
from fastmoco.moco.settings import OWN_HEADS
from fastmoco.runs.metrics_file import read_metrics
from tests.end_to_end.test_training import (  # noqa: F401
    TIMES,
    assert_same_run,
    dataset,
    train_arguments,
)
from tests.limits import HANG_SECONDS

STEPS, EVERY, KILLED_IN = 12, 5, 8
MECHANISMS = {"end_to_end": 14, "memory_bank": 36, "moco_v3": 7, "fast_moco": 7}  # and negatives
OPTIONS = [
    "moco.batch_norm_splits=1",
    "train.compile=never",
    f"train.max_steps={STEPS}",
    "train.log_every_steps=1",
    f"checkpoint.every_steps={EVERY}",
    "monitor.every_epochs=0",
]

# Starts each command line (a JSON list of them) as a process of its own, which SIGKILLs itself in a
# step; forked, so that torch is loaded once.
KILLER = """
import json, os, signal, sys, threading
from fastmoco import cli
from fastmoco.train import step

count, commands = int(sys.argv[1]), json.loads(sys.argv[2])  # Hydra changes sys.argv
plain, steps = step.TrainStep.__call__, []

def killing(*args):
    steps.append(args)
    if len(steps) == count:
        for thread in threading.enumerate():
            if thread.name == "fastmoco-checkpoint":
                thread.join()  # the checkpoint before is on the disk
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*args)

step.TrainStep.__call__ = killing
for arguments in commands:
    child = os.fork()
    if not child:
        os._exit(cli.main(arguments))
    print(os.waitpid(child, 0)[1])
"""


def mechanism_arguments(data: Path, run: Path, mechanism: str) -> list[str]:
    own = [f"moco.mechanism={mechanism}"]
    own += ["moco.hidden_dim=12"] if mechanism in OWN_HEADS else []
    return train_arguments(data, run, *OPTIONS, *own)


@pytest.fixture(scope="module")
def killed_runs(dataset, tmp_path_factory):  # noqa: F811
    """A run of each, killed in a step after its first checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    commands = [mechanism_arguments(dataset, folder / name, name) for name in MECHANISMS]
    root = str(Path(fastmoco.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", KILLER, str(KILLED_IN), json.dumps(commands)],
        # As many threads as here: another number sums in another order.
        env={
            **os.environ,
            "PYTHONPATH": root,
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        },
        timeout=HANG_SECONDS,
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == [str(int(signal.SIGKILL))] * len(MECHANISMS), found.stderr
    return folder


@pytest.mark.full
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_killed_and_resumed_equals_uninterrupted(
    dataset,  # noqa: F811
    killed_runs,
    tmp_path,
    monkeypatch,
    mechanism,
):
    progress, plain = [], MoCoV3.set_progress

    def recorded(self, share):
        progress.append(share)
        plain(self, share)

    monkeypatch.setattr(MoCoV3, "set_progress", recorded)
    whole, killed = tmp_path / "whole", killed_runs / mechanism
    assert cli.main(mechanism_arguments(dataset, whole, mechanism)) == 0
    assert read_metrics(killed / "metrics.jsonl")[-1]["step"] == KILLED_IN - 1
    assert cli.main(mechanism_arguments(dataset, killed, mechanism)) == 0
    assert_same_run(killed, whole, steps=STEPS)

    rows, negatives = read_metrics(whole / "metrics.jsonl"), MECHANISMS[mechanism]
    assert {"loss", "accuracy_top1", "accuracy_top5", "negative_similarity", *TIMES} <= set(rows[0])
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["loss_floor_ln_k1"] == pytest.approx(math.log(negatives + 1))
    header = (whole / "train.log").read_text()
    assert mechanism in header
    assert f"chance loss ln(K+1) = {math.log(negatives + 1):.2f}, computed" in header
    if mechanism in OWN_HEADS:  # the schedule spans the epochs: 10 of 6 steps
        steps = [*range(STEPS), *range(EVERY, STEPS)]
        assert progress == pytest.approx([step / 60 for step in steps])

    encoder = fastmoco.load_encoder(whole)
    assert encoder(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 32)


@pytest.mark.full
@pytest.mark.parametrize("features", ["backbone", "embedding"])
def test_knn_of_a_moco_v3_run(dataset, killed_runs, capsys, features):  # noqa: F811
    """By the backbone, and by the projection head of its own."""
    data = [f"data.train={dataset}", "leave_one_out=true", "k=3", f"features={features}"]
    data += ["baselines=false"]
    assert cli.main(["knn", str(killed_runs / "moco_v3"), *data, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["features"] == features
    assert 0 <= result["top1"] <= result["top5"] <= 100


def test_a_bank_needs_images_outside_the_batch(dataset, tmp_path, capsys):  # noqa: F811
    arguments = mechanism_arguments(dataset, tmp_path / "run", "memory_bank")
    assert cli.main([*arguments, "global_batch_size=48"]) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "global_batch_size=48 leaves none of the dataset's 48 images" in error


def test_a_dry_run_counts_the_mechanism(dataset, tmp_path, capsys):  # noqa: F811
    arguments = mechanism_arguments(dataset, tmp_path / "run", "memory_bank")
    assert cli.main([*arguments, "train.dry_run=true", "train.max_steps=3"]) == 0
    captured = capsys.readouterr()
    assert "whole run" in captured.out
    assert "memory_bank, 36 negatives of 48 entries" in captured.err
