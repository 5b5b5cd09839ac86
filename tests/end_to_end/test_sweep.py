"""A sweep through the command line: killed, resumed, one run failing; and its table."""

import json
import os
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fastmoco
from fastmoco import cli
from fastmoco.reproduce.record import Status, read_record
from tests.limits import HANG_SECONDS
from tests.runs import write_colors
from tests.sweeps import write_definition

DEFINITION = """
about: Tiny
settings: [{settings}]
axes:
  rate:
    good: [optimizer.learning_rate=0.01]
    bad: [optimizer.learning_rate=1e30]
measure: [knn]
knn: [k=3]
published: {{orderings: [good > bad]}}
"""
SETTINGS = [
    "global_batch_size=8",
    "pipeline.view_size=16",
    "pipeline.center_crop=1.0",
    "model.encoder=resnet18",
    "model.stem=small_stride2",
    "model.width=4",
    "moco.dim=8",
    "moco.queue_size=16",
    "train.epochs=2",
    "train.log_every_steps=1",
    "train.compile=never",
    "checkpoint.every_steps=1",
]

# Runs the command line, and kills its own process when the first line on a run was printed.
KILLER = """
import os, signal, sys
from fastmoco import cli
from fastmoco.reproduce import schedule

plain = schedule._start

def killing(*args):
    child = plain(*args)
    child.process.wait()
    os.kill(os.getpid(), signal.SIGKILL)

schedule._start = killing
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    text = DEFINITION.format(settings=", ".join(SETTINGS))
    path = write_definition(folder, text, "tiny.yaml")
    for split in ("train", "test"):
        source = write_colors(folder / split, seed=len(split), per_class=8)
        assert cli.main(["convert", str(source), str(folder / f"{split}.beton")]) == 0
    data = [f"data.{split}={folder / split}.beton" for split in ("train", "test")]
    return [str(path), "scale=full", f"folder={folder / 'runs'}", *data]


@pytest.fixture(scope="module")
def folder(arguments):
    return Path(arguments[2].removeprefix("folder="))


@pytest.mark.full
def test_killed_and_resumed_with_a_run_that_diverges(arguments, folder, capsys):
    root = str(Path(fastmoco.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", KILLER, "sweep", *arguments],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        timeout=HANG_SECONDS,
    )
    assert found.returncode == -signal.SIGKILL, found.stderr
    good, bad = folder / "good,seed=0", folder / "bad,seed=0"
    before = (good / "sweep.json").stat().st_mtime_ns
    assert not bad.exists()

    assert cli.main(["sweep", *arguments]) == 0  # a diverged run is a result
    assert (good / "sweep.json").stat().st_mtime_ns == before
    assert read_record(good).status is Status.finished
    assert read_record(bad).status is Status.diverged
    said = capsys.readouterr().out
    assert "2 runs, 1 of them done before" in said
    assert "[2/2] bad,seed=0 diverged: the loss is not finite" in said
    assert "1 finished, 1 diverged; its table: fastmoco table" in said
    assert "the loss is not finite" in (folder / "logs/bad,seed=0.log").read_text()

    assert cli.main(["table", arguments[0], "scale=full", arguments[2]]) == 0
    table = capsys.readouterr().out
    assert "| bad | 0 of 1 | failed: the loss is not finite" in table
    assert "| knn_top1: good > bad | one seed | bad failed |" in table


@pytest.mark.full
def test_other_options_are_refused_before_anything_starts(arguments, capsys):
    assert cli.main(["sweep", *arguments, "run=good,seed=0"]) == 0  # the folder has a run
    assert cli.main(["sweep", *arguments, "moco.dim=16"]) == 2
    assert "moco.dim: 8 there, 16 now" in capsys.readouterr().err
    assert cli.main(["sweep", *arguments, "run=bad,seed=0", "moco.dim=8"]) == 2
    assert "holds runs with the options [], not ['moco.dim=8']" in capsys.readouterr().err
    assert cli.main(["sweep", *arguments, "moco.dmi=16"]) == 2
    assert "did you mean moco.dim?" in capsys.readouterr().err
    assert cli.main(["sweep", *arguments, "sclae=full"]) == 2
    assert "did you mean scale?" in capsys.readouterr().err
    assert cli.main(["sweep", *arguments[:4]]) == 2
    assert "data.test is not set" in capsys.readouterr().err


STARTER = """
import os, signal
from fastmoco.reproduce.children import start_child

print(start_child(["sleep", "200"]).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_ends_with_its_parent():
    root = str(Path(fastmoco.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", STARTER],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        timeout=HANG_SECONDS,
    )
    try:
        child = os.pidfd_open(int(found.stdout))
    except ProcessLookupError:
        return  # it has ended
    ended, _, _ = select.select([child], [], [], 30)
    os.close(child)
    assert ended


def test_printed_lines_do_one_run_each(arguments, folder, capsys):
    new = [*arguments[:2], arguments[2] + " new", *arguments[3:]]
    assert cli.main(["sweep", *new, "print=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    program, *words = shlex.split(lines[0])
    assert program == "fastmoco"
    assert cli.main(words) == 0
    record = json.loads((Path(f"{folder} new") / "good,seed=0/sweep.json").read_text())
    assert record["status"] == "finished"
    assert record["measures"]["knn"]["k"] == 3
    assert record["command"].startswith("fastmoco train ")


@pytest.mark.full
def test_cost_is_measured_without_training(arguments, folder, capsys):
    text = Path(arguments[0]).read_text().replace("[knn]", "[dry_run]")
    path = write_definition(folder.parent / "cost", text)
    place = folder.parent / "cost runs"
    own = [str(path), "scale=full", f"folder={place}", arguments[3]]
    assert cli.main(["sweep", *own, "run=good,seed=0"]) == 0
    run = place / "good,seed=0"
    assert [item.name for item in run.iterdir()] == ["sweep.json"]
    cost = read_record(run).measures["dry_run"]
    assert cost["images_per_second"] > 0
    assert 50e6 < cost["peak_bytes"] < 20e9
    assert cli.main(["sweep", *own, "run=good,seed=0", "moco.dim=16"]) == 2
    assert "holds a run with other options" in capsys.readouterr().err
    assert cli.main(["table", str(path), "scale=full", f"folder={place}"]) == 0
    assert "| good | 1 |" in capsys.readouterr().out
