"""Names from files reach results as they are, and the screen on one line."""

import json

import numpy as np
import pytest
from PIL import Image

from fastmoco.cli import main
from fastmoco.data.beton import BetonFile
from fastmoco.data.facts import description_text
from fastmoco.errors import one_line
from fastmoco.evaluate.classes import ClassTable

NAME = "cat\nfastmoco: all is well\x1b[2J\x9b1m\u202egpj"


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A dataset with a hostile class, two hostile files and one that is no image."""
    root = tmp_path_factory.mktemp("set")
    for folder in (NAME, "dog"):
        (root / folder).mkdir()
        for number in range(5):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}{NAME[3:]}.png")
    (root / NAME / "note\n\x1b[2J.txt").write_text("x")
    (root / "dog" / "bad\n\x1b[2J.jpg").write_text("x")
    return root


def clean_lines(text, allowed):
    """The lines of a text, which must be printable, and begin as ours do."""
    lines = text.splitlines()
    assert all(line.isprintable() for line in lines), text
    assert not any(line.startswith("fastmoco: all is well") for line in lines)
    assert len(lines) <= allowed, text
    return lines


def test_convert_and_info_print_names_escaped_and_keep_them(named, tmp_path, capfd):
    target = tmp_path / "x.beton"
    assert main(["convert", str(named), str(target), "max_bad_fraction=1"]) == 0
    out, err = capfd.readouterr()
    clean_lines(out, 12)
    clean_lines(err, 3)
    with BetonFile.open(target) as beton:
        assert beton.classes == sorted([NAME, "dog"])
    assert main(["info", str(target)]) == 0
    clean_lines(capfd.readouterr().out, 30)
    assert main(["info", str(target), "--json"]) == 0
    assert NAME in json.loads(capfd.readouterr().out)["classes"]
    assert "dog/bad\n\x1b[2J.jpg" in (tmp_path / "x.quarantine.csv").read_text()


def test_an_error_is_one_line(tmp_path, capfd):
    assert main(["info", str(tmp_path / NAME)]) == 2
    (line,) = clean_lines(capfd.readouterr().err, 1)
    assert one_line(NAME) in line


def test_tables_keep_their_lines():
    table = ClassTable([NAME, "dog"], [[1, 0], [0, 1]])
    clean_lines(table.to_text(), 3)
    assert table.to_json()["classes"][0]["name"] == NAME
    assert description_text({"classes": {NAME: 3}}) == f"classes  {one_line(NAME)} 3"
