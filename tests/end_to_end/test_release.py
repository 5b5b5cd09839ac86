"""What `make release` builds, installed outside the repository, runs the demo without a compiler.

On the Python of the tests: run ``pytest --full tests/end_to_end/test_release.py`` by 3.11, 3.12 and
3.13. The dependencies are those of the tests' environment, since another copy takes 5 GB.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

from fastmoco.version import __version__

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SMALL = ["train.max_steps=3", "model.width=4", "monitor.every_epochs=0"]


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run without the repository, and without a compiler on the path."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CXX", "CC"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and source archive of a copy of what git has."""
    place = tmp_path_factory.mktemp("release")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        target = place / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target, follow_symlinks=False)
    run(sys.executable, "-m", "build", "--no-isolation", "-o", "../dist", cwd=place / "source")
    return place / "dist"


@pytest.mark.full
@pytest.mark.parametrize("python", [PYTHON])
def test_the_built_wheel_runs_the_demo_without_a_compiler(built, tmp_path, python):
    assert python == PYTHON
    assert sorted(path.name for path in built.iterdir()) == [
        f"fastmoco-{__version__}-py3-none-any.whl",
        f"fastmoco-{__version__}.tar.gz",
    ]
    with tarfile.open(built / f"fastmoco-{__version__}.tar.gz") as archive:
        assert f"fastmoco-{__version__}/README.md" in archive.getnames()
    home = tmp_path / "venv"
    venv.create(home, symlinks=True)
    (wheel,) = built.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", home / "bin/python")
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    path = str(home / "bin")  # no cc, c++, g++ or clang
    command = home / "bin/fastmoco"
    assert run(command, "version", cwd=tmp_path, PATH=path).split()[-1] == __version__
    tries = [*SMALL, "train.compile=auto"]  # the demo itself never compiles
    printed = run(command, "demo", *tries, cwd=tmp_path, PATH=path, OMP_NUM_THREADS="2")
    assert "compiler" in printed, printed
    assert json.loads((tmp_path / "runs/demo/verdict.json").read_text())["outcome"]
    assert (tmp_path / "runs/demo/report.html").exists()
