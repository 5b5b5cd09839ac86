"""Functions that run in a child process which sees CUDA devices where there are none.

`device.c` is compiled once and preloaded; what it answers is in its first lines. See "Code for a
GPU" in docs/extending.md. A test gives the name of a function and gets what it returned::

    play("tests.played_cuda.step:run_cases", {"plain": []}, capability=80)
"""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("device.c")
COMPILERS = ("cc", "gcc", "clang")
LIMIT_SECONDS = 600


def play(function: str, *arguments: Any, capability: int = 90, devices: int = 2) -> Any:
    """Call a function in a child with played devices; skip the test where that cannot be.

    Args:
        function: ``MODULE:NAME``.
        arguments: Values that JSON can hold; the result is one, too.
        capability: Compute capability of the devices; 90 is 9.0.
        devices: Number of devices.

    Raises:
        AssertionError: If the function raises, with the end of what it printed.
    """
    folder = library().parent
    played = {"PLAYED_CAPABILITY": str(capability), "PLAYED_DEVICES": str(devices)}
    preload = {"LD_PRELOAD": str(library()), "LD_LIBRARY_PATH": str(folder)}
    usual = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.played_cuda.played", function, answer],
            input=json.dumps(arguments),
            env={**os.environ, **usual, **preload, **played},
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=LIMIT_SECONDS,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return json.loads(answer.read_text())


@cache
def library() -> Path:
    """Build the library, once for a state of its source; skip the test without compiler or CUDA."""
    import torch

    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    headers = _headers()
    if torch.version.cuda is None or sys.platform != "linux":
        pytest.skip("torch is built without CUDA")
    if compiler is None or headers is None:
        pytest.skip("a C compiler and CUDA's headers (they come with Triton) are needed")
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


def main(function: str, answer: str) -> None:
    """In the child: call the function with the arguments of stdin, and write its result."""
    import torch

    played = int(os.environ["PLAYED_CAPABILITY"])
    assert torch.cuda.get_device_capability(0) == divmod(played, 10), "device.c does not fit torch"
    module, _, name = function.partition(":")
    result = getattr(importlib.import_module(module), name)(*json.loads(sys.stdin.read()))
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
