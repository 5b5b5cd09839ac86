"""The notebook: its cells run in order, beside a running event loop as in Jupyter."""

import asyncio
import json
from pathlib import Path

from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "examples/own_photographs.ipynb"
TINY = {"train__max_steps": 1, "train__compile": "never", "train__report": False}
TINY |= {"model__width": 4, "global_batch_size": 8, "pipeline__view_size": 16}
TINY |= {"monitor__every_epochs": 0}


def cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


def code(cell):
    return compile("".join(cell["source"]), str(NOTEBOOK), "exec")


def test_the_notebook_is_short_and_holds_no_output():
    found = cells()
    assert len(found) < 15
    for cell in found:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_the_notebook_makes_a_sheet_of_neighbors(tmp_path, monkeypatch):
    """A cell after the one that is tagged `parameters` would set others: here OPTIONS."""
    monkeypatch.chdir(tmp_path)
    scope = {}

    async def run_all():
        for cell in cells():
            if cell["cell_type"] == "code":
                exec(code(cell), scope)
            if "parameters" in cell["metadata"].get("tags", []):
                assert scope["OPTIONS"]
                scope.update(OPTIONS=TINY, MOST=30)

    asyncio.run(run_all())
    with Image.open(tmp_path / "runs/notebook/neighbors.png") as sheet:
        assert sheet.size == (7 * 16 * 3, 8 * 16 * 3)  # 8 images with 6 neighbors of 16 pixels
    assert len(list((tmp_path / "example-images").rglob("*.jpg"))) == 300
    assert len(scope["features"]) == len(scope["paths"]) == 28
    assert scope["similarity"].max() <= 1.0001
