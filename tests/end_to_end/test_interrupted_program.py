"""The program ends at once after a signal, whatever its threads do."""

import os
import signal
import subprocess
import sys
import time

from tests.limits import HANG_SECONDS

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
