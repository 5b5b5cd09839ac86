"""The training step beside the official one: as published, and with what its users add to it.

All take the same two normalized views; ours makes them of uint8 crops by a policy that draws
nothing, which the others are spared. Batch norm is plain, as on one device of the official code.
The mathematics of the official step is ours (tests/equivalence/test_peers.py); lightly's is its
own, which has another head, momentum and temperature, of the same cost.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.child import call_in_child
from benchmarks.harness import (
    CPU_PLAN,
    GPU_PLAN,
    Plan,
    Work,
    again,
    cuda_timer,
    device_peak_bytes,
    host_timer,
    measure_blocks,
    summarize,
)
from benchmarks.limits import roof
from benchmarks.peers.official_step import TEMPERATURE, OfficialStep
from benchmarks.report import Ratio, Report, Row, absent, beside
from benchmarks.settings import Settings
from benchmarks.step_contenders import (
    FLOAT32,
    LIGHTLY,
    OFFICIAL,
    OURS,
    OURS_EAGER,
    OURS_FP32,
    OURS_UNGRAPHED,
    TUNED,
    TUNED_COMPILED,
    Parts,
    amp_dtype,
    plain_model,
    step_builders,
)
from benchmarks.step_subject import (
    noise_batch,
)
from fastmoco.device import resolve_device
from fastmoco.moco.loss import info_nce
from fastmoco.moco.settings import ModelConfig, Stem
from fastmoco.pipelines.contract import Batch
from fastmoco.train.acceleration import WARM_UP_STEPS

CPU_GOAL = ">= 2.4x official"
GPU_GOALS = {
    "resnet50": {OFFICIAL: ">= 3x", TUNED: ">= 1.25x"},
    "resnet18": {OFFICIAL: "", TUNED: ">= 1.5x"},
}
TAIL_GOAL = ">= 2x official"


def bench_step_resnet18(settings: Settings, report: Report) -> None:
    """ResNet-18 at 32 pixels: batch 64 on a CPU, 512 on a GPU."""
    device = resolve_device("auto")
    batch_size = 512 if device.type == "cuda" else 64
    model = ModelConfig(encoder="resnet18", stem=Stem.small)
    parts = Parts(model, 4096, device)
    _bench_step(settings, report, parts, noise_batch(batch_size, 32, device))


@pytest.mark.gpu
def bench_step_resnet50(settings: Settings, report: Report) -> None:
    """ResNet-50 at 224 pixels, batch 256."""
    device = resolve_device("auto")
    parts = Parts(ModelConfig(encoder="resnet50"), 65_536, device)
    _bench_step(settings, report, parts, noise_batch(256, 224, device))


def bench_step_tail(settings: Settings, report: Report) -> None:
    """Loss, its gradient, enqueue and momentum update of a ResNet-18, without the encoders."""
    device = resolve_device("auto")
    report.subject = "loss + gradient + enqueue + momentum update, ResNet-18, C = 128"
    for batch_size, queue_size in ((64, 4_096), (256, 65_536)):
        contenders = _tails(device, batch_size, queue_size)
        steps = 20 if batch_size == 64 else 3
        seconds = measure_blocks(contenders, OURS, _plan(settings, device, steps), _timer(device))
        sizes = f", N = {batch_size}, K = {queue_size:,}"
        report.rows += [
            _row(seconds, OURS, OFFICIAL, goal=TAIL_GOAL, suffix=sizes),
            _row(seconds, OFFICIAL, "", suffix=sizes),
            _row(seconds, again(OURS), OURS, note="A/A: the noise floor", suffix=sizes),
        ]


def _bench_step(settings: Settings, report: Report, parts: Parts, batch: Batch) -> None:
    on_cuda = parts.device.type == "cuda"
    everything = on_cuda or settings.scale == "full"
    # A step takes a second on a CPU: blocks of one hold enough of it.
    plan = GPU_PLAN if on_cuda else Plan(1, settings.pick(4, 10))
    builders = step_builders(parts, batch, everything=everything)
    alone = (OFFICIAL, TUNED, OURS) if on_cuda else ()
    measure_step(report, parts, batch, plan, builders, alone)


def measure_step(
    report: Report,
    parts: Parts,
    batch: Batch,
    plan: Plan,
    builders: Mapping[str, Callable[[], Work]],
    alone: Sequence[str] = (),
    *,
    under_roof: bool = True,
) -> None:
    """Fills a report with the speed of steps beside each other.

    Args:
        report: Takes the rows.
        parts: Model, queue and device.
        batch: Of all steps.
        plan: How much is timed.
        builders: Some of `step_builders`, `OURS` among them.
        alone: Those whose device memory is measured, each in a process of its own.
        under_roof: Whether the roof stands beside the figures; it is measured, in seconds on a GPU
            and in a minute on a CPU without instructions for bf16.
    """
    device = parts.device
    report.peers = ("torchvision", "lightly")
    count, _, view_size = batch.crops.shape[:3]
    report.subject = (
        f"{parts.model.encoder} at {view_size}, batch {count}, K = {parts.queue_size:,}, one device"
    )
    contenders, reasons = _built(builders)
    seconds = measure_blocks(contenders, OURS, plan, _timer(device))
    peaks = {name: _peak_bytes(name, parts, batch) for name in alone}
    notes = {name: f"peak {peak / 1e9:.2f} GB" for name, peak in peaks.items()}
    roofs = {
        name: roof(plain_model(parts), view_size, count, dtype)
        for name, dtype in (_dtypes(device) if under_roof else ())
    }
    goals = GPU_GOALS[parts.model.encoder] if device.type == "cuda" else {OFFICIAL: CPU_GOAL}
    for name, peer in _pairs(contenders):
        goal = goals.get(peer, "") if name == OURS else ""
        row = _row(seconds, name, peer, images=count, goal=goal, note=notes.get(name, ""))
        limits = roofs.get(OURS_FP32 if name in FLOAT32 else OURS)
        report.rows.append(_under(row, *limits) if limits else row)
    if {OFFICIAL, OURS} <= peaks.keys():
        report.rows.append(_memory_row(peaks))
    report.rows += [absent(name, "images/s", reason) for name, reason in reasons.items()]
    floor = "A/A: the noise floor"
    report.rows.append(_row(seconds, again(OURS), OURS, images=count, note=floor))


def _pairs(contenders: Collection[str]) -> list[tuple[str, str]]:
    """Who stands beside whom: ours beside each peer, all beside the official step or else ours."""
    base = OFFICIAL if OFFICIAL in contenders else OURS
    peers = {OFFICIAL, TUNED, TUNED_COMPILED, LIGHTLY, OURS_EAGER, OURS_UNGRAPHED}
    pairs = [(OURS, peer) for peer in contenders if peer in peers and base == OFFICIAL]
    pairs += [(name, base) for name in contenders if name not in (OURS, OFFICIAL)]
    return [*pairs, (base, "")]


def _built(builders: Mapping[str, Callable[[], Work]]) -> tuple[dict[str, Work], dict[str, str]]:
    """All steps by name, and why a peer is not among them."""
    works, reasons = {}, {}
    for name, build in builders.items():
        try:
            works[name] = build()
        except ImportError as error:
            reasons[name] = str(error)
    return works, reasons


def _peak_bytes(name: str, parts: Parts, batch: Batch) -> int:
    """Device memory of a step that has the device for itself."""
    arguments = {
        "name": name,
        "encoder": parts.model.encoder,
        "stem": parts.model.stem.value,
        "queue_size": parts.queue_size,
        "batch_size": len(batch.crops),
        "view_size": batch.crops.shape[2],
    }
    done = call_in_child("benchmarks.bench_step:peak_alone", arguments, timeout_seconds=900)
    return int(done.value["bytes"])


def peak_alone(
    name: str, encoder: str, stem: str, queue_size: int, batch_size: int, view_size: int
) -> dict[str, int]:
    """The most device memory, in ``bytes``, of one step after those that warm it up."""
    device = resolve_device("auto")
    parts = Parts(ModelConfig(encoder=encoder, stem=Stem(stem)), queue_size, device)
    batch = noise_batch(batch_size, view_size, device)
    work = step_builders(parts, batch, everything=True)[name]()
    for _ in range(WARM_UP_STEPS + 2):
        work()
    return {"bytes": device_peak_bytes(work)}


def _memory_row(peaks: Mapping[str, int]) -> Row:
    """Device memory of our step beside the official one's, each in a process of its own."""
    ratio = summarize([peaks[OFFICIAL] / peaks[OURS]])
    return Row(
        what=OURS,
        unit="GB of device memory",
        value=summarize([peaks[OURS] / 1e9]),
        ratio=Ratio(OFFICIAL, ratio, shown=True),
        goal="<= 0.6 of official",
    )


def _row(
    seconds: Mapping[str, Sequence[float]],
    name: str,
    peer: str,
    *,
    images: int = 0,
    goal: str = "",
    note: str = "",
    suffix: str = "",
) -> Row:
    """Images per second, or milliseconds where a step has none, beside a peer."""
    values = [images / value if images else 1e3 * value for value in seconds[name]]
    return Row(
        what=name + suffix,
        unit="images/s" if images else "ms",
        value=summarize(values),
        ratio=beside(seconds, name, peer, OURS),
        goal=goal,
        note=note,
    )


def _dtypes(device: torch.device) -> list[tuple[str, torch.dtype]]:
    return [(OURS_FP32, torch.float32), (OURS, amp_dtype(device))]


def _under(row: Row, limit: str, images_per_second: float) -> Row:
    """The row with its share of a limit."""
    assert row.value is not None
    return replace(row, limit=limit, share_of_limit=row.value.median / images_per_second)


def _plan(settings: Settings, device: torch.device, cpu_steps: int) -> Plan:
    if device.type == "cuda":
        return GPU_PLAN
    return Plan(steps=cpu_steps, rounds=settings.pick(CPU_PLAN.rounds, 2 * CPU_PLAN.rounds))


def _timer(device: torch.device) -> Callable[[Work, int], float]:
    return cuda_timer if device.type == "cuda" else host_timer()


def _tails(device: torch.device, batch_size: int, queue_size: int) -> dict[str, Work]:
    parts = Parts(ModelConfig(encoder="resnet18", stem=Stem.small), queue_size, device)
    generator = torch.Generator().manual_seed(1)
    query, key = (
        nn.functional.normalize(torch.randn(batch_size, 128, generator=generator)).to(device)
        for _ in range(2)
    )
    query.requires_grad_()
    model = plain_model(parts)
    official_model = plain_model(parts)
    official = OfficialStep(official_model.query_encoder, official_model.queue.keys.float(), 0.0)

    def ours() -> None:
        loss, _ = info_nce(query, key, model.queue.keys, TEMPERATURE, model.loss)
        torch.autograd.grad(loss, query)
        model.update_key_encoder()
        model.queue.enqueue(key)

    def published() -> None:
        official.update_key_encoder()
        torch.autograd.grad(official.contrast(query, key), query)
        official.enqueue(key)

    return {OFFICIAL: published, OURS: ours}
