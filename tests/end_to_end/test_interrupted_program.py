"""The program ends at once after a signal, whatever its threads do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.limits import HANG_SECONDS

STUCK = """
import ctypes, sys
from fastmoco import cli, forced_end

forced_end.GRACE_SECONDS, forced_end.DOUBLED_SECONDS = 0.2, 0.0

def work(_arguments):
    mutex, libc = ctypes.create_string_buffer(128), ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    print("working", flush=True)
    libc.pthread_mutex_lock(mutex)  # for ever, and no signal ends it, as in a collective

cli.COMMANDS["info"] = work
sys.argv = ["fastmoco", "info"]
cli.program()
"""
PROGRAM = """
import sys, threading, time
from fastmoco import cli

def work(_arguments):
    threading.Thread(target=time.sleep, args=(10_000,)).start()  # as a compiler's
    print("working", flush=True)
    time.sleep(10_000)

cli.COMMANDS["info"] = work
sys.argv = ["fastmoco", "info"]
cli.program()
"""


def test_a_second_signal_ends_what_never_returns():
    command, pipe = [sys.executable, "-c", STUCK], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "working\n"
        status = Path(f"/proc/{process.pid}/status")  # of the main thread
        while "State:\tS" not in status.read_text():
            pass
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):  # the first one may be saving
            process.wait(1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=HANG_SECONDS)
        assert (process.returncode, said) == (143, "fastmoco: ended, nothing more was saved\n")


def test_a_thread_that_still_works_is_not_waited_for():
    command = [sys.executable, "-c", PROGRAM]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=dict(os.environ))
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, said = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, said) == (143, "fastmoco: interrupted\n")
    assert time.monotonic() - began < HANG_SECONDS
