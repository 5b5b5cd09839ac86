"""From the start of a process to the end of the first step of training: imports, compiling, data.

The demo's preset on images of 32 pixels. Cold: what Numba and torch.compile keep on the disk was
removed; cached: it was made by an earlier start. The page cache is warm in all of them.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.child import call_in_child
from benchmarks.harness import again, summarize
from benchmarks.pictures import Source
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings

EAGER, CACHED, COLD = "eager", "compiled, cached", "compiled, cold"
CACHES = ("NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
PRESET = ["experiment=demo", "monitor.every_epochs=0"]


def bench_startup(settings: Settings, report: Report, thumbnails: Source, scratch: Path) -> None:
    """Seconds until the first loss is known."""
    path = scratch / "startup.beton"
    file = {"source": str(thumbnails.folder), "destination": str(path)}
    call_in_child("benchmarks.loader_subjects:make_file", {**file, "options": {"encoding": "raw"}})
    report.subject = f"experiment=demo, {thumbnails.name}"
    found: dict[str, list[float]] = {name: [] for name in (EAGER, CACHED, COLD, again(EAGER))}
    for _ in range(settings.pick(1, 3)):
        with tempfile.TemporaryDirectory(dir=scratch) as caches:
            # In this order: each finds what the one before has left.
            for name in (COLD, CACHED, EAGER, again(EAGER)):
                eager = name in (EAGER, again(EAGER))
                options = [f"train.compile={'never' if eager else 'auto'}"]
                found[name].append(_first_step(path, options, Path(caches)))
    for name, seconds in found.items():
        report.rows.append(
            Row(
                what=name,
                unit="s",
                value=summarize(seconds),
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
