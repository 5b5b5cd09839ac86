"""Training works where containers, network disks, notebooks and pipes take something away."""

import asyncio
import errno
import fcntl
import io
import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastmoco import cli
from fastmoco.runs.checkpoint import newest_checkpoint
from tests.pictures import write_class_folders
from tests.runs import OPTIONS, write_run

STEPS = 2
TRAIN = ["train", *OPTIONS, "device=cpu", "train.compile=never", f"train.max_steps={STEPS}"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with a dataset file, of which ASCII lacks the name of a class."""
    home = tmp_path_factory.mktemp("home")
    write_class_folders(home / "pics", classes=2, per_class=6)
    (home / "pics" / "class_0").rename(home / "pics" / "Käse")
    assert cli.main(["convert", str(home / "pics"), str(home / "set.beton")]) == 0
    return home


def steps_saved(run):
    found = newest_checkpoint(run / "checkpoints")
    return found.step if found else None


def closed_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="utf-8")


@pytest.mark.filterwarnings("always:.*cannot be locked")
def test_a_poor_disk_and_a_closed_terminal(home, monkeypatch):
    """No sync of folders, no locks, ``~`` in paths, and a reader of all output that has gone."""
    real, refused = os.fsync, []

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refused.append("sync")
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    def flock(descriptor, operation):
        del descriptor, operation
        refused.append("lock")
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(fcntl, "flock", flock)
    with closed_pipe() as out, closed_pipe() as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert cli.main(["convert", "~/pics", "~/copy.beton"]) == 0
        assert cli.main([*TRAIN, "data.train=~/copy.beton", "run_dir=~/run"]) == 0
    assert set(refused) == {"sync", "lock"}
    assert steps_saved(home / "run") == STEPS
    assert "loss" in (home / "run" / "train.log").read_text()


class NotebookOutput(io.TextIOBase):
    """As ipykernel's: no buffer below it and no descriptor."""

    encoding = "UTF-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)


def test_a_notebook_trains_in_a_thread_too(home, monkeypatch):
    """In a process that may have trained before, and runs an event loop."""
    out = NotebookOutput()
    monkeypatch.setattr(sys, "stdout", out)
    train = [*TRAIN, f"data.train={home}/set.beton", f"run_dir={home}/thread"]

    async def cell():
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(cli.main, train).result()
        return [code, cli.main(["info", f"{home}/set.beton"])]

    assert asyncio.run(cell()) == [0, 0]
    assert steps_saved(home / "thread") == STEPS
    assert "set.beton" in out.text


def test_a_locale_without_the_class_names_loses_no_result(home, monkeypatch):
    run, raw = write_run(home / "untrained"), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    options = [f"data.train={home}/set.beton", "leave_one_out=true", "k=3", "baselines=false"]
    assert cli.main(["knn", str(run), *options]) == 0
    assert b"K\\xe4se" in raw.getvalue()
