"""`fastmoco COMMAND [ARGS] [key=value ...]`: find the command, run it, turn errors into exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130/143 interrupted after saving (docs/commands.md).
"""

import difflib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from fastmoco.caches import prepare_caches
from fastmoco.commands import COMMANDS
from fastmoco.commands.arguments import expand_home
from fastmoco.errors import Interrupted, UsageError, one_line, without_secrets
from fastmoco.forced_end import force_the_end
from fastmoco.out_of_memory import shortage
from fastmoco.output import lasting_output
from fastmoco.ranks import environment_ranks, local_ranks
from fastmoco.version import __version__

WRONG_USAGE = (
    UsageError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""Errors of exit code 2: the command line must change, or what it names."""
HELP_WORDS, VERSION_WORDS = ("help", "--help", "-h"), ("version", "--version", "-V")

PACKAGE = Path(__file__).parent
FIRST_RANK_SECONDS = 30
"""Time for the first rank to say what is wrong, if another one is faster."""
ENVIRONMENT = {
    # Threads that wait for others sleep. By default they spin, and beside other programs take the
    # time of the thread that they wait for. A step of ResNet-18 (width 16, 64 images of 32 pixels,
    # 2 threads on 2 cores) took 269 ms beside one other program, and 4,167 ms by spinning (15.5 x,
    # 6.3 to 17.5 in 3 rounds); alone 185 and 147 ms (0.89 x, 0.79 to 0.94, within the noise):
    # benchmarks/bench_wait_policy.py, 2026-11-28.
    "OMP_WAIT_POLICY": ("passive", ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")),
    "TORCH_LOGS": ("-all", ("TORCH_LOGS", "TORCH_COMPILE_DEBUG")),  # errors only
    "TORCH_CPP_LOG_LEVEL": ("ERROR", ("TORCH_CPP_LOG_LEVEL",)),
}
"""Variables that torch and OpenMP read when they are loaded: a value, and the variables of which
none must be set by the user."""


def program() -> NoReturn:
    """The command `fastmoco`: `main`, then the end of the process.

    A process that a signal stopped ends at once, since its state is saved. Python would wait for
    threads, such as the compiler's: 20 s after the message (ResNet-18, 2 cores), or minutes.
    """
    force_the_end()
    code = main()
    if code > 128:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    _prepare_environment()
    with lasting_output():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(arguments: list[str]) -> int:
    name, *rest = arguments or [""]
    if name in HELP_WORDS and rest:  # fastmoco help train
        name, rest = rest[0], [*rest[1:], "--help"]
    if name in ("", *HELP_WORDS):
        return _guarded(_print_overview) or (0 if arguments else 2)
    if name in VERSION_WORDS:
        return _guarded(lambda: print(f"fastmoco {__version__}"))  # noqa: T201
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        return _fail(
            2,
            f"unknown command {name}"
            + (f"; did you mean {near[0]}?" if near else "; see fastmoco --help"),
        )
    if asking := set(rest) & {"-h", "--help"}:
        options = [word for word in rest if word not in asking and "=" in word]
        return _guarded(lambda: _print_help(name, options))
    return _guarded(lambda: COMMANDS[name](expand_home(rest)), rest)


def _prepare_environment() -> None:
    """Set `ENVIRONMENT` for this process and its children, before torch is loaded."""
    if "torch" in sys.modules:  # a program that calls `main`
        return
    for name, (value, users) in ENVIRONMENT.items():
        if not any(user in os.environ for user in users):
            os.environ[name] = value
    prepare_caches()


def _guarded(action: Callable[[], None], words: Sequence[str] = ()) -> int:
    """Run a command; an error that the user can fix becomes one line, a bug keeps its traceback.

    An option of `words` whose file has an error is named.
    """
    received = [signal.SIGINT]
    try:
        with _one_line_warnings(), _terminated_like_interrupted(received):
            action()
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        lost = error.__context__  # torchrun may end a process that is about to report its error
        if isinstance(lost, ConnectionError):
            return _fail(1, _message(lost))
        return _fail(128 + received[-1], str(error) or "interrupted")
    except (ValueError, OSError) as error:
        return _fail(2 if isinstance(error, WRONG_USAGE) else 1, _message(error, words))
    except Interrupted as error:
        return _fail(128 + error.signal_number, str(error))
    except (MemoryError, RuntimeError) as error:
        sizes = shortage(error)
        if sizes is None:
            raise
        advice = "give a smaller global_batch_size, or a smaller model or views"
        return _fail(1, f"out of memory ({sizes}); {advice}")
    return 0


@contextmanager
def _terminated_like_interrupted(received: list[signal.Signals]) -> Iterator[None]:
    """Within the block, SIGTERM is recorded and raises KeyboardInterrupt, as SIGINT does.

    A command that saves before it stops (`train`) sets its own handlers.
    """

    def interrupt(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    before, warnings.showwarning = warnings.showwarning, _show_warning
    try:
        yield
    finally:
        warnings.showwarning = before


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print fastmoco's own warnings as one line, once per machine; others in Python's format.

    Those from inside other packages are not for users of a command: only ``python -W`` shows them.
    """
    if not local_ranks().is_first:
        return
    path = Path(filename)
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    if installed and not path.is_relative_to(PACKAGE) and not sys.warnoptions:
        return
    if category is UserWarning and not file:
        print(f"fastmoco: {one_line(str(message))}", file=sys.stderr)  # noqa: T201
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, file=file or sys.stderr, end="")


def _message(error: Exception, words: Sequence[str] = ()) -> str:
    if isinstance(error, OSError) and error.strerror:
        if error.filename is None:
            return error.strerror
        options = (word for word in words if word.endswith(f"={error.filename}"))
        return f"{next(options, error.filename)}: {error.strerror.lower()}"
    return str(error)


def _fail(code: int, message: str) -> int:
    """Print the error; usage errors and signals, equal on all ranks, once per machine."""
    if code == 1 and environment_ranks().several:
        message = f"rank {environment_ranks().rank}: {message}"
    if code == 1 or local_ranks().is_first:
        print(f"fastmoco: {one_line(without_secrets(message))}", file=sys.stderr)  # noqa: T201
    elif code == 2:
        # torchrun ends all processes as soon as one has: first let the one that says it.
        time.sleep(FIRST_RANK_SECONDS)
    return code


def _print_overview() -> None:
    lines = [
        "fastmoco COMMAND [ARGS] [key=value ...]",
        "",
        "Pretrain image encoders without labels by Momentum Contrast.",
        "",
    ]
    lines += [f"  {name:<14}{command.summary}" for name, command in COMMANDS.items()]
    lines += [
        "",
        "fastmoco help COMMAND           options, presets and examples of a command",
        "fastmoco help train experiment=moco_v2    what a preset sets",
        "fastmoco version                the installed version",
    ]
    print("\n".join(lines))  # noqa: T201


def _print_help(name: str, overrides: Sequence[str]) -> None:
    from fastmoco.commands.help_text import command_help

    print("\n".join(command_help(COMMANDS[name], overrides)))  # noqa: T201


if __name__ == "__main__":
    program()
