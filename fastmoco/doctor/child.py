"""Checks that may crash or hang run in a process of their own, with a time limit."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fastmoco.doctor.finding import Finding, State

PROGRAM = """
import sys
sys.path.append(sys.argv[1])  # of the folder that holds fastmoco; last: it shadows nothing
from fastmoco.doctor.child import main
main(*sys.argv[2:])
"""
ONE_THREAD = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
"""Processes of the compiler would outlast a child that is killed."""


def in_child(checks: Sequence[str], worst: State, *, seconds: float) -> list[Finding]:
    """Run checks of `device_checks` in one child; a crash or a hang is a finding, too.

    Args:
        checks: Names of the functions.
        worst: State of the parts if the child does not answer.
        seconds: Time limit.
    """
    # -P: modules of the current folder do not shadow Python's own.
    python = [sys.executable, "-P", "-c", PROGRAM, str(Path(__file__).parents[2])]
    try:
        done = subprocess.run(
            [*python, *checks],
            capture_output=True,
            text=True,
            timeout=seconds,
            env=ONE_THREAD | os.environ,
        )
    except subprocess.TimeoutExpired:
        return [Finding(worst, f"the check took more than {seconds:g} s")] * len(checks)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        return [Finding(State(one["state"]), one["text"], one["fix"]) for one in found]
    except (LookupError, ValueError, TypeError):
        said = done.stderr.strip().splitlines() or ["no reason given"]
        crash = f"the check crashed (exit code {done.returncode}: {said[-1]})"
        return [Finding(worst, crash)] * len(checks)


def main(*checks: str) -> None:
    """Run checks and print their findings as the last line, for the parent."""
    from fastmoco.caches import prepare_caches

    prepare_caches()  # before torch is loaded
    from fastmoco.doctor import device_checks

    found = [asdict(getattr(device_checks, check)()) for check in checks]
    print("\n" + json.dumps(found))  # noqa: T201
