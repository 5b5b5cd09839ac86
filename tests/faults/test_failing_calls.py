"""Each call to the system fails in turn, for real: the old state stays, or the new one is there."""

import errno
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fastmoco import cli
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.runs.metrics_file import read_metrics
from tests.faults.actions import save, write_config, write_row
from tests.faults.failing_calls import Answer, Request, Server
from tests.faults.ledger import Ledger, Part
from tests.pictures import write_class_folders
from tests.runs import write_run

ERRORS = {"ENOSPC": False, "EIO": True}
"""Errors, and whether calls that read fail with them, too."""
TEMPORARY = (".partial", ".lock", ".journal")
HOW = "a preloaded library fails the n-th call below the folder (%s), n = 1, 2, ... to the last"


def state_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, without temporary ones."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(TEMPORARY)]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@dataclass(frozen=True)
class Work:
    """Something that changes a folder from an old state to a new one.

    Attributes:
        folder: Where.
        prepare: Makes the old state in the empty folder.
        request: Makes the new one.
        is_old: Whether the old state is there, perhaps with leftovers.
        is_new: Whether the new one is.
    """

    folder: Path
    prepare: Callable[[], None]
    request: Request
    is_old: Callable[[], bool]
    is_new: Callable[[], bool]


def try_all(
    ledger: Ledger, server: Server, name: str, promise: str, work: Work, quick_step: int = 20
) -> None:
    """Fail each call of the work in turn, in a quick run every ``quick_step``-th."""
    campaign = ledger.campaign(f"calls_{name}", promise=promise, how=HOW % ", ".join(ERRORS))
    for part in campaign.parts(1):
        for error, reads in ERRORS.items():
            number = 0
            while True:
                number += 1
                answer = try_one(part, server, work, error, number, reads)
                if not answer.call:
                    break
                assert number < 2000
                number += quick_step - 1 if part.quick else 0
    campaign.check()


def try_one(part: Part, server: Server, work: Work, error: str, number: int, reads: bool) -> Answer:
    """Fail one call; then do the work again, without a fault."""
    shutil.rmtree(work.folder, ignore_errors=True)
    work.folder.mkdir()
    work.prepare()
    request = replace(work.request, number=number, errno=getattr(errno, error), reads=reads)
    answer = server.do(request)
    outcome = judged(answer, work)
    if outcome in ("old", "new", "told") and answer.call:
        again = server.do(work.request)
        if again.code != 0 or not work.is_new():
            outcome = "silent" if again.code == 0 else "crashed"
    if answer.call:
        example = f"call {number}: {answer.error[-300:]}"
        part.add(outcome, answer.seconds, place=f"{answer.call} {error}", example=example)
    else:
        assert work.is_new(), answer
    return answer


def judged(answer: Answer, work: Work) -> str:
    """``new``: it is done; ``old``: it failed in one line and the old state is there."""
    if answer.is_hung:
        return "hung"
    lines = [line for line in answer.error.splitlines() if line.startswith("fastmoco: ")]
    if answer.has_traceback or answer.code is None or (answer.code != 0 and not lines):
        return "crashed"
    if work.is_new():
        return "new"
    if answer.code == 0 or not work.is_old():
        return "silent"
    return "old"


def test_save(ledger: Ledger, server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"

    def step_is(step: int) -> bool:
        found = load_checkpoint(folder)
        weight = found.tensors["model.weight"]
        return found.step == step and bool((weight == step).all())

    work = Work(
        folder,
        lambda: save(str(folder), 10),
        Request(
            action="tests.faults.actions:save", arguments=[str(folder), 20], folder=str(folder)
        ),
        lambda: step_is(10),
        lambda: step_is(20),
    )
    promise = "A save whose call to the system fails leaves the older checkpoint or the new one."
    try_all(ledger, server, "save", promise, work)


def test_config(ledger: Ledger, server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def seed_is(seed: int) -> bool:
        return f"seed: {seed}\n" in (folder / "config.yaml").read_text()

    work = Work(
        folder,
        lambda: write_config(str(folder), 1),
        Request(
            action="tests.faults.actions:write_config",
            arguments=[str(folder), 2],
            folder=str(folder),
        ),
        lambda: seed_is(1),
        lambda: seed_is(2),
    )
    server.warm("tests.faults.actions:identity", [2])
    promise = "A configuration is the old one or the new one where a call to the system fails."
    try_all(ledger, server, "config", promise, work)


def test_metrics_row(ledger: Ledger, server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    path = folder / "metrics.jsonl"
    rows = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]

    def prepare() -> None:
        for row in rows[:2]:
            path.touch()
            write_row(str(path), row)

    work = Work(
        folder,
        prepare,
        Request(
            action="tests.faults.actions:write_row",
            arguments=[str(path), rows[2]],
            folder=str(folder),
        ),
        lambda: read_metrics(path) == rows[:2],
        lambda: read_metrics(path) == rows,
    )
    promise = "Rows of metrics stay where a call to the system fails, and the new one is told of."
    try_all(ledger, server, "metrics_row", promise, work)


@pytest.mark.full
def test_export(ledger: Ledger, server: Server, tmp_path: Path) -> None:
    folder, run = tmp_path / "out", write_run(tmp_path / "run")

    def prepare() -> None:
        out.write_bytes(b"old")

    folder.mkdir()
    out = folder / "encoder.safetensors"
    command = ["export", str(run), f"out={out}", "overwrite=true"]
    assert cli.main(command) == 0
    new = state_of(folder)
    work = Work(
        folder,
        prepare,
        Request(action="cli", arguments=command, folder=str(folder)),
        lambda: out.read_bytes() == b"old",
        lambda: state_of(folder) == new,
    )
    promise = "An export leaves the old file or the new one where a call to the system fails."
    try_all(ledger, server, "export", promise, work, quick_step=30)


@pytest.mark.full
def test_convert(ledger: Ledger, server: Server, tmp_path: Path) -> None:
    """The new file without its JSON is complete: the same command then writes that."""
    folder, source = tmp_path / "out", tmp_path / "src"
    write_class_folders(source, classes=2, per_class=3)
    (source / "class_0/bad.jpg").write_bytes(b"no image")
    folder.mkdir()
    target = folder / "x.beton"
    command = ["convert", str(source), str(target), "workers=1", "page_bytes=2097152"]
    old = {"x.beton": b"old", "x.beton.json": b"{}"}
    request = Request(action="cli", arguments=[*command, "max_bad_fraction=1"], folder=str(folder))
    assert server.do(request).code == 0
    new = state_of(folder)

    def prepare() -> None:
        for name, data in old.items():
            (folder / name).write_bytes(data)

    def each_is_whole() -> bool:
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in old.items()}
        found = state_of(folder)
        return all(value in (new[name], hashes.get(name)) for name, value in found.items())

    work = Work(
        folder,
        prepare,
        request,
        each_is_whole,
        lambda: state_of(folder) == new,
    )
    promise = "A conversion leaves each file old or new where a call fails, and resumes."
    try_all(ledger, server, "convert", promise, work, quick_step=40)
