"""Start the runs of a sweep as child processes, one at a time on each device."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmoco.errors import Interrupted, UsageError, one_line
from fastmoco.files import locked
from fastmoco.forced_end import ENDING
from fastmoco.reproduce.children import start_child
from fastmoco.reproduce.plan import PlannedRun, key_of
from fastmoco.reproduce.record import RunRecord, Status, read_record
from fastmoco.reproduce.sweep_job import SweepJob
from fastmoco.runs.stop_signals import StopRequest, stop_signals

POLL_SECONDS = 0.1
SAVE_SECONDS = 60.0
"""Time for a child to save its state if the sweep itself fails."""
THREADS_KEY = "pipeline.num_threads"
STOPPED = (*(128 + number for number in ENDING), *(-number for number in ENDING))


@dataclass(slots=True)
class Child:
    """A run in a child process."""

    run: PlannedRun
    process: subprocess.Popen[Any]
    slot: dict[str, str]
    """Environment variables of the run: device and threads."""
    start: float


def do_all(job: SweepJob) -> None:
    """Do the runs that are not done yet; print how each ended, and a summary.

    Raises:
        Interrupted: After SIGINT or SIGTERM; the children got SIGTERM and saved their state.
        ValueError: If runs failed.
    """
    waiting = deque(run for run in job.runs if not _is_done(job, run))
    done = len(job.runs) - len(waiting)
    free = deque(slots(job))
    _say(
        f"{job.folder}: {len(job.runs)} runs, {done} of them done before, "
        f"{len(free)} at a time; their logs are in {job.folder / 'logs'}"
    )
    running: list[Child] = []
    terminated = False
    with stop_signals("stopping when the runs have saved") as stop, _none_left(running):
        while running or (waiting and not stop.signal_number):
            while waiting and free and not stop.signal_number:
                running.append(_start(job, waiting.popleft(), free.popleft()))
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                free.append(child.slot)
                done += 1
                _say(f"[{done}/{len(job.runs)}] {_conclusion(job, child)}")
            if stop.signal_number and not terminated:
                terminated = True
                for child in running:
                    child.process.terminate()  # it saves its state and ends
            time.sleep(POLL_SECONDS)
    _summarize(job, stop)


def _say(line: str) -> None:
    print(one_line(line), flush=True)  # noqa: T201


def _is_done(job: SweepJob, run: PlannedRun) -> bool:
    record = read_record(run.folder)
    if record is None or not record.status.is_final:
        return False
    if record.status is Status.finished:  # the definition may have more measures since then
        return all(measure.value in record.measures for measure in job.definition.measure)
    return not (job.cfg.retry and record.status is Status.failed)


def slots(job: SweepJob) -> list[dict[str, str]]:
    """Environment variables (device, number of threads) of each run that may run at once."""
    device, count = job.configs[0].device, 0
    if device in ("auto", "cuda"):
        count = torch.cuda.device_count()
    jobs = job.cfg.jobs or max(count, 1)
    cores = len(os.sched_getaffinity(0))
    found: list[dict[str, str]] = [{} for _ in range(jobs)]
    for number, slot in enumerate(found):
        if count > 1:
            named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
            slot["CUDA_VISIBLE_DEVICES"] = named.split(",")[number % count]
        if jobs > 1:
            slot["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(cores // jobs, 1)))
    return found


def _start(job: SweepJob, run: PlannedRun, slot: dict[str, str]) -> Child:
    log = job.log(run)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fastmoco.cli", *job.command(run)[1:]]
    own = any(key_of(item) == THREADS_KEY for item in job.arguments)
    if "OMP_NUM_THREADS" in slot and not own:
        command.append(f"{THREADS_KEY}={slot['OMP_NUM_THREADS']}")
    with log.open("ab") as file:
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        process = start_child(command, environment=slot, **streams)
    return Child(run, process, slot, time.monotonic())


@contextmanager
def _none_left(running: list[Child]) -> Iterator[None]:
    """End all children after the block; each may save its state first."""
    try:
        yield
    finally:
        for child in running:
            child.process.terminate()
        for child in running:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(SAVE_SECONDS)
            child.process.kill()
            child.process.wait()


def _conclusion(job: SweepJob, child: Child) -> str:
    """How a run ended; writes the record of a run that ended without one."""
    run, code = child.run, child.process.returncode
    record = read_record(run.folder)
    if code in STOPPED:
        return f"{run.label} was stopped"
    if code and (record is None or not record.status.is_final):
        record = record or RunRecord(points=run.points, seed=run.seed, overrides=run.overrides)
        record.status, record.reason = Status.failed, _last_words(code, job.log(run))
        try:
            with locked(job.log(run), in_use=f"another process is doing run {run.label}"):
                record.write(run.folder)
        except UsageError as error:
            return str(error)
        except OSError as error:  # a full disk: the other runs continue
            return f"{run.label} failed: {record.reason} (not recorded: {error.strerror})"
    assert record is not None
    if record.status is Status.finished:
        return f"{run.label} {_figures(record)}, {time.monotonic() - child.start:.0f} s"
    return f"{run.label} {record.status.value}: {record.reason}"


def _last_words(code: int, log: Path) -> str:
    """Why a child ended that wrote no record."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"exit code {code}").removeprefix("fastmoco: ")


def _figures(record: RunRecord) -> str:
    found = {name: values["top1"] for name, values in record.measures.items() if "top1" in values}
    return ", ".join(f"{name} top-1 {top1:.2f}" for name, top1 in found.items()) or "measured"


def _summarize(job: SweepJob, stop: StopRequest) -> None:
    """Print how many runs ended in which state, and what to do next.

    Raises:
        Interrupted: If there was a signal and runs are left.
        ValueError: If runs failed.
    """
    records = [read_record(run.folder) for run in job.runs]
    states = [record.status for record in records if record]
    counts = {status: states.count(status) for status in Status}
    left = sum(1 for record in records if not record or not record.status.is_final)
    text = ", ".join(f"{count} {status.value}" for status, count in counts.items() if count)
    if left and stop.signal_number:
        raise Interrupted(
            stop.signal_number, f"{left} runs are left; the same command resumes them"
        )
    scale = job.cfg.scale.value
    _say(f"{text or 'nothing done'}; its table: fastmoco table {job.name} scale={scale}")
    if left:
        raise ValueError(f"{left} runs were stopped; the same command resumes them")
    if failed := counts[Status.failed]:
        raise ValueError(
            f"{failed} of {len(records)} runs failed (logs in {job.folder / 'logs'}); "
            "set retry=true to repeat them"
        )
