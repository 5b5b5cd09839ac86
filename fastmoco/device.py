"""The device of a run."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from fastmoco.errors import UsageError
from fastmoco.kept_checks import driver_version


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA if there is a GPU, else the CPU.

    A GPU becomes the current one: libraries such as Triton launch there, whatever device their
    tensors are on.

    Raises:
        UsageError: If the name is unknown, or the device does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"device={name} is unknown; set device to auto, cpu, cuda or cuda:N"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device={name} is not supported; set device to auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device={name} does not exist; torch sees {torch.cuda.device_count()} CUDA devices; "
            "set device=cpu"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    return device


@contextmanager
def algorithms(device: torch.device, *, reproducible: bool) -> Iterator[None]:
    """Choose the kind of algorithms within the block, for this process.

    Args:
        device: Device of the run.
        reproducible: Only deterministic ones, so that the same command gives the same bits. If not,
            cuDNN measures its algorithms at the first use of each size and takes the fastest.

    Raises:
        RuntimeError: In the block, by an operation that has no deterministic algorithm.
    """
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.benchmark = device.type == "cuda" and not reproducible
    if reproducible:
        # cuBLAS needs a workspace of its own for each stream (CUDA documentation, "Results
        # reproducibility"); it is read when the library is first used. A program that used a GPU
        # before must have set it itself.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.use_deterministic_algorithms(before[1])


def describe_device(device: torch.device) -> str:
    """Describe a device in one line, for the run's header."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads)"


def unused_gpu() -> str:
    """The reason why torch sees no GPU though NVIDIA's is here; "" if there is none, or it does.

    torch itself only warns of an old driver, and trains on the CPU. A GPU that
    ``CUDA_VISIBLE_DEVICES`` hides is left out on purpose.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if hidden or not has_nvidia_gpu() or torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    found = driver_cuda()
    if not found:
        return "there is no NVIDIA driver here"
    if found < int(torch.version.cuda.partition(".")[0]) * 1000:
        return (
            f"the NVIDIA driver {driver_version()} is for CUDA {found // 1000}.{found % 1000 // 10}"
            f" and torch {torch.__version__} for CUDA {torch.version.cuda}"
        )
    return "CUDA cannot be started"


def has_nvidia_gpu(root: Path = Path("/")) -> bool:
    """Whether a driver or the PCI bus shows a GPU of NVIDIA."""
    if any((root / "dev").glob("nvidia[0-9]*")):
        return True
    for device in (root / "sys/bus/pci/devices").glob("*"):
        with suppress(OSError):
            kind = (device / "class").read_text(encoding="ascii")
            if (device / "vendor").read_text(encoding="ascii").strip() == "0x10de":
                if kind.startswith("0x03"):  # a display or 3D controller
                    return True
    return False


def driver_cuda() -> int:
    """Newest CUDA version that the driver supports, 12040 for 12.4; 0 without a driver."""
    version = ctypes.c_int(0)
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


def describe_float32(device: torch.device) -> str:
    """Name the number format of float32 work: cuDNN's convolutions round their inputs to TF32."""
    rounded = device.type == "cuda" and rounds_to_tf32()
    return "float32, TF32 in convolutions" if rounded else "float32"


def rounds_to_tf32() -> bool:
    """Whether cuDNN rounds the inputs of convolutions in float32 to TF32."""
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished all queued work; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reserved_memory_bytes(device: torch.device) -> int | None:
    """Most memory that torch took from a GPU, with what its allocator keeps; None on a CPU."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that torch allocated on a GPU; on a CPU, most that this process had in use."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage would include the peak of the process which started this one.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
