"""Results of checks of this machine, kept between runs.

Whether DALI decodes the right pixels, or a kernel gives the right numbers, takes seconds to find
out and holds as long as card, driver and versions stay. `fastmoco doctor` keeps every result;
`train` keeps what passed, so that a check that fails for a passing reason is repeated. A file that
is damaged or cannot be written counts as empty.
"""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

from fastmoco.caches import kept_folder
from fastmoco.files import atomic_write_text
from fastmoco.parsing import parse_json
from fastmoco.version import __version__

if TYPE_CHECKING:
    import torch

FILE = "checks.json"
DRIVER = Path("/proc/driver/nvidia/version")
DALI_PIXELS, CUDA_GRAPH, COMPILE = "DALI's pixels", "CUDA graph", "torch.compile"
"""Names of checks; that of the fused loss has the dimension too."""
AGAIN = "found by an earlier check; fastmoco doctor checks again"

Results = dict[str, dict[str, str]]
"""By card, driver and versions, the fault that each check found; "" = it passed."""


def recall(check: str, device: "torch.device") -> str | None:
    """The fault that a check found on such a device; "" = it passed, None = it was not done."""
    found = _read()
    return found.get(_subject(device), {}).get(check) if found else None


def keep(check: str, fault: str | None, device: "torch.device") -> None:
    """Keep the result of a check (None forgets it); does nothing where no file can be written."""
    folder, found = kept_folder(), _read()
    if folder is None:
        return
    results = found.setdefault(_subject(device), {})
    results.pop(check, None)
    if fault is not None:
        results[check] = fault
    with suppress(OSError):
        atomic_write_text(folder / FILE, json.dumps(found, indent=1) + "\n")


def checked(check: str, device: "torch.device", find_fault: Callable[[], str]) -> str:
    """The fault of a check, from an earlier one or else found now; "" = none, which is kept."""
    known = recall(check, device)
    if known is not None:
        return f"{known}; {AGAIN}" if known else ""
    fault = find_fault()
    if not fault:
        keep(check, fault, device)
    return fault


def _read() -> Results:
    """All results; none if the file is missing or damaged."""
    folder = kept_folder()
    try:
        found = parse_json((folder / FILE).read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return found if _is_results(found) else {}


def _is_results(found: object) -> bool:
    return isinstance(found, dict) and all(
        isinstance(checks, dict) and all(isinstance(fault, str) for fault in checks.values())
        for checks in found.values()
    )


def _subject(device: "torch.device") -> str:
    """What results depend on: card, driver, versions, compiler."""
    import torch

    card = "cpu"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        card = f"{torch.cuda.get_device_name(device)} ({major}.{minor}), driver {driver_version()}"
    compiler = shutil.which(os.environ.get("CXX") or "g++") or "no compiler"
    return f"{card}, fastmoco {__version__}, torch {torch.__version__}, {_packages()}, {compiler}"


def driver_version() -> str:
    """Version of the NVIDIA kernel module, such as 580.65.06; "" without one."""
    try:
        words = DRIVER.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return ""
    return next((word for word in words if word[0].isdigit() and "." in word), "")


@cache
def _packages() -> str:
    """Names and versions of what else computes."""
    names = ("nvidia-dali", "triton")
    found = {one.name: one.version for one in distributions() if one.name.startswith(names)}
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
