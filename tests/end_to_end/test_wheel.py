"""What a user gets: a wheel with one name, presets and types, and a command for any folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.limits import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ("fastmoco", "pipelines", "configs", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path) -> str:
    """Runs `command` with nothing of the repository in its environment; returns its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    """Builds a `wheel` or an `sdist` of `source` without network; returns the file."""
    out.mkdir()
    run(sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "-o", out, source, cwd=out)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, since a build leaves files that the next one would pack."""
    copy = tmp_path_factory.mktemp("source")
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel") / "out")


@pytest.fixture(scope="module")
def clean_bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment with the wheel and our dependencies, not our editable install."""
    home = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=home)
    # A .pth inside a folder that a .pth names is not read, so the editable install stays invisible.
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_wheel_has_one_top_level_name_all_modules_presets_and_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"fastmoco"}
    expected = {
        str(Path(top, file.relative_to(ROOT / folder)))
        for top, folder in (
            ("fastmoco", "fastmoco"),
            ("fastmoco/pipelines", "pipelines"),
            ("fastmoco/configs", "configs"),
        )
        for pattern in ("*.py", "*.yaml")
        for file in (ROOT / folder).rglob(pattern)
    }
    assert "fastmoco/pipelines/__init__.py" in expected
    assert any(n.startswith("fastmoco/configs/experiment/") for n in expected)
    assert expected | {"fastmoco/py.typed"} <= set(names)


def test_sdist_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    archive = build("sdist", source, tmp_path / "sdist")
    folder = tmp_path / "unpacked"
    folder.mkdir()
    run("tar", "-xf", archive, cwd=folder)  # tarfile's filters are younger than Python 3.11.2
    (unpacked,) = folder.iterdir()
    rebuilt = build("wheel", unpacked, tmp_path / "rebuilt")
    assert sorted(zipfile.ZipFile(rebuilt).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_modules_of_the_wheel_and_no_others_are_imported(clean_bin: Path, tmp_path: Path) -> None:
    code = (
        "import fastmoco as f, fastmoco.pipelines, fastmoco.configs, importlib.util as u\n"
        "print(f.__file__, f.pipelines.__file__, f.configs.__file__, sep='\\n')\n"
        "assert u.find_spec('pipelines') is None and u.find_spec('configs') is None"
    )
    for file in run(clean_bin / "python", "-c", code, cwd=tmp_path).split("\n")[:-1]:
        assert Path(file).is_relative_to(clean_bin.parent)


def test_command_line_from_another_folder(clean_bin: Path, tmp_path: Path) -> None:
    images = tmp_path / "my images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"photo {number}.jpg")
    command = clean_bin / "fastmoco"
    assert "convert" in run(command, "--help", cwd=tmp_path)
    run(command, "convert", images, "my file.beton", cwd=tmp_path)
    information = json.loads(run(command, "info", "my file.beton", "--json", cwd=tmp_path))
    assert 3 in information.values()


def test_editable_install_is_found_from_another_folder(tmp_path: Path) -> None:
    code = "import fastmoco.pipelines as p, fastmoco.configs; print(p.__file__)"
    file = Path(run(sys.executable, "-c", code, cwd=tmp_path).strip())
    assert file.resolve() == ROOT / "pipelines" / "__init__.py"
