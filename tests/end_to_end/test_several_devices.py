"""Two processes by torchrun, on the CPU: kill, resume, stop, refuse."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fastmoco
from fastmoco import cli
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.runs.metrics_file import read_metrics
from tests.end_to_end.test_training import (  # noqa: F401
    KILLER,
    assert_same_run,
    dataset,
    train_arguments,
)
from tests.limits import HANG_SECONDS
from tests.optional import require
from tests.ranks import free_port

# Ends on one rank, in one step, by a signal, or by an error where it is 0: PLACE COUNT RANK SIGNAL.
ROUNDING = 1e-3
"""Of a loss in nats, over 10 steps: sums over two ranks round otherwise, 7e-6 were seen."""
ROOT = str(Path(fastmoco.__file__).parents[1])
ONE_RANK = KILLER.replace(
    "place, count = sys.argv[1], int(sys.argv[2])",
    "place, count = sys.argv[1], int(sys.argv[2])\n"
    "chosen, number = sys.argv[3:5]\n"
    "del sys.argv[3:5]\n"
    "if os.environ['RANK'] != chosen:\n"
    "    count = -1",
).replace(
    "os.kill(os.getpid(), signal.SIGKILL)",
    "if number == '0':\n"
    "                raise ValueError('a broken image')\n"
    "            os.kill(os.getpid(), int(number))",
)


def start(*command, processes=2, restarts=0):
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    torchrun += [f"--max-restarts={restarts}"]
    torchrun += ["--master-addr=127.0.0.1", f"--master-port={free_port()}", "--no-python"]
    return subprocess.Popen(
        [*torchrun, *command],
        env={**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    try:
        output, _ = process.communicate(timeout=HANG_SECONDS)
    finally:
        process.kill()
    return process.returncode, output


def command_line(arguments):
    return [sys.executable, "-m", "fastmoco.cli", *arguments]


def one_rank(number, rank, step, arguments):
    places = ["step", str(step), str(rank), str(int(number))]
    return [sys.executable, "-c", ONE_RANK, *places, *arguments]


@pytest.fixture(scope="module")
def options(dataset):  # noqa: F811
    def arguments(run, *more):
        return train_arguments(dataset, run, "train.compile=never", *more)

    return arguments


@pytest.fixture(scope="module")
def whole_run(options, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    code, output = finish(start(*command_line(options(run))))
    assert code == 0, output
    (run / "output.txt").write_text(output)
    return run


def test_one_process_writes(whole_run):
    rows = read_metrics(whole_run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(2, 21, 2))
    assert [row["step"] for row in rows if row["knn_top1"] is not None] == [6, 12, 18, 20]
    log = (whole_run / "train.log").read_text()
    for lines in (log, (whole_run / "output.txt").read_text()):
        assert len(re.findall(r"step 20/", lines)) == 1
        assert len(re.findall(r"batch 8, 4 a device", lines)) == 1
        assert len(re.findall(r"batch norm shuffled, 2 groups", lines)) == 1
    assert len(list((whole_run / "tensorboard").iterdir())) == 1
    assert load_checkpoint(whole_run).tensors["model.queue.pointer"].item() == 20 * 8 % 36


SYNCHRONIZED = ("moco.batch_norm=synchronized", "moco.batch_norm_splits=1")


@pytest.mark.full
@pytest.mark.parametrize(
    ("first", "then", "more"),
    [(1, 2, ()), (2, 1, ()), (2, 1, SYNCHRONIZED)],
    ids=["1 to 2", "2 to 1", "2 to 1, synchronized"],
)
def test_resuming_on_another_number_of_devices_keeps_the_global_batches(
    options, tmp_path, first, then, more
):
    """Also the order of keys: the queue holds the same images' keys in the same places."""

    def run(name, processes, *settings):
        given = options(tmp_path / name, "precision=float32", "monitor.every_epochs=0", *more)
        code, output = finish(start(*command_line([*given, *settings]), processes=processes))
        assert code == 0, output

    run("whole", first)
    run("moved", first, "train.max_steps=10")
    run("moved", then)
    moved, whole = (load_checkpoint(tmp_path / name).tensors for name in ("moved", "whole"))
    for name in ("model.queue.source", "model.queue.pointer"):
        assert torch.equal(moved[name], whole[name])
    losses = [
        {row["step"]: row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")}
        for name in ("moved", "whole")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=ROUNDING)
    assert losses[0] != losses[1]


@pytest.mark.full
def test_a_batch_norm_of_other_groups_is_not_resumed(options, tmp_path):
    arguments = options(tmp_path / "run", "moco.batch_norm_splits=1", "train.max_steps=2")
    code, output = finish(start(*command_line(arguments)))
    assert code == 0, output
    code, output = finish(start(*command_line(arguments), processes=1))
    assert code != 0
    assert "on 1 devices it would be plain, 1 group; use as many devices as before" in output


@pytest.mark.full
def test_a_launcher_that_sets_rank_and_world_size_is_enough(options, whole_run, tmp_path):
    """As `srun` does with a line of bash; each process sees its own device as the first one."""
    run, port = tmp_path / "run", str(free_port())
    own = {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            command_line(options(run)),
            env={**os.environ, **own, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for code, output in [finish(process) for process in processes]:
        assert code == 0, output
    assert_same_run(run, whole_run)


def assert_lost(rank, output):
    """A rank says that another is gone, unless torchrun, which sees it too, was first to end it."""
    said = f"fastmoco: rank {rank}: the process of another device ended" in output
    assert said or "closing signal SIGTERM" in output, output


def test_a_lost_device_is_named_although_torchrun_ends_the_process(monkeypatch, capsys):
    def lose(_arguments):
        try:
            raise ConnectionError("the process of another device ended")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    command = dataclasses.replace(cli.COMMANDS["info"], run_arguments=lose)
    monkeypatch.setitem(cli.COMMANDS, "info", command)
    assert cli.main(["info", "x.beton"]) == 1
    assert capsys.readouterr().err == "fastmoco: the process of another device ended\n"


@pytest.mark.full
def test_killed_ranks_end_all_and_the_run_goes_on(options, whole_run, tmp_path):
    run = tmp_path / "killed"
    # Steps are counted from the checkpoint. The first rank may be killed while it writes one.
    for rank, place, saved in ((1, 13, {10}), (0, 8, {10, 15})):
        began = time.monotonic()
        code, output = finish(start(*one_rank(signal.SIGKILL, rank, place, options(run))))
        assert code != 0
        assert time.monotonic() - began < HANG_SECONDS  # far below the group's limit, 30 minutes
        assert_lost(1 - rank, output)
        assert load_checkpoint(run).step in saved
    code, output = finish(start(*command_line(options(run))))
    assert code == 0, output
    assert_same_run(run, whole_run)


@pytest.mark.full
def test_an_error_on_one_rank_ends_all(options, tmp_path):
    code, output = finish(start(*one_rank(0, 1, 7, options(tmp_path / "run"))))
    assert code != 0
    assert "fastmoco: rank 1: a broken image" in output
    assert_lost(0, output)
    assert load_checkpoint(tmp_path / "run").step == 5


@pytest.mark.full
def test_a_signal_to_one_rank_stops_all_after_the_same_step(options, whole_run, tmp_path):
    run = tmp_path / "stopped"
    code, output = finish(start(*one_rank(signal.SIGINT, 1, 13, options(run))))
    assert code != 0
    assert output.count("fastmoco: stopped after step 13, saved") == 1
    assert load_checkpoint(run).step == 13
    code, output = finish(start(*command_line(options(run))))
    assert code == 0, output
    assert_same_run(run, whole_run)


@pytest.mark.full
def test_a_signal_to_torchrun_saves(options, tmp_path):
    run = tmp_path / "stopped"
    process = start(*command_line(options(run, "train.max_steps=0", "train.epochs=100000")))
    while not (run / "metrics.jsonl").exists() or not read_metrics(run / "metrics.jsonl"):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, output = finish(process)
    assert output.count("saved; the same command resumes") == 1
    stopped = re.search(r"stopped after step (\d+), saved", output)
    assert stopped
    assert load_checkpoint(run).step == int(stopped[1])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        pytest.param(
            "global_batch_size=9",
            "global_batch_size must be a positive multiple of the 2 devices, got 9",
            marks=pytest.mark.full,
        ),
        ("--multirun", "--multirun cannot be used with torchrun"),
    ],
)
def test_what_two_devices_refuse(options, tmp_path, option, words):
    code, output = finish(start(*command_line(options(tmp_path / "run", option))))
    assert code != 0
    said = [line for line in output.splitlines() if line.startswith("fastmoco: ")]
    answers = [line for line in said if not line.endswith(" ...")]  # others say what is awaited
    assert answers == [line for line in said if line.startswith(f"fastmoco: {words}")]
    assert output.count(words) == 1
    assert re.search(r"exitcode *: 2", output)
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_ffcv_feeds_two_devices_and_goes_on_after_a_kill(options, tmp_path):
    require("ffcv")
    more = ["pipeline.name=ffcv", "train.max_steps=8", "monitor.every_epochs=0"]
    code, output = finish(start(*command_line(options(tmp_path / "whole", *more))))
    assert code == 0, output
    assert "loader ffcv" in output
    run = tmp_path / "killed"
    code, _ = finish(start(*one_rank(signal.SIGKILL, 1, 7, options(run, *more))))
    assert code != 0
    assert load_checkpoint(run).step == 5
    code, output = finish(start(*command_line(options(run, *more))))
    assert code == 0, output
    assert_same_run(run, tmp_path / "whole", steps=8)
