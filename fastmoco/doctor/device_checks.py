"""Checks that load torch, a compiler or a decoder; each runs in a child (`child.in_child`).

What training asks about later is kept by card, driver and versions (`kept_checks`). It is kept as
failed before the check starts: so a check that crashes is known, too.
"""

from collections.abc import Callable

import torch

from fastmoco.device import driver_cuda, resolve_device, unused_gpu
from fastmoco.doctor.finding import NO_GPU, Finding, State
from fastmoco.doctor.system_checks import compiler
from fastmoco.errors import first_line
from fastmoco.kept_checks import COMPILE, CUDA_GRAPH, DALI_PIXELS, driver_version, keep, recall
from fastmoco.out_of_memory import shortage

CPU = torch.device("cpu")
COPY_BYTES, COPIES = 1 << 26, 8
SLOW_COPY = 3e9
"""Bytes a second below which a link has fewer lanes than a GPU's (PCIe 3.0 x4 gives 3.9e9): 20,000
images of 224 pixels with two crops each."""
DIM = 128
"""C of the presets."""


def torch_itself() -> Finding:
    """PyTorch, and what it was built for."""
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return Finding(State.works, f"{torch.__version__}, {built}")


def driver() -> Finding:
    """The NVIDIA driver against torch's CUDA."""
    if torch.cuda.is_available():
        found = driver_cuda()
        text = f"{driver_version()}, for CUDA {found // 1000}.{found % 1000 // 10}"
        return Finding(State.works, f"{text}; torch is built for {torch.version.cuda}")
    reason = unused_gpu()
    if not reason:
        return NO_GPU
    fix = f"install NVIDIA's driver for CUDA {torch.version.cuda} or newer, and start again"
    if torch.version.cuda is None:
        fix = "pip install --force-reinstall torch torchvision"
    # Without any driver this may be a container that was not given the GPU of its host.
    state = State.broken if driver_cuda() else State.without
    return Finding(state, f"{reason}: training would run on the CPU", fix)


def card() -> Finding:
    """The GPUs, and whether this torch has code for each."""
    if not torch.cuda.is_available():
        return NO_GPU
    indices = range(torch.cuda.device_count())
    cards = [(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in indices]
    names = ", ".join(f"{name} ({major}.{minor})" for name, (major, minor) in cards)
    archs = torch.cuda.get_arch_list()
    lacking = [name for name, capability in cards if not has_code_for(capability, archs)]
    if not lacking:
        return Finding(State.works, names)
    return Finding(
        State.broken,
        f"{lacking[0]}: this torch has code for {' '.join(archs)} only",
        "install a version of torch that is built for this card, or give device=cpu",
    )


def has_code_for(capability: tuple[int, int], archs: list[str]) -> bool:
    """Whether a card runs one of these: its generation's binaries, or older intermediate code.

    Args:
        capability: Compute capability of the card.
        archs: Names as ``sm_86`` (binary) and ``compute_80`` (intermediate).
    """
    for arch in archs:
        kind, _, digits = arch.partition("_")
        digits = digits.rstrip("af")
        major, minor = int(digits[:-1]), int(digits[-1])
        if (major, minor) <= capability and (kind == "compute" or major == capability[0]):
            return True
    return False


def compilation() -> Finding:
    """`torch.compile`, on the GPU if there is one."""
    from fastmoco.train.compilation import compile_failure

    device = resolve_device("auto")
    fault = _kept(COMPILE, device, lambda: compile_failure(device))
    if not fault:
        return Finding(State.works, f"compiles for {device}")
    fix = "train.compile=never starts at once"
    if "Python.h" in fault:
        fix = "sudo apt install python3-dev"
    elif compiler().state is not State.works:
        fix = compiler().fix
    return Finding(State.without, f"fails, training is eager ({fault})", fix)


def triton() -> Finding:
    """Triton, by a launch of the fused loss."""
    if not torch.cuda.is_available():
        return NO_GPU
    from fastmoco.moco.loss import one_pass
    from fastmoco.moco.loss_choice import SCALE, random_vectors

    fix = f"pip install --force-reinstall torch=={torch.__version__.partition('+')[0]}"
    try:
        import triton

        query, key, queue = (one.cuda() for one in random_vectors(DIM))
        one_pass(query, key, queue.half(), SCALE, True)
        torch.cuda.synchronize()
    except Exception as error:  # a package, a compiler or a driver
        return Finding(State.without, f"launches no kernel ({first_line(error)})", fix)
    return Finding(State.works, triton.__version__)


def fused_loss() -> Finding:
    """The strict check of the fused loss."""
    if not torch.cuda.is_available():
        return NO_GPU
    from fastmoco.moco.loss_choice import check_name, fault_of_fused

    device = resolve_device("auto")
    fault = _kept(check_name(DIM), device, lambda: fault_of_fused(device, DIM))
    if not fault:
        return Finding(State.works, f"agrees with chunked at C = {DIM}")
    return Finding(State.without, f"not used, chunked is ({fault})", "moco.loss=chunked")


def cuda_graph() -> Finding:
    """A small captured step against an eager one."""
    if not torch.cuda.is_available():
        return NO_GPU
    from fastmoco.doctor.captured_step import graph_fault
    from fastmoco.train.acceleration import CudaRecording

    device = resolve_device("auto")
    fault = _kept(CUDA_GRAPH, device, lambda: graph_fault(device, lambda _: CudaRecording(device)))
    if not fault:
        return Finding(State.works, "a captured step is the eager one")
    return Finding(State.without, f"not used ({fault})", "train.cuda_graph=never")


def copy_rate() -> Finding:
    """Rate of copies from pinned memory to the GPU."""
    if not torch.cuda.is_available():
        return NO_GPU
    pinned = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(pinned, device="cuda")
    start: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    target.copy_(pinned, non_blocking=True)
    start.record()
    for _ in range(COPIES):
        target.copy_(pinned, non_blocking=True)
    end.record()
    torch.cuda.synchronize()
    rate = COPY_BYTES * COPIES / (start.elapsed_time(end) / 1000)
    text = f"{rate / 1e9:.1f} GB/s from pinned memory"
    if rate >= SLOW_COPY:
        return Finding(State.works, text)
    return Finding(State.without, f"only {text}", "nvidia-smi -q -d PCIE shows the lanes in use")


def dali() -> Finding:
    """DALI's pixels against those of the CPU's decoder, beside other work on the GPU."""
    from fastmoco.doctor.dali_pixels import dali_fault

    device = resolve_device("auto")
    fault = _kept(DALI_PIXELS, device, lambda: dali_fault(device))
    if not fault:
        return Finding(State.works, f"decodes the right pixels on {device}")
    fix = "pip install --upgrade nvidia-dali-cuda130, or pipeline.name=beton"
    return Finding(State.without, f"not used by pipeline.name=auto ({fault})", fix)


def ffcv() -> Finding:
    """FFCV and its compiled library."""
    try:
        from fastmoco.pipelines import ffcv_runtime  # noqa: F401
    except Exception as error:  # its libraries, or a newer NumPy or Numba
        fix = "pip install --force-reinstall ffcv, or pipeline.name=beton"
        return Finding(State.without, f"cannot be loaded ({first_line(error)})", fix)
    return Finding(State.works, "can be loaded")


def nccl() -> Finding:
    """A sum by NCCL over all visible GPUs."""
    if not torch.cuda.is_available():
        return NO_GPU
    from torch.cuda import nccl as library

    count = torch.cuda.device_count()
    version = ".".join(map(str, library.version()))  # type: ignore[no-untyped-call]
    values = [torch.full((1024,), float(i), device=f"cuda:{i}") for i in range(count)]
    library.all_reduce(values)  # type: ignore[no-untyped-call]
    if all(bool((one == sum(range(count))).all()) for one in values):
        return Finding(State.works, f"{version}, sums over {count} GPUs")
    fix = "NCCL_P2P_DISABLE=1, or one GPU: CUDA_VISIBLE_DEVICES=0"
    return Finding(State.without, f"{version}: a sum over {count} GPUs is wrong", fix)


def _kept(check: str, device: torch.device, find_fault: Callable[[], str]) -> str:
    """Do a check and keep its result, also that of one that ends this process.

    A lack of memory passes, such as another program's on this GPU: it is told, and not kept.
    """
    before = recall(check, device)
    keep(check, "the check did not end", device)
    try:
        fault = find_fault()
    except KeyboardInterrupt:
        keep(check, before, device)
        raise
    except Exception as error:  # the result, whatever it is
        fault = first_line(error)
    keep(check, before if shortage(RuntimeError(fault)) else fault, device)
    return fault
