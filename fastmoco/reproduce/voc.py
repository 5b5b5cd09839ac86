"""`fastmoco table voc`: compare detectors on VOC with each other and with published ones.

The table has means over trials, and the gaps to the supervised and to the random backbone of the
same detector.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmoco.errors import UsageError
from fastmoco.files import atomic_write_text, read_json_object
from fastmoco.parsing import spreadsheet_cell
from fastmoco.reproduce.settings import SweepTableConfig

FIGURES = ("ap50", "ap", "ap75")
ROLES = ("supervised", "random")
RULES = {"voc07_": "VOC 2007 devkit", "": "COCO"}
BACKBONES = {"pretrained": "MoCo", "random": "random", "file": "weights of a file"}
V1, V2 = "arXiv:1911.05722", "arXiv:2003.04297"


@dataclass(frozen=True, slots=True)
class Row:
    """One backbone in one detector."""

    arch: str
    """c4, dc5 or fpn."""
    backbone: str
    figures: tuple[float, ...]
    """AP50, AP and AP75, percent."""
    spread: tuple[float, ...] = ()
    """Deviations of the figures over trials."""
    trials: int = 0
    source: str = ""
    """Source of a published row."""
    protocol: str = ""
    """Protocol of one of our rows; gaps are taken only between rows with the same protocol."""
    role: str = ""
    """supervised or random for a row that gaps refer to, else empty."""


# Means of 5 trials, trained on trainval07+12, tested on test2007.
PUBLISHED = (
    Row("dc5", "random", (64.4, 37.9, 38.6), source=V1, role="random"),
    Row("dc5", "supervised, ImageNet", (81.4, 54.0, 59.1), source=V1, role="supervised"),
    Row("dc5", "end-to-end, ImageNet", (79.2, 52.0, 56.6), source=V1),
    Row("dc5", "memory bank, ImageNet", (79.8, 52.9, 57.9), source=V1),
    Row("dc5", "MoCo v1, ImageNet", (81.1, 54.6, 59.9), source=V1),
    Row("dc5", "MoCo v1, Instagram 1B", (81.6, 55.5, 61.2), source=V1),
    Row("c4", "random", (60.2, 33.8, 33.1), source=V1, role="random"),
    Row("c4", "supervised, ImageNet", (81.3, 53.5, 58.8), source=V1, role="supervised"),
    Row("c4", "end-to-end, ImageNet", (80.4, 54.6, 60.3), source=V1),
    Row("c4", "memory bank, ImageNet", (80.6, 54.9, 60.6), source=V1),
    Row("c4", "MoCo v1, ImageNet", (81.5, 55.9, 62.6), source=V1),
    Row("c4", "MoCo v1, Instagram 1B", (82.2, 57.2, 63.7), source=V1),
    Row("c4", "MoCo v2 (a): MLP head", (82.0, 56.4, 62.6), source=V2),
    Row("c4", "MoCo v2 (b): augmentation", (82.2, 56.8, 63.2), source=V2),
    Row("c4", "MoCo v2 (c): both", (82.5, 57.2, 63.9), source=V2),
    Row("c4", "MoCo v2 (d): with cosine", (82.4, 57.0, 63.6), source=V2),
    Row("c4", "MoCo v2 (e): 800 epochs", (82.5, 57.4, 64.0), source=V2),
)


def write_voc_table(cfg: SweepTableConfig) -> str:
    """Write ``table.md`` and ``table.csv`` of all detectors found.

    Args:
        cfg: Options of `fastmoco table`; `runs` are the folders to search.

    Returns:
        The Markdown.

    Raises:
        UsageError: If there is no result.
    """
    folders = [Path(folder) for folder in cfg.runs] or [Path("runs")]
    if missing := [folder for folder in folders if not folder.exists()]:
        raise UsageError(f"{missing[0]} does not exist; set runs=[DIR,DIR] to folders of runs")
    ours = [row for folder in folders for row in find_rows(folder)]
    if not ours:
        raise UsageError(
            f"no results of fastmoco detect in {', '.join(map(str, folders))}; start: "
            "fastmoco detect RUN recipe=voc data.train=VOCdevkit trials=5"
        )
    out = cfg.out or cfg.folder or Path("runs") / "tables" / "voc"
    text = voc_markdown(ours)
    atomic_write_text(out / "table.md", text)
    atomic_write_text(out / "table.csv", voc_csv(ours))
    return text


def find_rows(folder: Path) -> Iterator[Row]:
    """A row for each set of trials of a box detector in a folder or below.

    Raises:
        ValueError: If a result is damaged; one line that names its file.
    """
    for path in sorted(folder.rglob("result.json")):
        advice = "remove it, and fastmoco detect writes it again"
        protocol = (values := read_json_object(path, {}, advice=advice)).get("protocol")
        if not isinstance(protocol, dict) or protocol.get("task") != "boxes":
            continue  # a result of another command, or of one trial
        try:
            yield _row(values["summary"], protocol)
        except (LookupError, TypeError) as error:
            raise ValueError(f"{path} is damaged (no {error}); {advice}") from error


def _row(summary: dict[str, dict[str, float]], protocol: dict[str, Any]) -> Row:
    rule = "voc07_" if "voc07_ap50" in summary else ""
    init = protocol["init"]
    name = BACKBONES.get(init, init)
    if init == "pretrained":
        name += f" ({Path(protocol['run']).name})"
    return Row(
        arch=protocol["arch"],
        backbone=name,
        figures=tuple(summary[rule + figure]["mean"] for figure in FIGURES),
        spread=tuple(summary[rule + figure]["std"] for figure in FIGURES),
        trials=len(protocol["seeds"]),
        protocol=(
            f"{protocol['steps']} steps of {protocol['global_batch_size']} images, "
            f"{protocol['num_train']} training and {protocol['num_test']} test images of "
            f"{protocol['test']}, batch norm {protocol['batch_norm']}, AP by {RULES[rule]}"
        ),
        role=_role(init),
    )


def _role(init: str) -> str:
    """Which row gaps refer to: torchvision's weights are supervised; older results say ``file``."""
    if init == "file" or init.startswith("torchvision-"):
        return "supervised"
    return "random" if init == "random" else ""


def gaps(row: Row, rows: Sequence[Row]) -> dict[str, tuple[float, ...]]:
    """Points above the supervised and the random backbone of the same detector and protocol."""
    found: dict[str, tuple[float, ...]] = {}
    for role in ROLES:
        for other in rows:
            alike = (other.arch, other.protocol) == (row.arch, row.protocol)
            if other.role == role and alike and other is not row:
                found[role] = tuple(a - b for a, b in zip(row.figures, other.figures, strict=True))
    return found


def voc_markdown(ours: Sequence[Row]) -> str:
    """A table of our rows for each detector and protocol, with the published rows below."""
    lines = [
        "# Detection on VOC",
        "",
        "AP50 / AP / AP75, means over trials ± their deviation; then the gaps to the supervised "
        "backbone (`weights=torchvision:NAME`) and to the random one in the same detector, in "
        "points. Published: detectron2, trainval07+12, test2007, means of 5 trials.",
    ]
    for arch, protocol in dict.fromkeys((row.arch, row.protocol) for row in ours):
        rows = [row for row in ours if (row.arch, row.protocol) == (arch, protocol)]
        published = [row for row in PUBLISHED if row.arch == arch]
        lines += ["", f"## {arch}", "", protocol, ""]
        lines += ["| backbone | n | AP50 / AP / AP75 | to supervised | to random | from |"]
        lines += ["|---|---:|---:|---:|---:|---|"]
        lines += [_markdown_row(row, table) for table in (rows, published) for row in table]
    return "\n".join(lines) + "\n"


def _markdown_row(row: Row, rows: Sequence[Row]) -> str:
    figures = [f"{value:.1f}" for value in row.figures]
    if row.trials > 1:
        pairs = zip(figures, row.spread, strict=True)
        figures = [f"{text} ± {spread:.1f}" for text, spread in pairs]
    found = gaps(row, rows)
    shown = [" / ".join(f"{gap:+.1f}" for gap in found.get(role, ())) for role in ROLES]
    trials = str(row.trials or 5)
    cells = [row.backbone, trials, " / ".join(figures), *shown, row.source or "here"]
    return f"| {' | '.join(cells)} |"


def voc_csv(ours: Sequence[Row]) -> str:
    """The same rows as CSV, with a column per figure."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    of_gaps = [f"{figure}_to_{role}" for role in ROLES for figure in FIGURES]
    spreads = [f"{figure}_sd" for figure in FIGURES]
    writer.writerow(
        ["arch", "backbone", "trials", *FIGURES, *spreads, *of_gaps, "source", "protocol"]
    )
    archs = {row.arch for row in ours}
    for rows in (ours, [row for row in PUBLISHED if row.arch in archs]):
        for row in rows:
            found = gaps(row, rows)
            cells = [f"{value:.2f}" for value in row.figures]
            cells += [f"{value:.2f}" for value in row.spread] or [""] * len(FIGURES)
            for role in ROLES:
                cells += [f"{gap:.2f}" for gap in found.get(role, ())] or [""] * len(FIGURES)
            source = row.source or "here"
            named = [row.arch, row.backbone, row.trials or 5, *cells, source, row.protocol]
            writer.writerow(map(spreadsheet_cell, named))
    return buffer.getvalue()
