"""Common mistakes and the line that answers each: `tests/golden/mistakes.txt`."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastmoco import cli
from tests.limits import HANG_SECONDS
from tests.pictures import write_class_folders

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "mistakes.txt"
EARLY, LATE = (part.splitlines() for part in GOLDEN.read_text().split("## Answered when"))
NO_TORCH = """
import shlex, sys
from fastmoco import cli

for line in sys.stdin:
    assert cli.main(shlex.split(line)) == 2, line
    assert "torch" not in sys.modules, line
print("answered")
"""


def mistakes(lines: list[str]) -> list[str]:
    return [line.removeprefix("$ fastmoco ") for line in lines if line.startswith("$ ")]


def answers() -> dict[str, str]:
    """The golden answer of each mistake: exit code and line."""
    found = [*EARLY, *LATE]
    pairs = zip(found, [*found[1:], ""], strict=True)
    return {a.removeprefix("$ fastmoco "): b for a, b in pairs if a.startswith("$ ")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the mistakes are made with; no training."""
    root = tmp_path_factory.mktemp("mistakes")
    write_class_folders(root / "photos", classes=2, per_class=3)
    assert cli.main(["convert", str(root / "photos"), str(root / "train.beton")]) == 0
    (root / "cut.beton").write_bytes((root / "train.beton").read_bytes()[:-500])
    (root / "README.md").write_text("# Photographs\n")
    (root / "empty").mkdir()
    for age, name in enumerate(("second", "first")):
        run = root / "runs" / name / "checkpoints"
        run.mkdir(parents=True)
        os.utime(run, (1e9 + age, 1e9 + age))
    return root


def answer(capsys: pytest.CaptureFixture[str], mistake: str) -> str:
    capsys.readouterr()
    code = cli.main(shlex.split(mistake))
    printed = capsys.readouterr().err.splitlines()
    loading = "fastmoco: loading PyTorch ..."  # on slow disks, with the seconds so far
    lines = [line for line in printed if not line.startswith(loading)]
    assert len(lines) == 1, printed
    return f"{code} {lines[0]}"


@pytest.mark.parametrize("mistake", mistakes([*EARLY, *LATE]))
def test_a_mistake_is_answered_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    monkeypatch.chdir(folder)
    found = answer(capsys, mistake).replace(f"{folder}/", "")
    if os.environ.get("MISTAKES") == "write":
        text, line = GOLDEN.read_text(), f"$ fastmoco {mistake}\n"
        before = "" if (old := answers()[mistake])[:1] in ("", "$") else f"{old}\n"
        GOLDEN.write_text(text.replace(f"{line}{before}", f"{line}{found}\n"))
    else:
        assert found == answers()[mistake]


def test_mistakes_of_spelling_are_answered_without_torch(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH],
        input="\n".join(mistakes(EARLY)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert (done.returncode, done.stdout) == (0, "answered\n"), done.stderr


def test_no_mistake_leaves_files(folder: Path) -> None:
    names = ["README.md", "cut.beton", "empty", "photos", "runs", "train.beton", "train.beton.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
