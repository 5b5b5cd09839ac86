"""InfoNCE: time and memory of its forms, beside the textbook one.

Memory is what forward and backward add at most: on a CPU the growth of the resident peak of a child
process that has done the same before, so that libraries have their buffers, and whose tensors are
given back to the system when they are freed; on a GPU torch's own mark.
"""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.child import call_in_child
from benchmarks.harness import (
    CPU_PLAN,
    GPU_PLAN,
    Plan,
    Work,
    again,
    cuda_timer,
    host_timer,
    measure_blocks,
    summarize,
)
from benchmarks.limits import matrix_rate
from benchmarks.memory import own_peak_bytes, reset_own_peak
from benchmarks.report import Ratio, Report, Row, beside
from benchmarks.settings import Settings
from fastmoco.device import resolve_device
from fastmoco.moco.loss import info_nce
from fastmoco.moco.loss_choice import resolve_loss
from fastmoco.moco.settings import Loss

DIM, TEMPERATURE = 128, 0.2
TIMED = ((64, 4_096), (256, 4_096), (256, 65_536))
MEASURED = ((256, 65_536), (4_096, 65_536))
M_MMAP_THRESHOLD = -3  # man 3 mallopt
MEMORY_GOAL = ">= 10x less than plain"


def bench_loss_time(settings: Settings, report: Report) -> None:
    """Forward and backward of the form that `auto` takes, beside the textbook form."""
    device = resolve_device("auto")
    report.subject = f"InfoNCE with gradient, C = {DIM}"
    fast = resolve_loss(Loss.auto, device, DIM)
    on_cuda = device.type == "cuda"
    timer: Callable[[Work, int], float] = cuda_timer if on_cuda else host_timer()
    dtype = torch.float16 if on_cuda else torch.float32
    for count, queue_size in TIMED:
        steps = 10 if count * queue_size <= 1 << 20 else 3
        plan = GPU_PLAN if on_cuda else Plan(steps, settings.pick(CPU_PLAN.rounds, 10))
        contenders = {
            form.value: loss_work(form, count, queue_size, device) for form in (Loss.plain, fast)
        }
        seconds = measure_blocks(contenders, fast.value, plan, timer)
        for name, peer in (
            (fast.value, "plain"),
            ("plain", ""),
            (again(fast.value), fast.value),
        ):
            value = summarize([1e3 * value for value in seconds[name]])
            least = 4 * DIM * count * queue_size / matrix_rate(device, dtype)
            report.rows.append(
                Row(
                    what=f"{name}, N = {count}, K = {queue_size:,}",
                    unit="ms",
                    value=value,
                    ratio=beside(seconds, name, peer, fast.value),
                    limit="the arithmetic of both matrix products",
                    share_of_limit=1e3 * least / value.median,
                )
            )


def bench_loss_memory(settings: Settings, report: Report) -> None:
    """The peak of the form that `auto` takes, beside the textbook form."""
    device = resolve_device("auto")
    report.subject = f"memory of InfoNCE with gradient, C = {DIM}"
    fast = resolve_loss(Loss.auto, device, DIM)
    for count, queue_size in MEASURED:
        sizes = {"count": count, "queue_size": queue_size}
        peaks = {
            form.value: [
                call_in_child(
                    "benchmarks.bench_loss:peak_bytes", {"form": form.value, **sizes}
                ).value["bytes"]
                for _ in range(settings.pick(1 if count == 4_096 else 2, 5))
            ]
            for form in (Loss.plain, fast)
        }
        ratios = summarize([a / b for a, b in zip(peaks["plain"], peaks[fast.value], strict=True)])
        for name, found in peaks.items():
            is_fast = name == fast.value
            report.rows.append(
                Row(
                    what=f"{name}, N = {count:,}, K = {queue_size:,}",
                    unit="MB",
                    value=summarize([peak / 1e6 for peak in found]),
                    ratio=Ratio("plain", ratios, ratios.low > 1) if is_fast else None,
                    goal=MEMORY_GOAL if is_fast else "",
                )
            )


def peak_bytes(form: str, count: int, queue_size: int) -> dict[str, float]:
    """What one loss with its gradient adds to this process's memory at most, in ``bytes``."""
    device = resolve_device("auto")
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    work = loss_work(Loss(form), count, queue_size, device)
    work()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return {"bytes": torch.cuda.max_memory_allocated() - before}
    before = reset_own_peak()
    work()
    return {"bytes": own_peak_bytes() - before}


def loss_work(
    form: Loss, count: int, queue_size: int, device: torch.device, dim: int = DIM
) -> Work:
    """One loss with its gradient; the queue is in half precision on a GPU, as in training."""
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int) -> Tensor:
        return F.normalize(torch.randn(rows, dim, generator=generator)).to(device)

    query, key, queue = unit(count).requires_grad_(), unit(count), unit(queue_size)
    if device.type == "cuda":
        queue = queue.half()

    def work() -> None:
        value, _ = info_nce(query, key, queue, TEMPERATURE, form)
        torch.autograd.grad(value, query)

    return work
