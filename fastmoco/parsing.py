"""JSON and YAML from files that may be damaged or hostile: limits first, then values.

A YAML file of 300 bytes can stand for a billion nodes, by aliases of aliases; and either format can
be nested deeper than Python's stack. Every such file is parsed here. Errors are reasons in one
line: the caller adds the file's name, and what to do.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

MAX_YAML_BYTES = 1 << 18
"""100 times the largest configuration; the pure Python parser takes seconds for it."""
MAX_YAML_NODES = 10_000
MAX_YAML_DEPTH = 40
_CONSTRUCTION = (TypeError, AttributeError, LookupError, OverflowError)
"""What PyYAML's constructors raise besides its own errors, such as for ``!!timestamp x``."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: If it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_yaml(path: Path, construct: Callable[[str], Any] = yaml.safe_load) -> Any:
    """Parse a YAML file that is small, as all of ours are.

    Args:
        path: The file.
        construct: Makes the values of a text; the default knows plain values only.

    Raises:
        ValueError: With a reason, if it is not YAML, or larger or deeper than the limits.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_YAML_BYTES + 1)
    if len(data) > MAX_YAML_BYTES:
        raise ValueError(f"it is larger than {MAX_YAML_BYTES:,} bytes")
    try:
        text = data.decode()
        _check_nodes(text)
        return construct(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, *_CONSTRUCTION) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _check_nodes(text: str) -> None:
    """Count the nodes, each alias as all that it stands for, by events: they build nothing."""
    sizes: dict[str, int] = {}  # of complete anchored nodes
    outer: list[tuple[str | None, int]] = []  # anchors of the open nodes, and nodes before them
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"alias *{event.anchor} has no complete node before it")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = outer.pop()
            if anchor:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionStartEvent):
                outer.append((event.anchor, count))
            elif event.anchor:
                sizes[event.anchor] = 1
            count += 1
        if len(outer) > MAX_YAML_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_YAML_DEPTH} levels")
        if count > MAX_YAML_NODES:
            raise ValueError(f"it has more than {MAX_YAML_NODES:,} values, aliases resolved")


_RUNS = re.compile(r"'*[=+\-@\t\r]")
"""Starts of a cell that a spreadsheet may run, and of one that was quoted before."""


def spreadsheet_cell(cell: object) -> object:
    """Quote a CSV cell that a spreadsheet would run as a formula, by an apostrophe before it.

    Numbers, also as text, stay as they are. `plain_cell` gives back the text.
    """
    if not isinstance(cell, str) or not _RUNS.match(cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def plain_cell(text: str) -> str:
    """Undo `spreadsheet_cell`."""
    return text[1:] if text.startswith("'") and _RUNS.match(text) else text
