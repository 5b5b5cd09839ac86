"""`fastmoco report`: one HTML file about a run, or about several beside each other."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastmoco.errors import UsageError, one_line
from fastmoco.files import atomic_write_text
from fastmoco.report.gallery import Gallery, make_gallery
from fastmoco.report.page import comparison_page, run_page
from fastmoco.report.recorded import RecordedRun, read_run
from fastmoco.report.settings import ReportConfig
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.runs.run_folder import RunFolder
from fastmoco.waiting import waiting

IMAGES_AT_END = 200
"""Fewer than by `fastmoco report`, since each takes five forward passes and nobody asked."""


@dataclass(slots=True)
class ReportSummary:
    """The file that was written."""

    out: str
    runs: list[str]
    missing: str
    """Why it shows no images; empty if it does, or compares runs."""
    num_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The summary as a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """The summary in one line."""
        without = f"; without images: {self.missing}" if self.missing else ""
        return f"{one_line(self.out)}: {self.num_bytes / 1e6:.1f} MB{without}"


def write_report(paths: Sequence[Path], cfg: ReportConfig) -> ReportSummary:
    """Write the report of a run, or the comparison of several.

    Args:
        paths: Run folders.
        cfg: Options, from `load_config`.

    Raises:
        UsageError: If a folder is no run, or an option is wrong.
        OSError: If the file cannot be written.
    """
    runs = [read_run(path) for path in paths]
    first = runs[0].folder
    out = cfg.out or (first.report if len(runs) == 1 else first.path / "comparison.html")
    if out.suffix != ".html":
        raise UsageError(f"out={out} must end in .html")
    missing = ""
    if len(runs) > 1:
        page = comparison_page(runs)
    else:
        gallery, missing = _gallery(runs[0], cfg)
        page = run_page(runs[0], gallery, missing=missing)
    atomic_write_text(out, page)
    return ReportSummary(str(out), [run.name for run in runs], missing, out.stat().st_size)


def write_at_end(run: Path, device: str) -> None:
    """Write the report of a run that has ended, unless it is there; where that fails, warn."""
    folder = RunFolder(run)
    out, verdict = folder.report, folder.verdict
    if not verdict.exists():
        return
    if out.exists() and out.stat().st_mtime >= verdict.stat().st_mtime:
        return
    try:
        with waiting("writing the report"):
            write_report([run], ReportConfig(images=IMAGES_AT_END, device=device))
    except Exception as error:  # whatever it fails by, the run is complete
        warnings.warn(f"{out} cannot be written: {error}; try fastmoco report", stacklevel=2)
        return
    sys.stdout.write(f"{'report':<10}{one_line(str(out))}\n")


def _gallery(run: RecordedRun, cfg: ReportConfig) -> tuple[Gallery | None, str]:
    """The images, or why there are none: a report without them is better than none.

    Raises:
        UsageError: If the dataset that was asked for cannot be used.
    """
    if not cfg.images:
        return None, "images=0"
    data = cfg.data.test or run.data_path("test") or run.data_path("train")
    if data is None:
        return None, "the run names no dataset; give data.test=FILE.beton"
    try:
        checkpoint = load_checkpoint(run.folder.path)
        return make_gallery(checkpoint, data, count=cfg.images, device_name=cfg.device), ""
    except (UsageError, ValueError, OSError) as error:
        if cfg.data.test:
            raise
        return None, one_line(str(error))
