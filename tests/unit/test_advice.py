"""Every ``key=value`` in the product's messages, help and docstrings is an option that exists.

Not read as options are keyword arguments within the parentheses of a call,
``torch.load(mmap=True)``; attributes of a tag, ``<Label name="x"/>``; queries of an address,
``?d=x``; and what `NOT_OPTIONS` lists.
"""

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from fastmoco.commands import COMMANDS
from fastmoco.configuration import preset_groups, preset_names
from fastmoco.pipelines.build import AUTO, LOADERS
from fastmoco.schema_options import describe

ROOT = Path(__file__).parents[2]
NOT_OPTIONS = {
    "key": "stands for any option",
    **dict.fromkeys(("cur", "words", "words_known"), "variables of the scripts of completion"),
    "index": "an argument of a function of fastmoco.data.textures",
    "kind": "a key of a plot in configs/sweep",
    "queue_size": "an argument of the queue; the message advises moco.queue_size",
    "weights_only": "an argument of torch.load",
    "start_batch": "an argument of EpochPlan; the message advises no value",
}
EXAMPLES = {"policy=a": "the start of a path with a space, `policy=a b/c.yaml`"}

ADVICE = re.compile(r"(?<![\w.?&\[-])([a-z_][a-z0-9_]*(?:\.[a-z0-9_]+)*)=(?!=)([^\s`;]*)")
PLACEHOLDER = "{}"


@cache
def options() -> dict[str, set[str]]:
    """The kinds of each option, over all commands: its type, or its values joined by ``|``."""
    schemas = {command.config for command in COMMANDS.values() if command.config}
    found: dict[str, set[str]] = {}
    for schema in schemas:
        for key, kind, _ in describe(schema):
            found.setdefault(key, set()).add(kind)
        for group, presets in preset_groups(schema).items():
            found.setdefault(group, set()).add("|".join(preset_names(group, presets)))
    found["pipeline.name"] = {"|".join([AUTO, *LOADERS])}
    return found


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string; what an f-string fills in is `PLACEHOLDER`."""
    pieces: set[ast.AST] = set()
    for node in ast.walk(ast.parse(source)):  # an f-string comes before its pieces
        if isinstance(node, ast.JoinedStr):
            pieces |= set(node.values)
            shown = [getattr(piece, "value", None) for piece in node.values]
            yield node.lineno, "".join(s if isinstance(s, str) else PLACEHOLDER for s in shown)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in pieces:
            yield node.lineno, node.value


def is_argument(before: str) -> bool:
    """Whether a place is within a tag, or its last open parenthesis is that of a call."""
    if re.search(r"<\w[^>]*$", before):
        return True
    depth = 0
    for place in range(len(before) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(before[place], 0)
        if depth < 0:
            return before[place - 1 : place].isidentifier()
    return False


def allows(kinds: set[str], value: str) -> bool:
    """Whether a value that is written out is one of an option's."""
    if not value or PLACEHOLDER in value or re.search(r"[A-Z]|\.\.\.|ya?ml$", value):
        return True  # it stands for a value, or is a file of a preset
    for kind in kinds:
        numbers = {"int": r"[\d,]+", "float": r"[\d.e,-]+"}  # several: a sweep
        names = "|" in kind and not kind.startswith("list")
        if names and value in kind.split("|"):
            return True
        if not names and re.fullmatch(numbers.get(kind, ".*"), value):
            return True
    return False


def wrong_advice(source: str) -> list[str]:
    """``LINE: key=value`` of each that no command knows."""
    wrong = []
    for line, text in texts(source):
        for match in ADVICE.finditer(text):
            key, value = match[1], match[2]
            if key in NOT_OPTIONS or is_argument(text[: match.start()]):
                continue
            value = value.rstrip(".,:)'") if not value.endswith("...") else value
            if f"{key}={value}" in EXAMPLES:
                continue
            if key not in options() or not allows(options()[key], value):
                wrong.append(f"{line}: {key}={value}")
    return wrong


def test_what_the_product_advises_exists() -> None:
    wrong = {}
    for folder, _, names in os.walk(ROOT / "fastmoco", followlinks=True):
        for path in (Path(folder) / name for name in names if name.endswith(".py")):
            if found := wrong_advice(path.read_text()):
                wrong[str(path.relative_to(ROOT))] = found
    assert wrong == {}


def test_usage_lines_and_notes_name_options_that_exist() -> None:
    lines = [line for c in COMMANDS.values() for line in (c.usage, c.summary, *c.notes())]
    assert {line: found for line in lines if (found := wrong_advice(repr(line)))} == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("convert it or use pipeline=beton", ["pipeline=beton"]),
        ("convert it or use pipeline.name=beton", []),
        ("use pipeline.name=betn.", ["pipeline.name=betn"]),
        ("set train.compile=never", []),
        ("set train.compile=no, or wait", ["train.compile=no"]),
        ("(set moco.queue=64)", ["moco.queue=64"]),
        ("(set moco.queue_size=many)", ["moco.queue_size=many"]),
        ("`policy=moco_v9` or policy=mine.yaml", ["policy=moco_v9"]),
        ("experiment=overview", ["experiment=overview"]),
        ("data.train=FILE.beton out=FOLDER seeds=[0,1]", []),
        ("moco.symmetric=yes", ["moco.symmetric=yes"]),
        ("torch.compile(x(), mode=1) (mode=best)", ["mode=best"]),
        ('<View titel="x"/> https://a/?d=b&c=d a==b', []),
    ],
)
def test_wrong_advice_is_found(text: str, found: list[str]) -> None:
    assert wrong_advice(repr(text)) == [f"1: {advice}" for advice in found]


def test_text_around_what_is_filled_in_is_read_too() -> None:
    source = "x = f'{path}: set queue={n} or ' f'moco.queue_size={n}, train.compile={c} ' 'a.b=1'"
    assert wrong_advice(source) == ["1: queue={}", "1: a.b=1"]
