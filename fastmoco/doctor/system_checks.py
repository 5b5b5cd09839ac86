"""Checks of Python, packages, disk and limits, in this process; they import no torch."""

import os
import platform
import resource
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fastmoco.caches import kept_folder, private_folder
from fastmoco.doctor.finding import Finding, State

PYTHONS = ((3, 11), (3, 14))
"""First version that works, and first that is not supported."""
DISK_BYTES = 1_000_000_000
"""Free space that a run of ResNet-50 with 65,536 keys needs: three checkpoints of 319 MB."""
SHARED_BYTES = 1_000_000_000
"""Size of /dev/shm that NCCL does not exhaust; Docker gives 64 MB."""
OPEN_FILES = 1024
"""Linux's usual limit: shards, sockets between ranks and a compiler's processes fit in."""

OTHERS = (
    *("timm", "pillow-heif", "wandb", "onnx", "onnxruntime", "onnxscript"),
    *("faster-coco-eval", "torchmetrics", "aiohttp", "s3fs"),
)
"""Packages of the extras that are only looked for."""


def python() -> Finding:
    """The version of Python."""
    text = f"{platform.python_version()} ({sys.executable})"
    if PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        return Finding(State.works, text)
    return Finding(State.broken, f"{text} is not supported", "use Python 3.11 to 3.13")


def compiler() -> Finding:
    """The C++ compiler of `torch.compile`, which Triton needs too."""
    name = os.environ.get("CXX") or "g++"
    if path := shutil.which(name):
        return Finding(State.works, path)
    return Finding(
        State.without, f"no {name}: training is eager and slower", "sudo apt install g++"
    )


def libjpeg_turbo() -> Finding:
    """Decoding of JPEGs on the CPU."""
    fix = "pip install --force-reinstall 'simplejpeg>=1.8.2'"
    try:
        from fastmoco.data.images import decode_jpeg, encode_jpeg

        gray = np.full((32, 48, 3), 100, np.uint8)
        error = np.abs(decode_jpeg(encode_jpeg(gray, 95)).astype(int) - gray).max()
    except Exception as reason:  # the package or its library is missing
        return Finding(State.broken, f"cannot be used ({reason})", fix)
    if error > 2:
        return Finding(State.broken, f"decodes wrong pixels, off by {error} levels", fix)
    return Finding(State.works, f"simplejpeg {version('simplejpeg')}")


def installed(module: str) -> bool:
    """Whether an optional package is installed; it is not imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def other_packages() -> Finding:
    """Packages that only some options and commands need; they are not imported."""
    here, lacking = [], []
    for name in OTHERS:
        try:
            here.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lacking.append(name)
    text = ", ".join(here) or "none"
    if not lacking:
        return Finding(State.works, text)
    missing = f"{text}; not installed, and not needed: {', '.join(lacking)}"
    return Finding(State.without, missing, f"pip install {' '.join(lacking)}")


def disk() -> Finding:
    """Space and permission in the current folder, where runs are written."""
    folder = Path.cwd()
    fix = "give fastmoco train run_dir=FOLDER on another disk"
    if not can_write(folder):
        return Finding(State.without, f"{folder} cannot be written", fix)
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:,.1f} GB free in {folder}"
    return Finding(State.works, text) if free >= DISK_BYTES else Finding(State.broken, text, fix)


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Shared memory, which NCCL uses between the GPUs of a machine."""
    fix = "docker run --shm-size=8g, or ask for a larger /dev/shm"
    if not folder.is_dir() or not can_write(folder):
        return Finding(State.without, f"{folder} is missing or cannot be written", fix)
    size = shutil.disk_usage(folder).total
    text = f"{folder} has {size / 1e9:,.2f} GB"
    if size >= SHARED_BYTES:
        return Finding(State.works, text)
    return Finding(State.without, f"{text}, which may be too little for several GPUs", fix)


def file_limit() -> Finding:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft:,} files may be open"
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return Finding(State.works, text)
    allowed = 65_536 if hard == resource.RLIM_INFINITY else hard
    return Finding(State.without, f"only {text} at a time", f"ulimit -n {max(soft, allowed)}")


def caches() -> Finding:
    """Folders for compiled code and for what these checks find."""
    folders = [os.environ.get("TORCHINDUCTOR_CACHE_DIR") or private_folder(), kept_folder()]
    lacking = [folder for folder in folders if folder is None or not can_write(Path(folder))]
    if not lacking:
        return Finding(State.works, ", ".join(map(str, folders)))
    return Finding(
        State.without,
        f"{lacking[0] or 'the temporary folder'} cannot be written: code is compiled at each start",
        "export TMPDIR=FOLDER XDG_CACHE_HOME=FOLDER, with a folder that can be written",
    )


def can_write(folder: Path) -> bool:
    """Whether a file can be made in a folder, which is created if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
