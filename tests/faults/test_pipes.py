"""A pipe given as an input is refused in one line: its reader would wait for ever.

Sources are in tests/unit/test_passed_over.py, .beton files in tests/faults/test_beton_faults.py.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastmoco.data.sources.label_files import read_labels
from fastmoco.detection.annotations import Scene
from fastmoco.detection.coco import read_coco
from fastmoco.detection.masks import read_class_map
from fastmoco.errors import UsageError
from fastmoco.files import regular_file
from fastmoco.pipelines.policies import POLICIES
from fastmoco.preset_files import read_preset
from fastmoco.reproduce.definition import load_definition
from fastmoco.runs.tensor_file import read_tensors
from fastmoco.runs.weights_file import read_weights

SCENE = Scene(image=Path("1.jpg"), height=1, width=1, source="")
READERS: dict[str, Callable[[Path], object]] = {
    "policy.yaml": lambda path: read_preset("policy", path, POLICIES),
    "sweep.yaml": lambda path: load_definition(str(path)),
    "labels.txt": read_labels,
    "labels.npy": read_labels,
    "weights.safetensors": read_weights,
    "weights.pth": read_weights,
    "encoder.safetensors": read_tensors,
    "coco.json": lambda path: read_coco(path, images=None, option="data.train"),
    "map.png": lambda path: read_class_map(path, SCENE, 21),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}:? is (a pipe, socket, device|not a file)"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("path", [Path("/dev/null"), Path("/dev"), Path("/dev/zero")])
def test_what_is_on_no_disk_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="write what comes from it to a file"):
        regular_file(path)
