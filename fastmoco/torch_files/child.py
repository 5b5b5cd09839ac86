"""Run `unpickle` on a file of `torch.save`, in a child process with limits.

A PyTorch file is a pickle, which may name any function. The child calls none of them, and its
memory, time and output are limited: whatever the file is, this process survives.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIMEOUT_SECONDS = 900
_PROGRAM = """
import sys
sys.path.append(sys.argv[1])  # of the folder that holds fastmoco; last: it shadows nothing
from fastmoco.torch_files.unpickle import main
sys.exit(main(*sys.argv[2:]))
"""


class RefusedFileError(ValueError):
    """The reason, in one line, for which a file cannot be read."""


@contextmanager
def converted(path: Path, form: str) -> Iterator[Path]:
    """Convert a file; yield the folder of what the child wrote, which exists within the block.

    Args:
        path: A file of `torch.save`.
        form: ``weights`` or ``arrays``; see `unpickle`.

    Raises:
        RefusedFileError: If the child refuses the file, takes too long, or crashes.
    """
    # Arrays that are mapped stay after the folder is gone; some network disks then keep a name.
    with TemporaryDirectory(prefix="fastmoco-import-", ignore_cleanup_errors=True) as folder:
        run_child(path, Path(folder), form)
        yield Path(folder)


def run_child(path: Path, folder: Path, form: str) -> None:
    """Run `unpickle` on a file.

    Raises:
        RefusedFileError: If it refuses the file, takes too long, or crashes.
    """
    # -P: modules of the current folder do not shadow Python's own.
    python = [sys.executable, "-P", "-c", _PROGRAM, str(Path(__file__).parents[2])]
    command = [*python, str(path.resolve()), str(folder), form]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RefusedFileError(f"reading it took more than {TIMEOUT_SECONDS} s; refused") from error
    if done.returncode == 0:
        return
    reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason given"
    if done.returncode != 3:
        reason = f"the process that reads it crashed (exit code {done.returncode}: {reason})"
    raise RefusedFileError(reason)


def read_arrays(path: Path) -> dict[str, NDArray[Any] | str]:
    """The arrays of a file by name, memory-mapped; of what is no array, the name of its type.

    A single tensor has the name ``""``; those of a tuple or list have ``0``, ``1`` and so on.

    Raises:
        RefusedFileError: If the file is damaged, or would run code.
    """
    with converted(path, "arrays") as folder:
        names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
        return {
            name: one if isinstance(one, str) else np.asarray(np.load(folder / f"{one}.npy", "r"))
            for name, one in names.items()
        }
