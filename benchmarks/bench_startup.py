"""From the start of a process to the end of the first step of training: imports, compiling, data.

The demo's preset on images of 32 pixels. Cold: what Numba and torch.compile keep on the disk was
removed; cached: it was made by an earlier start. The page cache is warm in all of them.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.child import call_in_child
from benchmarks.harness import again, alternate, summarize
from benchmarks.pictures import Source
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings

EAGER, CACHED, COLD = "eager", "compiled, cached", "compiled, cold"
CACHES = ("NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
PRESET = ["experiment=demo"]


def bench_startup(settings: Settings, report: Report, thumbnails: Source, scratch: Path) -> None:
    """Seconds until the first loss is known."""
    path = scratch / "startup.beton"
    file = {"source": str(thumbnails.folder), "destination": str(path)}
    call_in_child("benchmarks.loader_subjects:make_file", {**file, "options": {"encoding": "raw"}})
    report.subject = f"experiment=demo, {thumbnails.name}"
    with ExitStack() as stack:

        def folder() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch)))

        warm = folder()
        runs: dict[str, Callable[[], float]] = {
            COLD: lambda: _first_step(path, [], folder()),
            CACHED: partial(_first_step, path, [], warm),
            EAGER: partial(_first_step, path, ["train.compile=never"], warm),
        }
        runs[CACHED]()  # fills the folder
        found, reasons = alternate(runs, EAGER, settings.pick(1, 3))
    assert not reasons, reasons
    for name in (EAGER, CACHED, COLD, again(EAGER)):
        report.rows.append(
            Row(
                what=name,
                unit="s",
                value=summarize(found[name]),
                ratio=beside(found, name, EAGER if name != EAGER else "", EAGER),
                note="A/A: the noise floor" if name == again(EAGER) else "",
            )
        )


def _first_step(path: Path, options: list[str], caches: Path) -> float:
    arguments = {"path": str(path), "started": time.time(), "overrides": PRESET + options}
    environment = {name: str(caches / name) for name in CACHES}
    target = "benchmarks.startup_subject:first_step"
    done = call_in_child(target, arguments, timeout_seconds=900, environment=environment)
    return float(done.value["seconds"])
