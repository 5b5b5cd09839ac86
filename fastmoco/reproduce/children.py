"""Child processes that end with the process that started them, however it ends."""

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
    """Start a process in a session of its own: Ctrl-C reaches the parent alone.

    Args:
        command: Program and arguments.
        environment: More variables than this process has.
        options: Of `subprocess.Popen`.
    """
    return subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        preexec_fn=_ends_with_parent(),
        **options,
    )


def _ends_with_parent() -> Callable[[], None]:
    """Asks Linux to send SIGTERM when the parent dies, be it by SIGKILL."""
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died meanwhile
            os.kill(os.getpid(), signal.SIGTERM)

    return ask
