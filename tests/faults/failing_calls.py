"""A process that does things again and again in forks, each with one failing call to the system.

The calls fail for real, in a library that is preloaded (`failing_calls.c`): what a library in Rust
or C++ does fails as well, which no patch of Python reaches. The process imports everything once; it
reads a request as a line of JSON from stdin and answers with another.
"""

import ctypes
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fastmoco
from tests.faults.ledger import LIMIT_SECONDS

SOURCE = Path(__file__).with_suffix(".c")
COMPILERS = ("cc", "gcc", "clang")
MODULES = ("fastmoco.train.pretrain", "fastmoco.interop.export", "fastmoco.data.convert")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to do, and which call of it fails."""

    action: str
    """``MODULE:FUNCTION`` of the tests, called with `arguments`; or ``cli``."""
    arguments: list[Any]
    folder: str = ""
    """Calls below it are counted."""
    number: int = 0
    """The call that fails, from 1; 0: none."""
    errno: int = 0
    """With which error; 0: the process is killed there."""
    reads: bool = False
    """Whether calls that read count, too."""
    kill_seconds: float = 0.0
    """Kill the process after this time; 0: never."""
    environment: dict[str, str] = field(default_factory=dict)
    in_parent: bool = False
    """Do it in the process itself, so that forks find compiled functions."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of it."""

    code: int | None
    """Exit code of the command, 0 or 1 for a function; None where the process was killed."""
    error: str
    """Text on stderr."""
    output: str
    """Text on stdout."""
    counted: int
    """Calls that were counted, 0 where the process was killed."""
    call: str
    """The call that failed, if one did."""
    is_hung: bool
    seconds: float

    @property
    def has_traceback(self) -> bool:
        """Whether a traceback was shown, or the process died of itself."""
        return "Traceback" in self.error + self.output or "Fatal Python error" in self.error


def compiler() -> str | None:
    """A C compiler's path, None without one."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


class Server:
    """The other process."""

    def __init__(self, folder: Path) -> None:
        """Build the library into a folder, if there is a compiler, and start the process."""
        library, found = folder / "failing_calls.so", compiler()
        assert found is not None
        build = [found, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(build, check=True, capture_output=True)
        root = str(Path(fastmoco.__file__).parents[1])
        one_thread = {"OMP_NUM_THREADS": "1", "LD_PRELOAD": str(library), "PYTHONPATH": root}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.failing_calls", str(library)],
            env={**os.environ, **one_thread},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, request: Request) -> Answer:
        """Do it in a fork of the process."""
        return self.do_together([request])[0]

    def do_together(self, requests: list[Request]) -> list[Answer]:
        """Do several things at the same time, such as the ranks of a run."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([asdict(one) for one in requests]) + "\n")
        self.process.stdin.flush()
        return [Answer(**one) for one in json.loads(self.process.stdout.readline())]

    def warm(self, action: str, arguments: list[Any]) -> None:
        """Do it in the process itself; see `Request.in_parent`."""
        self.do_together([Request(action=action, arguments=arguments, in_parent=True)])

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait(60)
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server until the end of the block."""
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()


# ---------------------------------------------------------------------- in the other process


class _Child:
    """A fork that does one thing."""

    def __init__(self, request: Request, library: ctypes.CDLL) -> None:
        self.request, self.start = request, time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="fastmoco-faults-"))
        self.number = os.fork()
        if not self.number:
            self._work(library)

    def _work(self, library: ctypes.CDLL) -> None:
        os.environ |= self.request.environment
        for descriptor, name in ((1, "out"), (2, "err")):
            opened = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, descriptor)
        request, code = self.request, 1
        below = os.path.realpath(request.folder).encode() if request.folder else b""
        library.fault_arm(below, ctypes.c_long(request.number), request.errno, request.reads)
        try:
            code = _call(request)
        finally:
            counted, call = library.fault_count(), library.fault_name().decode()
            library.fault_arm(b"", ctypes.c_long(0), 1, 0)
            if error := sys.exc_info()[1]:
                sys.excepthook(type(error), error, error.__traceback__)
            sys.stdout.flush()
            sys.stderr.flush()
            (self.folder / "ended").write_text(json.dumps([code, counted, call]))
            (self.folder / "ended").rename(self.folder / "end")  # complete, where it is killed here
            os._exit(0)

    def wait(self) -> Answer:
        """Its end, or it is killed."""
        limit = self.request.kill_seconds or LIMIT_SECONDS
        while os.waitpid(self.number, os.WNOHANG) == (0, 0):
            if time.monotonic() - self.start > limit:
                os.kill(self.number, 9)
                os.waitpid(self.number, 0)
                break
            time.sleep(0.002)
        seconds = time.monotonic() - self.start
        texts = [(self.folder / name).read_text(errors="replace") for name in ("err", "out")]
        end = self.folder / "end"
        code, counted, call = json.loads(end.read_text()) if end.exists() else (None, 0, "")
        is_hung = code is None and not self.request.kill_seconds and seconds > LIMIT_SECONDS
        shutil.rmtree(self.folder)
        return Answer(
            code=code,
            error=texts[0],
            output=texts[1],
            counted=counted,
            call=call,
            is_hung=is_hung,
            seconds=seconds,
        )


def _call(request: Request) -> int:
    """Do what is asked; an OSError of a function is reported as the command line does it."""
    from fastmoco import cli

    if request.action == "cli":
        return cli.main(request.arguments)
    module, _, name = request.action.partition(":")
    function = getattr(importlib.import_module(module), name)
    return cli._guarded(lambda: function(*request.arguments))


def main() -> None:
    """Answer requests until stdin ends."""
    library = ctypes.CDLL(sys.argv[1])
    library.fault_name.restype = ctypes.c_char_p
    library.fault_count.restype = ctypes.c_long
    for module in (*MODULES, "tests.faults.actions"):
        importlib.import_module(module)
    for line in sys.stdin:
        requests = [Request(**one) for one in json.loads(line)]
        if requests[0].in_parent:
            with redirect_stdout(sys.stderr):
                _call(requests[0])
            requests = []
        children = [_Child(one, library) for one in requests]
        answers = [asdict(child.wait()) for child in children]
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
