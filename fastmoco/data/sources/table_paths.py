r"""Paths of images in tables and lists, as people and other systems write them.

``\`` of Windows, ``./``, ``~``, blanks around a path, absolute paths, paths from a folder further
up, and paths without the image's extension are understood; what fits two images is refused.
"""

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path

from fastmoco.data.sources.recognition import EXTENSIONS
from fastmoco.data.sources.tables import Table
from fastmoco.errors import UsageError

_UNUSUAL = re.compile(r"^[\s~]|\\|\s$")
_FOREIGN = re.compile(r"\s*([A-Za-z]:[\\/]|\\\\|[A-Za-z][A-Za-z0-9+.-]+://)")


def image_path(table: Table, row: int) -> str:
    r"""Path of a row's image file, absolute or relative to the table's folder.

    A path with blanks around it, ``\`` or ``~`` is taken as written if that file exists.

    Raises:
        UsageError: If the row has no path, or that of another system.
    """
    text = table.column("path")[row]
    if not text.strip():
        raise UsageError(f"{table.path}: {table.place(row)} has no path")
    if not _UNUSUAL.search(text) and not _FOREIGN.match(text):
        return text
    if os.path.exists(os.path.join(table.path.parent, text)):
        return text
    if _FOREIGN.match(text):
        raise UsageError(
            f"{table.path}: {table.place(row)} names {text.strip()}, which is no file of this "
            f"machine; write paths relative to {table.path.parent}"
        )
    return os.path.expanduser(text.strip().replace("\\", "/"))


def rows_of_images(
    table: Table, texts: Sequence[str], names: Sequence[str], folder: Path
) -> list[int]:
    """Row of a table that is about each image of a folder.

    A row's path is relative to the parent of the folder, else absolute (also of another machine,
    where the last two folders have these names) or relative to a folder further up, else relative
    to the folder itself. Each may lack the image's extension.

    Args:
        table: It has the column ``path``.
        texts: The label of each row, from `label_texts`.
        names: Paths of the images, relative to the folder.
        folder: The folder; of a relative one only its name counts.

    Raises:
        UsageError: If an image has no row, or rows that disagree, or a row fits two images.
    """
    rows, below = _rows_by_path(table, folder)
    chosen, image_of = [], dict[int, str]()
    for name in names:
        path = _plain(name)
        stem, extension = posixpath.splitext(path)
        found = None
        for one in (path, stem) if extension.lower() in EXTENSIONS else (path,):
            found = found or rows.get(f"{folder.name}/{one}") or below.get(one) or rows.get(one)
        if not found:
            raise UsageError(_no_row(table, name, folder))
        if other := next((row for row in found if texts[row] != texts[found[0]]), None):
            raise UsageError(
                f"{table.path}: {table.place(found[0])} labels {name} {texts[found[0]]!r}, "
                f"{table.place(other)} labels it {texts[other]!r}; keep one of them"
            )
        if image_of.setdefault(found[0], name) != name:
            raise UsageError(
                f"{table.path}: {table.place(found[0])} fits {image_of[found[0]]} and {name}; "
                "write the path of each"
            )
        chosen.append(found[0])
    return chosen


def _plain(path: str) -> str:
    return posixpath.normpath(path.strip().replace("\\", "/"))


def _rows_by_path(table: Table, folder: Path) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Rows by path, and by what follows the folder in a longer path (`_is_same`)."""
    rows: dict[str, list[int]] = {}
    below: dict[str, list[int]] = {}
    for row, text in enumerate(table.column("path")):
        rows.setdefault(_plain(text), []).append(row)
    ends = re.compile(rf"(?<=/){re.escape(folder.name)}/")
    for path, found in rows.items():
        for match in ends.finditer(path):
            if _is_same(path[: match.end() - 1], folder):
                below.setdefault(path[match.end() :], []).extend(found)
    return rows, below


def _is_same(written: str, folder: Path) -> bool:
    """Whether a written folder is this one: its end, or of an absolute one the last two names.

    One name would not do: ``/old/test/images`` is not ``/new/val/images``.
    """
    is_absolute = written.startswith("/") or bool(_FOREIGN.match(written))
    end = "/".join(written.split("/")[-2:]) if is_absolute else written
    return f"/{folder.as_posix()}".endswith(f"/{end}")


def _no_row(table: Table, name: str, folder: Path) -> str:
    paths = table.column("path")
    first = f"its first path is {paths[0]}; " if paths else ""
    return (
        f"{table.path}: has no row for {folder.name}/{name} or for {name}; {first}"
        "write paths relative to the folder or its parent"
    )
