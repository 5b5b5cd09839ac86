"""Output files of a request: tables, tasks for Label Studio, images, a contact sheet."""

import csv
import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from fastmoco.data.beton_format import MODE_JPEG, printable
from fastmoco.data.dataset import Dataset
from fastmoco.files import atomic_path, atomic_write_text
from fastmoco.labeling.ranking import Ranking
from fastmoco.labeling.settings import RequestConfig
from fastmoco.parsing import spreadsheet_cell
from fastmoco.visualize.pictures import Cell, draw_contact_sheet

SHEET_COLUMNS = 8


def write_request_files(
    cfg: RequestConfig, dataset: Dataset, ranking: Ranking, chosen: NDArray[np.int64]
) -> None:
    """Write all output files into the request's folder.

    Args:
        cfg: `out`, `images`, `image_prefix` and `sheet` are used.
        dataset: Open dataset.
        ranking: Ranking of the candidates.
        chosen: Indices into the ranking of the requested images, ascending.

    Raises:
        OSError: If a file cannot be written.
    """
    ids = ranking.ids[chosen].tolist()
    paths = [printable(dataset.name(sample)) for sample in ids]
    table: dict[str, Any] = {
        "sample_id": ids,
        "path": paths,
        "place": (chosen + 1).tolist(),
        **{name: values[chosen].tolist() for name, values in ranking.columns.items()},
    }
    _write_csv(cfg.out / "request.csv", table)
    with atomic_path(cfg.out / "request.parquet") as temporary:
        pq.write_table(pa.table(table), temporary)
    files = paths
    if cfg.images:  # not atomic: `request.json`, written last, marks all files as complete
        (cfg.out / "images").mkdir(exist_ok=True)
        files = [_write_image(cfg.out, dataset, sample) for sample in ids]
    tasks = [
        {"data": {"image": cfg.image_prefix + file, "sample_id": sample, "path": path}}
        for file, sample, path in zip(files, ids, paths, strict=True)
    ]
    atomic_write_text(cfg.out / "label_studio.json", json.dumps(tasks, indent=1) + "\n")
    if dataset.classes:
        atomic_write_text(cfg.out / "label_studio.xml", _labeling_interface(dataset.classes))
    _draw_sheet(cfg, dataset, ranking, chosen)


def _write_csv(path: Path, table: dict[str, Any]) -> None:
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        rows = zip(*table.values(), strict=True)
        writer.writerows(map(spreadsheet_cell, row) for row in rows)


def _write_image(out: Path, dataset: Dataset, sample: int) -> str:
    """Write an image, a JPEG as stored or raw pixels as PNG; return its path relative to `out`."""
    is_jpeg = dataset.modes[sample] == MODE_JPEG
    name = f"images/{sample:08d}.{'jpg' if is_jpeg else 'png'}"
    if is_jpeg:
        (out / name).write_bytes(dataset.blob(sample))
    else:
        Image.fromarray(dataset.decode(sample)).save(out / name, "PNG")
    return name


def _labeling_interface(classes: list[str]) -> str:
    """Form for Label Studio, whose CSV export then has the columns of `fastmoco merge-labels`."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in classes)
    return f"""<View>
  <Image name="image" value="$image"/>
  <Choices name="label" toName="image" choice="single">
{choices}
  </Choices>
</View>
"""


def _draw_sheet(
    cfg: RequestConfig, dataset: Dataset, ranking: Ranking, chosen: NDArray[np.int64]
) -> None:
    """Draw the first images of the request, in rows; an incomplete last row is left out."""
    count = min(cfg.sheet, len(chosen))
    if not count:
        return
    columns = min(SHEET_COLUMNS, count)
    cells = []
    for index in chosen[: count // columns * columns].tolist():
        sample = int(ranking.ids[index])
        loss = f" {ranking.columns['loss'][index]:.2f}" if "loss" in ranking.columns else ""
        cells.append(Cell(dataset.decode(sample), f"#{sample}{loss}", None))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    headers = ["first to be labeled", *[""] * (columns - 1)]
    draw_contact_sheet(cfg.out / "contact_sheet.png", rows, headers=headers)
