"""List of images that were left out, each with the reason."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fastmoco.data.beton_format import encode_text
from fastmoco.files import atomic_path


def write_quarantine(path: Path, quarantined: Sequence[tuple[str, str]]) -> None:
    """Write name and reason of each image as CSV."""
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows([("path", "reason"), *quarantined])
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_text(rows.getvalue()))  # file names may hold any bytes
