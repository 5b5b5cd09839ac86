"""Calls a function in a fresh process, and cleans up after one that hangs, dies or leaks.

Run as a module it is the child: ``python -m benchmarks.child MODULE:FUNCTION JSON`` calls
``FUNCTION(**JSON)`` and prints what it gives, as JSON, in the last line.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import shared_memory
from pathlib import Path
from typing import IO, Any

from benchmarks.memory import PeakMemory, session_members

ROOT = Path(__file__).resolve().parents[1]
KILL_SECONDS = 10  # within these the kernel has ended what was killed, unless a disk hangs


class Unavailable(Exception):
    """A contender cannot run here, or did not end well; the message is the reason in one line."""


@dataclass(frozen=True, slots=True)
class ChildResult:
    """What came of a call.

    Attributes:
        value: What the function gave.
        peak_bytes: The most memory that the process and all that it started held together.
    """

    value: dict[str, Any]
    peak_bytes: int


def call_in_child(
    target: str, arguments: Mapping[str, Any], *, timeout_seconds: float = 300
) -> ChildResult:
    """Calls ``MODULE:FUNCTION`` in a process of its own, in a session of its own.

    Args:
        target: The function; it takes and gives what JSON can hold.
        arguments: Its keyword arguments.
        timeout_seconds: After this the whole session is killed.

    Raises:
        Unavailable: If it fails or takes too long; the message is its last line on stderr.
    """
    command = [sys.executable, "-m", "benchmarks.child", target, json.dumps(dict(arguments))]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, cwd=ROOT, start_new_session=True
        )
        try:
            with PeakMemory(process.pid) as memory:
                status = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"killed: it took more than {timeout_seconds:g} s") from None
        finally:
            _clean_up(process)
        if status != 0:
            raise Unavailable(_last_line(err) or f"ended with status {status}")
        return ChildResult(json.loads(_last_line(out)), memory.peak_bytes)


def _clean_up(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of the session, and removes the shared memory that only it could name."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    deadline = time.monotonic() + KILL_SECONDS
    while session_members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    for leaked in Path("/dev/shm").glob(f"{_shared_memory_prefix(process.pid)}*"):
        leaked.unlink(missing_ok=True)


def _shared_memory_prefix(process_id: int) -> str:
    return f"b{process_id}_"


def _last_line(file: IO[str]) -> str:
    file.seek(0)
    return (file.read().strip().splitlines() or [""])[-1]


def _main() -> None:
    target, arguments = sys.argv[1:]
    # Python has no public way to say which blocks of shared memory are this process's.
    vars(shared_memory)["_SHM_NAME_PREFIX"] = f"/{_shared_memory_prefix(os.getpid())}"
    module, function = target.split(":")
    value = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    sys.stdout.write(f"\n{json.dumps(value)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main()
