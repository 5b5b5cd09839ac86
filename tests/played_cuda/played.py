"""Functions that run in a child process which sees CUDA devices where there are none.

`device.c` is compiled once and preloaded; what it answers is in its first lines. See "Code for a
GPU" in docs/extending.md. A test gives the name of a function and gets what it returned::

    play("tests.played_cuda.step:run", ["precision=fp16"], capabilities=[80])
"""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("device.c")
COMPILERS = ("cc", "gcc", "clang")
LIMIT_SECONDS = 840


def play(function: str, *arguments: Any, capabilities: Sequence[int] = (90, 90)) -> Any:
    """Call a function in a child with played devices; skip the test where that cannot be.

    Args:
        function: ``MODULE:NAME``.
        arguments: Values that JSON can hold; the result is one, too.
        capabilities: Compute capability of each device; 90 is 9.0.

    Raises:
        AssertionError: If the function raises, with its traceback.
    """
    found = play_together({"": (function, *arguments)}, capabilities=capabilities)[""]
    assert "error" not in found, found["error"]
    return found["result"]


def play_together(
    calls: Mapping[str, Sequence[Any]], *, capabilities: Sequence[int] = (90, 90)
) -> dict[str, dict[str, Any]]:
    """Do several calls one after the other in one child, since importing torch takes seconds.

    Args:
        calls: By name, a function and its arguments as in `play`.
        capabilities: See `play`.

    Returns:
        By name, what `play` returns as ``result``, or a traceback as ``error``.
    """
    built = library()
    played = {"PLAYED_CAPABILITIES": ",".join(map(str, capabilities))}
    preload = {"LD_PRELOAD": str(built), "LD_LIBRARY_PATH": str(built.parent)}
    usual = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.played_cuda.played", answer],
            input=json.dumps(calls),
            env={**os.environ, **usual, **preload, **played},
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=LIMIT_SECONDS,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        found: dict[str, dict[str, Any]] = json.loads(answer.read_text())
    return found


@cache
def library() -> Path:
    """Build the library, once for a state of its source; skip the test without compiler or CUDA."""
    import torch

    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    headers = _headers()
    if torch.version.cuda is None or compiler is None or headers is None:
        reason = "a torch with CUDA, a C compiler and CUDA's headers (Triton's) are needed"
        if os.environ.get("FASTMOCO_REQUIRE_ALL") == "1":
            raise RuntimeError(f"FASTMOCO_REQUIRE_ALL=1, but {reason}")
        pytest.skip(reason)
    state = hashlib.sha256(SOURCE.read_bytes() + str(headers).encode()).hexdigest()[:16]
    built = ROOT / ".pytest_cache/d/played_cuda" / state / "libcuda.so.1"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as scratch:
            new = Path(scratch) / built.name
            command = [compiler, "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", f"-I{headers}"]
            subprocess.run([*command, "-o", new, SOURCE], check=True)
            new.replace(built)  # whole, also where other processes build it at the same time
    return built


def _headers() -> Path | None:
    """The folder of CUDA's headers in an installed package."""
    found = find_spec("triton")
    folders = [Path(found.origin).parent / "backends/nvidia/include"] if found else []
    return next((folder for folder in folders if (folder / "driver_types.h").exists()), None)


def main(answer: str) -> None:
    """In the child: do the calls of stdin, and write their results."""
    import torch

    # A card that this torch was not built for is played as well: torch 2.15 begins at 7.5.
    warnings.filterwarnings("ignore", r"\s*Found GPU\d", UserWarning)
    for device, played in enumerate(os.environ["PLAYED_CAPABILITIES"].split(",")):
        found = torch.cuda.get_device_capability(device)
        assert found == divmod(int(played), 10), f"device.c does not fit torch: {found}"
    results = {}
    for name, (function, *arguments) in json.loads(sys.stdin.read()).items():
        module, _, called = function.partition(":")
        torch.cuda.set_device(0)
        try:
            result = getattr(importlib.import_module(module), called)(*arguments)
            results[name] = {"result": result}
        except Exception:
            results[name] = {"error": traceback.format_exc(limit=-8)}
    Path(answer).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
