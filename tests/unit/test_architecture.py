"""The floors of `[tool.importlinter]` in pyproject.toml hold, and nothing passes them unseen."""

import ast
import os
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import grimp
import pytest

from tests.limits import HANG_SECONDS

ROOT = Path(__file__).parents[2]
MAX_LINES = 350

IMPORTS_BY_STRING = {
    "fastmoco": "its functions load on first use: `fastmoco --help` needs no torch",
    "fastmoco.interop.export": "a writer loads when it is chosen: most need a package of their own",
    "fastmoco.interop.onnx_graph": "onnx, onnxscript and onnxruntime are optional",
    "fastmoco.pipelines.build": "a loader loads when it is chosen: FFCV and DALI may be missing",
    "fastmoco.pipelines.dali_pipeline": "DALI is optional; as a string, its types do not matter",
}
UPWARD = {
    "fastmoco": "the package's own name is the door to every floor, and no floor imports it for one"
}


def product_files(suffix: str) -> dict[str, Path]:
    """Every file under fastmoco/ by its module's name; links are followed, as Python does."""
    found = {}
    for folder, _, names in os.walk(ROOT / "fastmoco", followlinks=True):
        for path in (Path(folder) / name for name in names if name.endswith(suffix)):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def settings_of_linter() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]


@cache
def import_graph() -> grimp.ImportGraph:
    """As import-linter builds it."""
    settings = settings_of_linter()
    return grimp.build_graph(
        str(settings["root_package"]),
        include_external_packages=bool(settings.get("include_external_packages", False)),
        exclude_type_checking_imports=bool(settings.get("exclude_type_checking_imports", False)),
        cache_dir=None,
    )


def test_the_linter_sees_every_module() -> None:
    files = product_files(".py")
    assert {"fastmoco.pipelines.build", "fastmoco.configs"} < files.keys()  # behind links
    assert import_graph().modules == files.keys()


def test_a_file_has_one_name() -> None:
    files = product_files(".py")
    assert len({path.resolve() for path in files.values()}) == len(files)
    # What these folders hold is installed below fastmoco, and there alone.
    loose = {path for name in ("pipelines", "configs") for path in (ROOT / name).rglob("*.py")}
    assert loose < {path.resolve() for path in files.values()}


def test_the_contracts_are_kept() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(settings_of_linter()['contracts'])} kept, 0 broken" in done.stdout


@pytest.mark.parametrize("suffix", [".py", ".yaml"])
def test_files_are_short(suffix: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in product_files(suffix).values()}
    assert {path.name: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


# ---------------------------------------------------------------- imports that no linter sees


def imports_by_string(path: Path) -> bool:
    names = {"import_module", "__import__", "exec_module", "run_module"}
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if type(node) is ast.Call]
    return any(getattr(f, "attr", getattr(f, "id", "")) in names for f in calls)


def own_modules_in_strings(path: Path) -> set[str]:
    """The modules of fastmoco that a file's strings name."""
    tree = ast.parse(path.read_text())
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    return {text for text in strings if isinstance(text, str) and text.startswith("fastmoco.")}


def test_imports_by_string_are_known() -> None:
    found = {name for name, path in product_files(".py").items() if imports_by_string(path)}
    assert found == IMPORTS_BY_STRING.keys()


def floor(module: str) -> int:
    """Number of a module's floor, the lowest is 0."""
    contract = next(c for c in settings_of_linter()["contracts"] if c["id"] == "floors")
    floors = [layer.replace(" ", "").split("|") for layer in reversed(contract["layers"])]
    return next(i for i, names in enumerate(floors) if module.split(".")[1] in names)


@pytest.mark.parametrize("name", sorted(IMPORTS_BY_STRING.keys() - UPWARD.keys()))
def test_imports_by_string_go_downward(name: str) -> None:
    graph = import_graph()
    for target in own_modules_in_strings(product_files(".py")[name]):
        assert target in graph.modules
        assert floor(target) <= floor(name)
        assert graph.find_shortest_chain(importer=target, imported=name) is None


@pytest.mark.parametrize("name", sorted(UPWARD))
def test_what_is_imported_upward_exists(name: str) -> None:
    targets = own_modules_in_strings(product_files(".py")[name])
    assert targets
    assert targets < import_graph().modules


# ---------------------------------------------------------------- what needs no torch

WITHOUT_TORCH = """
import contextlib, importlib, io, sys
from fastmoco import cli

def check(what):
    assert "torch" not in sys.modules, f"{what} imports torch"

check("fastmoco.cli")
for name in sys.argv[1:]:
    importlib.import_module(name)
    check(name)
for arguments in (["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(arguments) == 0
    assert printed.getvalue().strip()
    check(arguments)
parts = ("labeling", "detection", "reproduce", "interop", "doctor", "report")
loaded = [name for name in sys.modules if name.startswith(tuple(f"fastmoco.{p}." for p in parts))]
assert all(name.endswith((".settings", ".definition")) for name in loaded), loaded
print("commands:", *cli.COMMANDS)
"""


def test_settings_and_help_need_no_torch() -> None:
    settings = sorted(name for name in product_files(".py") if name.endswith(".settings"))
    command = [sys.executable, "-c", WITHOUT_TORCH, "fastmoco.pipelines.policies", *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert len(settings) > 7
    assert " train " in done.stdout
