"""Calls a function in a fresh process, and cleans up after one that hangs, dies or leaks.

Run as a module it is the child: ``python -m benchmarks.child MODULE:FUNCTION JSON`` calls
``FUNCTION(**JSON)`` and prints what it gives, as JSON, in a line after `ANSWER`. With a third, a
file descriptor, the function gives a stream of batches instead: the child writes there that it has
imported what it needs, and then, for every line of its input, a number of seconds, how many images
came in that time.
"""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import shared_memory
from pathlib import Path
from typing import IO, Any

from benchmarks.memory import PeakMemory, session_members
from benchmarks.rates import measure_rate

ROOT = Path(__file__).resolve().parents[1]
ANSWER = "answer of benchmarks.child: "  # begins the line that holds it
KILL_SECONDS = 10  # within these the kernel has ended what was killed, unless a disk hangs


LAST_LINES = 12


class Unavailable(Exception):
    """A contender cannot run here, or did not end well; the message is the reason in one line.

    Attributes:
        lines: The last lines that it wrote on stderr.
    """

    def __init__(self, reason: str, lines: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.lines = list(lines)


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
    target: str,
    arguments: Mapping[str, Any],
    *,
    timeout_seconds: float = 300,
    environment: Mapping[str, str] | None = None,
) -> ChildResult:
    """Calls ``MODULE:FUNCTION`` in a process of its own, in a session of its own.

    Args:
        target: The function; it takes and gives what JSON can hold.
        arguments: Its keyword arguments.
        timeout_seconds: After this the whole session is killed.
        environment: Variables to set beside those of this process.

    Raises:
        Unavailable: If it fails or takes too long; the message is its last line on stderr.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            _command(target, arguments),
            stdout=out,
            stderr=err,
            cwd=ROOT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            with PeakMemory(process.pid) as memory:
                status = process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            reason = f"killed: it took more than {timeout_seconds:g} s"
            raise Unavailable(reason, _last_lines(err)) from None
        finally:
            _clean_up(process)
        if status != 0:
            reason = _last_line(err) or f"ended with status {status}"
            raise Unavailable(reason, _last_lines(err))
        return ChildResult(_answer_in(out), memory.peak_bytes)


class KeptChild:
    """A child process that holds a stream of batches, frozen while others are measured.

    A contender starts, compiles and fills its queues once for all rounds. Frozen (SIGSTOP to all of
    its processes), it takes no time from the others.

    Args:
        target: ``MODULE:FUNCTION`` that gives an endless iterator of the images of each batch.
        arguments: Its keyword arguments.
        timeout_seconds: Beyond the seconds that are asked for; after it the session is killed.
    """

    def __init__(
        self, target: str, arguments: Mapping[str, Any], *, timeout_seconds: float = 300
    ) -> None:
        self._command = _command(target, arguments)
        self._timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile("w+")
        self._answers = b""
        self._answer_end = -1
        self._problem: Unavailable | None = None

    def prepare(self) -> None:
        """Waits until the process has imported what it needs, or failed to; then freezes it.

        `start` goes before; whatever fails here `measure` reports.
        """
        assert self._process
        try:
            self._answer(self._process, time.monotonic() + self._timeout_seconds)
            _freeze(self._process)
        except Unavailable as error:
            _clean_up(self._process)
            self._problem = error

    def measure(self, seconds: float) -> ChildResult:
        """Lets it run for some seconds; the first call starts it where that is not done yet.

        Returns:
            As `measure_rate`, and the peak of memory in this time.

        Raises:
            Unavailable: If it fails or takes too long; it is ended then.
        """
        if self._process is None:
            self.start()
            self.prepare()
        assert self._process
        process = self._process
        try:
            if self._problem:
                raise self._problem
            os.killpg(process.pid, signal.SIGCONT)
            with PeakMemory(process.pid) as memory:
                value = self._ask(process, seconds)
                _freeze(process)  # before the last sample, or it would work ahead meanwhile
        except BaseException:
            self.close()
            raise
        return ChildResult(value, memory.peak_bytes)

    def close(self) -> None:
        """Ends it, with all that it started."""
        if self._process is not None:
            _clean_up(self._process)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()
            os.close(self._answer_end)
            self._process = None
        self._errors.close()

    def start(self) -> None:
        """Starts the process; it imports what it needs until `prepare` has seen the end of that."""
        self._answer_end, theirs = os.pipe()
        self._process = subprocess.Popen(
            [*self._command, str(theirs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            cwd=ROOT,
            start_new_session=True,
            pass_fds=[theirs],
        )
        os.close(theirs)

    def _ask(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
        assert process.stdin
        deadline = time.monotonic() + seconds + self._timeout_seconds
        try:
            process.stdin.write(f"{seconds}\n".encode())
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and `_answer` says why
        answer: dict[str, Any] = json.loads(self._answer(process, deadline))
        return answer

    def _answer(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        """The next line that it writes."""
        while b"\n" not in self._answers:
            if time.monotonic() > deadline:
                raise Unavailable(f"killed: it took more than {self._timeout_seconds:g} s")
            ready, _, _ = select.select([self._answer_end], [], [], 0.2)
            part = os.read(self._answer_end, 1 << 16) if ready else b""
            self._answers += part
            # Processes that it forked may keep the pipe open.
            if not part and process.poll() is not None:
                raise Unavailable(
                    _last_line(self._errors) or f"ended with status {process.returncode}"
                )
        line, _, self._answers = self._answers.partition(b"\n")
        return line


def _freeze(process: subprocess.Popen[bytes]) -> None:
    """Stops the session, and waits until its leader has stopped (or ended)."""
    os.killpg(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def _command(target: str, arguments: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.child", target, json.dumps(dict(arguments))]


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
    return (_last_lines(file) or [""])[-1]


def _last_lines(file: IO[str]) -> list[str]:
    file.seek(0)
    return file.read().strip().splitlines()[-LAST_LINES:]


def _answer_in(out: IO[str]) -> dict[str, Any]:
    """What the function gave; libraries may print before it and, as the process ends, after it."""
    out.seek(0)
    for line in out:
        if line.startswith(ANSWER):
            answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
            return answer
    raise Unavailable("it ended without an answer")


def _serve(batches: Iterator[float], descriptor: int) -> None:
    """Says that it is ready; answers every line of the input, seconds, with their images."""
    warm_up_batches = 4
    with open(descriptor, "w", encoding="ascii") as answers:
        answers.write("ready\n")
        answers.flush()
        for line in sys.stdin:
            answers.write(f"{json.dumps(measure_rate(batches, float(line), warm_up_batches))}\n")
            answers.flush()
            warm_up_batches = 1  # since it was frozen, nothing was made ahead


def _main() -> None:
    target, arguments, *descriptor = sys.argv[1:]
    # Python has no public way to say which blocks of shared memory are this process's.
    vars(shared_memory)["_SHM_NAME_PREFIX"] = f"/{_shared_memory_prefix(os.getpid())}"
    module, function = target.split(":")
    value = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    if descriptor:
        _serve(iter(value), int(descriptor[0]))
        return
    sys.stdout.write(f"\n{ANSWER}{json.dumps(value)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main()
