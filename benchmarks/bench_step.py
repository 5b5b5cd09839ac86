"""The training step beside the official one: as published, and with what its users add to it.

All take the same two normalized views; ours makes them of uint8 crops by a policy that draws
nothing, which the others are spared. Batch norm is plain, as on one device of the official code.
The mathematics of the official step is ours (tests/equivalence/test_peers.py); lightly's is its
own, which has another head, momentum and temperature, of the same cost.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

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
from benchmarks.peers.official_step import MOMENTUM, TEMPERATURE, OfficialStep
from benchmarks.report import Ratio, Report, Row, absent, beside
from benchmarks.settings import Settings
from benchmarks.step_subject import (
    LEARNING_RATE,
    built_model,
    noise_batch,
    statistics,
    training_step,
)
from fastmoco.device import resolve_device
from fastmoco.moco.loss import info_nce
from fastmoco.moco.model import MoCo
from fastmoco.moco.settings import MocoConfig, ModelConfig, Precision, Stem
from fastmoco.pipelines.augment import normalized
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import POLICIES
from fastmoco.train.acceleration import WARM_UP_STEPS, CudaRecording, GraphedStep

OFFICIAL, TUNED = "official", "official + AMP + channels_last + foreach"
TUNED_COMPILED, LIGHTLY = f"{TUNED}, compiled", "lightly"
OURS, OURS_EAGER, OURS_UNGRAPHED = "fastmoco", "fastmoco, eager", "fastmoco, no CUDA graph"
OURS_FP32, OURS_FP32_EAGER = "fastmoco, float32", "fastmoco, float32, eager"
OURS_BF16 = "fastmoco, bf16"
# On a GPU the convolutions of float32 run in TF32, torch's default.
FLOAT32 = (OFFICIAL, LIGHTLY, OURS_FP32, OURS_FP32_EAGER)
NO_AUGMENTATION = replace(
    POLICIES["moco_v2"],
    jitter_probability=0.0,
    grayscale_probability=0.0,
    blur_probability=0.0,
    flip_probability=0.0,
)
CPU_GOAL = ">= 2.4x official"
GPU_GOALS = {
    "resnet50": {OFFICIAL: ">= 3x", TUNED: ">= 1.25x"},
    "resnet18": {OFFICIAL: "", TUNED: ">= 1.5x"},
}
TAIL_GOAL = ">= 2x official"


class Parts(NamedTuple):
    """What all contenders are built of."""

    model: ModelConfig
    queue_size: int
    device: torch.device


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
    device = parts.device
    on_cuda = device.type == "cuda"
    report.peers = ("torchvision", "lightly")
    count, _, view_size = batch.crops.shape[:3]
    report.subject = (
        f"{parts.model.encoder} at {view_size}, batch {count}, K = {parts.queue_size:,}, one device"
    )
    everything = on_cuda or settings.scale == "full"
    contenders, reasons = _built(_builders(parts, batch, everything=everything))
    # A step takes a second on a CPU: blocks of one hold enough of it.
    plan = GPU_PLAN if on_cuda else Plan(1, settings.pick(4, 10))
    seconds = measure_blocks(contenders, OURS, plan, _timer(device))
    alone = (OFFICIAL, TUNED, OURS) if on_cuda else ()
    peaks = {name: _peak_bytes(name, parts, batch) for name in alone}
    notes = {name: f"peak {peak / 1e9:.2f} GB" for name, peak in peaks.items()}
    roofs = {name: roof(_model(parts), view_size, count, dtype) for name, dtype in _dtypes(device)}
    goals = GPU_GOALS[parts.model.encoder] if on_cuda else {OFFICIAL: CPU_GOAL}
    peers = {OFFICIAL, TUNED, TUNED_COMPILED, LIGHTLY, OURS_EAGER, OURS_UNGRAPHED} & set(contenders)
    pairs = [(OURS, peer) for peer in contenders if peer in peers]
    pairs += [(name, OFFICIAL) for name in contenders if name not in (OURS, OFFICIAL)]
    for name, peer in (*pairs, (OFFICIAL, "")):
        goal = goals.get(peer, "") if name == OURS else ""
        row = _row(seconds, name, peer, images=count, goal=goal, note=notes.get(name, ""))
        report.rows.append(_under(row, *roofs[OURS_FP32 if name in FLOAT32 else OURS]))
    if on_cuda:
        report.rows.append(_memory_row(peaks))
    report.rows += [absent(name, "images/s", reason) for name, reason in reasons.items()]
    floor = "A/A: the noise floor"
    report.rows.append(_row(seconds, again(OURS), OURS, images=count, note=floor))


def _builders(parts: Parts, batch: Batch, *, everything: bool) -> dict[str, Callable[[], Work]]:
    """What builds each step, by name.

    Args:
        parts: Model, queue and device.
        batch: Of all of them.
        everything: Also those whose compiling takes a minute on a CPU and shows little there.
    """
    on_cuda, reduced = parts.device.type == "cuda", _amp_dtype(parts.device)
    official, ours = partial(_official, parts, batch), partial(_ours, parts, batch)
    precision = Precision.fp16 if on_cuda else Precision.bf16
    found: dict[str, Callable[[], Work]] = {
        OFFICIAL: official,
        TUNED: partial(official, reduced),
        OURS: partial(ours, precision),
        OURS_EAGER: partial(ours, precision, compiled=False),
        OURS_FP32_EAGER: partial(ours, Precision.float32, compiled=False),
    }
    if parts.model.stem is Stem.small:
        found[LIGHTLY] = partial(_lightly, parts, batch)
    if everything:
        found[TUNED_COMPILED] = partial(official, reduced, compiled=True)
        found[OURS_FP32] = partial(ours, Precision.float32)
    if on_cuda:
        found[OURS_UNGRAPHED] = partial(ours, precision, graphed=False)
        found[OURS_BF16] = partial(ours, Precision.bf16)
    return found


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
    work = _builders(parts, batch, everything=True)[name]()
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
    return [(OURS_FP32, torch.float32), (OURS, _amp_dtype(device))]


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


def _amp_dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def _moco(queue_size: int) -> MocoConfig:
    return MocoConfig(queue_size=queue_size, momentum=MOMENTUM, temperature=TEMPERATURE)


def _model(parts: Parts) -> MoCo:
    return built_model(parts.model, _moco(parts.queue_size), parts.device)


def _views(parts: Parts, batch: Batch) -> list[Tensor]:
    """Both views as the peers take them, channels_last."""
    return [
        normalized(batch.crops[:, view : view + 1], *statistics(parts.device), torch.float32)
        for view in range(2)
    ]


def _official(
    parts: Parts, batch: Batch, dtype: torch.dtype | None = None, *, compiled: bool = False
) -> Work:
    model = _model(parts)
    step = OfficialStep(model.query_encoder, model.queue.keys.float(), LEARNING_RATE)
    views = _views(parts, batch)
    if dtype is None:
        views = [view.contiguous() for view in views]
    else:
        step.tune(dtype)
    if compiled:
        step.compile()
    return lambda: step(views[0], views[1])


def _lightly(parts: Parts, batch: Batch) -> Work:
    """Its example on the same backbone.

    Raises:
        ImportError: If it is not installed.
    """
    from benchmarks.peers.lightly_peer import LightlyStep

    backbone = _model(parts).query_encoder.backbone
    step = LightlyStep(backbone, backbone.feature_dim, parts.queue_size, LEARNING_RATE)
    views = [view.contiguous() for view in _views(parts, batch)]
    return lambda: step(views[0], views[1])


def _ours(
    parts: Parts,
    batch: Batch,
    precision: Precision,
    *,
    compiled: bool = True,
    graphed: bool = True,
) -> Work:
    """A step as `fastmoco train` does it: on a GPU, a CUDA graph."""
    step = training_step(
        parts.model,
        _moco(parts.queue_size),
        policy=NO_AUGMENTATION,
        device=parts.device,
        precision=precision,
        compiled=compiled,
    )
    if parts.device.type == "cuda" and graphed:
        replayed = GraphedStep(step, CudaRecording(parts.device), required=True)
        return lambda: replayed(batch, LEARNING_RATE)
    return lambda: step(batch, LEARNING_RATE)


def _tails(device: torch.device, batch_size: int, queue_size: int) -> dict[str, Work]:
    parts = Parts(ModelConfig(encoder="resnet18", stem=Stem.small), queue_size, device)
    generator = torch.Generator().manual_seed(1)
    query, key = (
        nn.functional.normalize(torch.randn(batch_size, 128, generator=generator)).to(device)
        for _ in range(2)
    )
    query.requires_grad_()
    model = _model(parts)
    official_model = _model(parts)
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
