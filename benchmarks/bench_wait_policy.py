"""Threads that wait by sleeping (`fastmoco.cli.ENVIRONMENT`) beside OpenMP's own way, spinning.

A step has several hundred parallel regions, at whose ends threads wait for each other. A thread
that spins answers sooner on a free processor; beside another program it takes the time of the
thread that it waits for. Of interest on a CPU only.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.child import call_in_child
from benchmarks.harness import again, summarize
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings

SLEEPING, SPINNING = "sleeping", "spinning"
ENVIRONMENTS = {
    SLEEPING: {"OMP_WAIT_POLICY": "passive"},
    SPINNING: {},
    again(SLEEPING): {"OMP_WAIT_POLICY": "passive"},
}
TARGET = "benchmarks.step_subject:seconds_a_step"


def bench_wait_policy(settings: Settings, report: Report) -> None:
    """Milliseconds a step of a small ResNet-18, alone and beside a program that computes."""
    report.subject = "ResNet-18 of width 16, views of 32, batch 64, float32, eager"
    arguments = {"seconds": settings.pick(10, 12)}
    for neighbors, words in ((0, "alone"), (1, "beside one other program")):
        found: dict[str, list[float]] = {name: [] for name in ENVIRONMENTS}
        for _ in range(settings.pick(1, 3)):
            for name, environment in ENVIRONMENTS.items():
                with _neighbors(neighbors):
                    done = call_in_child(TARGET, arguments, environment=environment)
                found[name].append(float(done.value["seconds"]))
        for name, peer in ((SLEEPING, SPINNING), (SPINNING, ""), (again(SLEEPING), SLEEPING)):
            report.rows.append(
                Row(
                    what=f"{words}, {name}",
                    unit="ms",
                    value=summarize([1e3 * value for value in found[name]]),
                    ratio=beside(found, name, peer, SLEEPING),
                    note="A/A: the noise floor" if peer == SLEEPING else "",
                )
            )


@contextmanager
def _neighbors(count: int) -> Iterator[None]:
    """Programs that compute all the time, within the block."""
    command = [sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
