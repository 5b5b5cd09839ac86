"""Child processes that end with the process that started them, even after SIGKILL."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PR_SET_PDEATHSIG = 1


def start_child(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start a process in a new session: Ctrl-C reaches only the parent.

    Args:
        command: Program and arguments.
        environment: Variables to add to those of this process.
        options: Options of `subprocess.Popen`.
    """
    return subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        preexec_fn=_ends_with_parent(),
        **options,
    )


def _ends_with_parent() -> Callable[[], None]:
    """A function for the child: it asks Linux to send SIGTERM when the parent dies."""
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has died in the meantime
            os.kill(os.getpid(), signal.SIGTERM)

    return ask
