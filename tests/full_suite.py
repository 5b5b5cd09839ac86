"""The tests marked `full`: `make full` runs them one by one and keeps a record, which is committed.

``tests/full_suite.json`` holds, for each of them, the outcome, the seconds, the processor and the
state of the code that it ran on. A test that passed on the present state is not run again, so a run
that was stopped goes on where it was.
"""

import hashlib
import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmoco.files import atomic_write_text

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).with_suffix(".json")
WRITTEN = (RECORD, ROOT / "tests/faults/results")
"""What tests write down."""
CODE = ("fastmoco", "pipelines", "configs", "tests", "constraints.txt")


def state_of_code(code: Sequence[str] = CODE) -> str:
    """First 16 hex digits of the SHA-256 over names and contents of what tests run."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *code]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    digest = hashlib.sha256()
    for name in sorted(filter(None, names.split("\0"))):
        path = ROOT / name
        if path.is_file() and not any(path.is_relative_to(one) for one in WRITTEN):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def processor() -> str:
    """The processor's name, as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class FullSuite:
    """Leaves out the tests that passed on this state of the code, and records the others."""

    def __init__(self, record: Path = RECORD, state: str = "") -> None:
        """Read the record, if there is one."""
        self.path, self.state = record, state or state_of_code()
        self.tests: dict[str, dict[str, Any]] = (
            json.loads(record.read_text())["tests"] if record.exists() else {}
        )

    def passed(self, name: str) -> bool:
        """Whether a test passed on this state of the code."""
        row = self.tests.get(name, {})
        return row.get("outcome") == "passed" and row.get("state") == self.state

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Deselect what passed on this state."""
        done = [item for item in items if self.passed(item.nodeid)]
        items[:] = [item for item in items if not self.passed(item.nodeid)]
        config.hook.pytest_deselected(items=done)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Nothing left to run is a success."""
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.tests:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a test's row when it ends; a failing fixture counts as a failing test."""
        if report.when == "call" or not report.passed:
            row = {"outcome": report.outcome, "seconds": round(report.duration, 1)}
            where = {"state": self.state, "torch": torch.__version__, "processor": processor()}
            self.tests[report.nodeid] = row | where
            text = json.dumps({"tests": dict(sorted(self.tests.items()))}, indent=1)
            atomic_write_text(self.path, text + "\n")
