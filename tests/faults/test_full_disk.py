"""A full disk in `table`, `merge-labels`, `request` and `sweep`: one line, and nothing is lost."""

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastmoco import cli
from fastmoco.data.verify import verify
from fastmoco.labeling import pretext_scores
from fastmoco.reproduce import one_run, schedule, sweep
from fastmoco.reproduce.children import start_child
from fastmoco.reproduce.record import RunRecord, read_record
from fastmoco.train.settings import TrainConfig
from tests.faults.full_disk import FullDisk, no_space
from tests.runs import write_colors, write_run
from tests.sweeps import DEFINITION, write_definition, write_state
from tests.sweeps import write_run as write_sweep_run


@pytest.fixture
def disk(monkeypatch):
    return FullDisk(monkeypatch)


def try_until_done(disk, capsys, command, step=1):
    """Run a command with the disk full at one write after the other, until it ends well.

    Yields after each failure, when the disk has space again.
    """
    for number in range(1, 400, step):
        capsys.readouterr()
        disk.arm(number)
        code = cli.main(command)
        full = disk.was_full
        disk.arm(0)
        if not full:
            assert code == 0, capsys.readouterr().err
            assert number > 5  # it was full before
            return
        assert code == 1, number
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "no space left on device" in line.lower(), (number, line)
        yield number
    raise AssertionError("never done")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_table(disk, tmp_path, capsys, full_faults):
    """Each file is the old or the new one."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    write_state(runs, [0])
    text = DEFINITION.replace("  - {", "  #- {").replace("  #- {y: acc", "  - {y: acc")  # one plot
    path = write_definition(tmp_path, text.replace("Two axes", "Older"))
    write_sweep_run(runs, "0.90,linear", 0, 50.0)
    command = ["table", str(path), "scale=full", f"folder={runs}", f"out={out}"]
    assert cli.main(command) == 0
    old = contents(out)
    write_definition(tmp_path, text)
    write_sweep_run(runs, "0.90,mlp", 0, 60.0)
    assert cli.main([*command[:-1], f"out={tmp_path / 'new'}"]) == 0
    new = contents(tmp_path / "new")
    assert len(new) == 3
    for number in try_until_done(disk, capsys, command, 1 if full_faults else 5):
        found = contents(out)
        assert found.keys() == old.keys(), number
        assert all(found[name] in (old[name], new[name]) for name in found), number
    assert contents(out) == new


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A run, and 12 images of which 3 are labeled."""
    folder = tmp_path_factory.mktemp("full disk")
    write_run(folder / "run")
    write_colors(folder / "images", seed=0, per_class=4)
    names = sorted(str(one.relative_to(folder)) for one in folder.rglob("*.jpg"))
    rows = [f"{name},{name.split('/')[1] if name.endswith('0.jpg') else ''}" for name in names]
    (folder / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    assert cli.main(["convert", str(folder / "list.csv"), str(folder / "set.beton")]) == 0
    return folder


def test_request(disk, pool, tmp_path, capsys, monkeypatch, full_faults):
    """Unfinished until all of it is there; the same command goes on."""
    monkeypatch.setattr(pretext_scores, "SAVE_SECONDS", 0.0)
    options = [f"data.train={pool / 'set.beton'}", "count=3", "views=2", "sheet=1", "cache=false"]
    command = ["request", str(pool / "run"), *options]
    assert cli.main([*command, f"out={tmp_path / 'whole'}"]) == 0
    whole = contents(tmp_path / "whole")
    out = tmp_path / "out"
    for number in try_until_done(disk, capsys, [*command, f"out={out}"], 1 if full_faults else 9):
        finished = (out / "request.json").exists()
        # Full after the last rename, when the folder was brought to the disk: all is there.
        assert not finished or json.loads((out / "request.json").read_text())["count"] == 3, number
    found = contents(out)
    for name in ("request.csv", "label_studio.json", "label_studio.xml", "contact_sheet.png"):
        assert found[name] == whole[name]
    assert contents(out / "images") == contents(tmp_path / "whole/images")
    assert not [name for name in found if "partial" in name]


def test_merge_labels(disk, pool, tmp_path, capsys, full_faults):
    """The old file with its facts, or the new one with its own, but between the two renames."""
    data, request = f"data.train={pool / 'set.beton'}", tmp_path / "request"
    options = ["count=4", "mode=random", "max_similarity=1", f"out={request}"]
    assert cli.main(["request", str(pool / "run"), data, *options]) == 0
    rows = (request / "request.csv").read_text().splitlines()[1:]
    labels = tmp_path / "granted.csv"
    labels.write_text("\n".join(["sample_id,label", *(f"{row.split(',')[0]},red" for row in rows)]))
    out = tmp_path / "out"
    command = ["merge-labels", str(request), data, f"labels={labels}", f"out={out / 'x.beton'}"]
    new = tmp_path / "new"
    assert cli.main([*command[:-1], f"out={new / 'x.beton'}"]) == 0
    out.mkdir()
    old = {name: (pool / f"set{name[1:]}").read_bytes() for name in contents(new)}
    for name, data in old.items():
        (out / name).write_bytes(data)
    mixed = []
    for number in try_until_done(disk, capsys, command, 1 if full_faults else 3):
        found = contents(out)
        assert found.keys() == old.keys(), number
        assert found["x.beton"] in (old["x.beton"], contents(new)["x.beton"]), number
        assert verify(out / "x.beton").num_samples == 12
        if found not in (old, contents(new)):
            assert found["x.beton.json"] == old["x.beton.json"], number
            mixed.append(number)
    # Bringing the folder and the facts to the disk, and their rename; never writing them.
    assert len(mixed) <= 3
    assert contents(out) == contents(new)


TINY = """
about: Tiny
axes: {rate: {good: [optimizer.learning_rate=0.01], bad: [optimizer.learning_rate=1e30]}}
measure: [knn]
"""


@pytest.fixture
def arguments(pool, tmp_path):
    path = write_definition(tmp_path, TINY)
    test = write_colors(tmp_path / "test", seed=1, per_class=2)
    data = [f"data.train={pool / 'set.beton'}", f"data.test={test}"]
    options = ["global_batch_size=4", "moco.queue_size=16", f"folder={tmp_path / 'runs'}"]
    return [str(path), ["scale=full", *options, *data]]


def test_what_a_sweep_is_made_of(disk, arguments, tmp_path):
    name, options = arguments
    sweep.write_state(sweep.prepare(name, options))
    path = tmp_path / "runs/sweep.json"
    old = path.read_bytes()
    job = sweep.prepare(name, [*options, "seeds=[1]"])
    for number in range(1, 20):
        disk.arm(number)
        with contextlib.suppress(OSError):
            sweep.write_state(job)
        full = disk.was_full
        disk.arm(0)
        state = json.loads(path.read_text())
        if not full:
            break
        assert path.read_bytes() == old or state["seeds"] == [0, 1], number
    assert number > 3
    assert state["seeds"] == [0, 1]
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"sweep\.json is damaged \(it lacks seeds\)"):
        sweep.write_state(job)


def test_jobs_that_start_at_once_lose_no_seed(arguments, tmp_path, monkeypatch):
    """As the jobs of an array do: one waits for the other."""
    name, options = arguments
    jobs = [sweep.prepare(name, [*options, f"seeds=[{seed}]"]) for seed in (0, 1)]
    plain, inside, go_on = sweep.atomic_write_text, threading.Event(), threading.Event()

    def slow(*args):
        if not inside.is_set():
            inside.set()
            assert go_on.wait(60)
        plain(*args)

    monkeypatch.setattr(sweep, "atomic_write_text", slow)
    threads = [threading.Thread(target=sweep.write_state, args=[job]) for job in jobs]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    threads[1].join(0.5)  # without waiting for the first it would end now, and be overwritten
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert json.loads((tmp_path / "runs/sweep.json").read_text())["seeds"] == [0, 1]


def test_a_run_tells_of_its_first_error(arguments, tmp_path, monkeypatch):
    job = sweep.prepare(arguments[0], arguments[1])

    def fail(_: TrainConfig) -> None:
        raise OSError(28, "No space left on device", "step-1.safetensors")

    def fail_again(*_: object) -> None:
        raise no_space()

    monkeypatch.setattr(one_run, "pretrain", fail)
    monkeypatch.setattr(RunRecord, "write", fail_again)
    run = job.runs[0]
    with pytest.raises(OSError, match=r"step-1\.safetensors"):
        one_run.do_run(run, job.configs[0], job.definition, tmp_path / "log")


def test_a_sweep_goes_on_where_a_failure_cannot_be_written_down(arguments, monkeypatch):
    job = sweep.prepare(arguments[0], arguments[1])
    run = job.runs[0]
    process = start_child([sys.executable, "-c", "raise SystemExit(1)"])
    process.wait(60)
    job.log(run).parent.mkdir(parents=True)
    job.log(run).write_text("fastmoco: step-1.safetensors: no space left on device\n")

    def fail(*_: object) -> None:
        raise no_space()

    monkeypatch.setattr(RunRecord, "write", fail)
    said = schedule._conclusion(job, schedule.Child(run, process, {}, 0.0))
    assert "failed: step-1.safetensors: no space left on device (not recorded: No sp" in said
    assert read_record(run.folder) is None  # so that the same command tries it again


SAVING = """
import signal, sys, time
def save(*_):
    open(sys.argv[1], "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(200)
"""


def test_children_save_where_the_sweep_itself_fails(arguments, tmp_path):
    run = sweep.prepare(arguments[0], arguments[1]).runs[0]
    command = [sys.executable, "-c", SAVING, str(tmp_path / "saved")]
    process = start_child(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    with (
        pytest.raises(OSError, match="No space left"),
        schedule._none_left([schedule.Child(run, process, {}, 0.0)]),
    ):
        raise no_space()
    process.stdout.close()
    assert process.returncode == 0
    assert Path(tmp_path / "saved").exists()
