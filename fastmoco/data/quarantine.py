"""List of images that were left out, each with the reason; and a sentence if they are many."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fastmoco.data.beton_format import encode_text
from fastmoco.files import atomic_path
from fastmoco.parsing import spreadsheet_cell

NOTABLE_FRACTION = 0.1
"""Largest fraction of a set that is left out without a sentence at the end."""


def write_quarantine(path: Path, quarantined: Sequence[tuple[str, str]]) -> None:
    """Write name and reason of each image as CSV."""
    rows = io.StringIO()
    writer = csv.writer(rows)  # lines end with CR LF: Python 3.11 quotes no CR otherwise
    writer.writerow(["path", "reason"])
    writer.writerows(map(spreadsheet_cell, row) for row in quarantined)
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_text(rows.getvalue()))  # file names may hold any bytes


def many_left_out(bad: int, total: int, listed: Path | None) -> str:
    """Say that more than `NOTABLE_FRACTION` of a set's images is left out; "" if it is not."""
    if bad <= NOTABLE_FRACTION * total:
        return ""
    return (
        f"{bad:,} of {total:,} images ({bad / total:.0%}) are left out; {listed} has the reason of "
        "each"
    )
