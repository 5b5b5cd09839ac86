"""Training through `ffcv` and `dali`: 50 steps, killed and resumed, and straight from a folder.

Each run is a process of its own: FFCV's import changes the one that it is in.
"""

from pathlib import Path

import pytest

from fastmoco import cli
from fastmoco.pipelines.build import LOADERS, PACKAGES
from tests.end_to_end.test_training import assert_same_run, run_killer, train_arguments
from tests.optional import require
from tests.pictures import write_class_folders

STEPS = 50
NEVER = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "images"
    write_class_folders(folder, classes=4, per_class=12)  # 6 steps an epoch
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Path:
    target = folder.with_name("train.beton")
    assert cli.main(["convert", str(folder), str(target)]) == 0
    return target


def arguments(dataset: Path, run: Path, name: str, steps: int = STEPS) -> list[str]:
    loop = [f"train.max_steps={steps}", "train.compile=never", "monitor.every_epochs=0"]
    return train_arguments(dataset, run, f"pipeline.name={name}", *loop)


@pytest.mark.full
@pytest.mark.parametrize("name", PACKAGES)
def test_killed_and_resumed_equals_uninterrupted(dataset: Path, tmp_path: Path, name: str) -> None:
    require(PACKAGES[name])
    whole, killed = (arguments(dataset, tmp_path / run, name) for run in ("whole", "killed"))
    assert run_killer("step", NEVER, whole) == 0
    assert run_killer("step", 28, killed) == -9
    assert run_killer("step", NEVER, killed) == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole", STEPS)
    header = (tmp_path / "whole" / "train.log").read_text()
    assert f"decoded on the cpu by the loader {name} (as asked)" in header


@pytest.mark.filterwarnings("always")  # one warns of the damaged image
@pytest.mark.parametrize("name", sorted({*LOADERS} - {"ffcv"}))
def test_a_folder_is_trained_on_as_it_is(folder: Path, tmp_path: Path, name: str) -> None:
    """Without its damaged images, which are listed, and without what is no image."""
    if name in PACKAGES:
        require(PACKAGES[name])
    good = len(list(folder.rglob("*.jpg")))
    bad = [f"class_0/cut{i}.jpg" for i in range(good // 9 + 1)]
    for path in bad:
        (folder / path).write_bytes((folder / "class_0" / "0.jpg").read_bytes()[:-90])
    (folder / "class_0" / "notes.txt").write_text("")
    assert cli.main(arguments(folder, tmp_path / "run", name, 2)) == 0
    rows = (tmp_path / "run" / "quarantine.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["path", *bad]
    log = (tmp_path / "run" / "train.log").read_text()
    assert "passed over, not images: 1 files, by name or first bytes (first class_0/notes" in log
    total = len(list(folder.rglob("*.jpg")))  # those of the loader before are written again
    assert f"{len(bad)} of {total} images" in log.splitlines()[-1]
