"""The training step beside the official one: as published, and with what its users add to it.

All take the same two normalized views; ours makes them of uint8 crops by a policy that draws
nothing, which the others are spared. Batch norm is plain, as on one device of the official code.
The mathematics is the same in all of them (tests/equivalence/test_peers.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

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
    random_images,
    summarize,
)
from benchmarks.peers.official_step import MOMENTUM, TEMPERATURE, OfficialStep
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings
from benchmarks.step_subject import LEARNING_RATE, built_model, statistics, training_step
from fastmoco.device import resolve_device
from fastmoco.moco.loss import info_nce
from fastmoco.moco.model import MoCo
from fastmoco.pipelines.augment import normalized
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.draws import draw_keys
from fastmoco.pipelines.policies import POLICIES
from fastmoco.roof import matrix_flops, step_flops_per_image
from fastmoco.schema import MocoConfig, ModelConfig, Precision, Stem
from fastmoco.train.graphed_step import CudaRecording, GraphedStep

OFFICIAL, TUNED = "official", "official + AMP + channels_last + foreach"
OURS, OURS_FP32 = "fastmoco", "fastmoco, float32"
OURS_UNGRAPHED = "fastmoco, no CUDA graph"
FLOAT32 = (OFFICIAL, OURS_FP32)  # on a GPU their convolutions run in TF32, torch's default
NO_AUGMENTATION = replace(
    POLICIES["moco_v2"],
    jitter_probability=0.0,
    grayscale_probability=0.0,
    blur_probability=0.0,
    flip_probability=0.0,
)
CPU_GOAL = ">= 2.4x official"
GPU_GOALS = {
    "resnet50": {OFFICIAL: ">= 3x, memory <= 0.6", TUNED: ">= 1.25x"},
    "resnet18": {OFFICIAL: "", TUNED: ">= 1.5x"},
}
TAIL_GOAL = ">= 2x official"

Parts = tuple[ModelConfig, int, torch.device]


def bench_step_resnet18(settings: Settings, report: Report) -> None:
    """ResNet-18 at 32 pixels: batch 64 on a CPU, 512 on a GPU."""
    device = resolve_device("auto")
    batch_size = 512 if device.type == "cuda" else 64
    model = ModelConfig(encoder="resnet18", stem=Stem.small)
    _bench_step(settings, report, model, view_size=32, batch_size=batch_size, queue_size=4096)


@pytest.mark.gpu
def bench_step_resnet50(settings: Settings, report: Report) -> None:
    """ResNet-50 at 224 pixels, batch 256."""
    _bench_step(
        settings,
        report,
        ModelConfig(encoder="resnet50"),
        view_size=224,
        batch_size=256,
        queue_size=65_536,
    )


def bench_step_tail(settings: Settings, report: Report) -> None:
    """Loss, its gradient, enqueue and momentum update of a ResNet-18, without the encoders."""
    device = resolve_device("auto")
    report.subject = "loss + gradient + enqueue + momentum update, ResNet-18, C = 128"
    for batch_size, queue_size in ((64, 4_096), (256, 65_536)):
        contenders = _tails(device, batch_size, queue_size)
        seconds = measure_blocks(contenders, OURS, _plan(settings, device, 20), _timer(device))
        sizes = f", N = {batch_size}, K = {queue_size:,}"
        report.rows += [
            _row(seconds, OURS, OFFICIAL, goal=TAIL_GOAL, suffix=sizes),
            _row(seconds, OFFICIAL, "", suffix=sizes),
            _row(seconds, again(OURS), OURS, note="A/A: the noise floor", suffix=sizes),
        ]


def _bench_step(
    settings: Settings,
    report: Report,
    model: ModelConfig,
    *,
    view_size: int,
    batch_size: int,
    queue_size: int,
) -> None:
    device = resolve_device("auto")
    on_cuda = device.type == "cuda"
    report.peers = ("torchvision",)
    report.subject = (
        f"{model.encoder} at {view_size}, batch {batch_size}, K = {queue_size:,}, one device"
    )
    batch = _batch(batch_size, view_size, device)
    parts = (model, queue_size, device)
    contenders: dict[str, Work] = {
        OFFICIAL: _official(parts, batch),
        TUNED: _official(parts, batch, _amp_dtype(device)),
        OURS_FP32: _ours(parts, batch, Precision.float32),
        OURS: _ours(parts, batch, Precision.fp16 if on_cuda else Precision.bf16),
    }
    if on_cuda:
        contenders[OURS_UNGRAPHED] = _ours(parts, batch, Precision.fp16, graphed=False)
    seconds = measure_blocks(contenders, OURS, _plan(settings, device, 3), _timer(device))
    goals = GPU_GOALS[model.encoder] if on_cuda else {OFFICIAL: CPU_GOAL}
    peaks = {name: device_peak_bytes(work) for name, work in contenders.items() if on_cuda}
    notes = {name: f"peak {peak / 1e9:.2f} GB" for name, peak in peaks.items()}
    roofs = _roofs(parts, view_size)
    for name, peer, goal in (
        (OURS, OFFICIAL, goals[OFFICIAL]),
        (OURS, TUNED, goals.get(TUNED, "")),
        (OURS_FP32, OFFICIAL, ""),
        (TUNED, OFFICIAL, ""),
        (OFFICIAL, "", ""),
        *([(OURS, OURS_UNGRAPHED, "")] if on_cuda else []),
    ):
        note = notes.get(name, "")
        row = _row(seconds, name, peer, images=batch_size, goal=goal, note=note)
        report.rows.append(_under(row, *roofs[OURS_FP32 if name in FLOAT32 else OURS]))
    floor = "A/A: the noise floor"
    report.rows.append(_row(seconds, again(OURS), OURS, images=batch_size, note=floor))


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


def _roofs(parts: Parts, view_size: int) -> dict[str, tuple[str, float]]:
    """What limits a step in each precision, and the images a second that it would allow."""
    model, device = _model(parts), parts[2]
    flops = step_flops_per_image(model, view_size, 2)
    reduced = _amp_dtype(device)
    roofs = {}
    for name, dtype in ((OURS_FP32, torch.float32), (OURS, reduced)):
        rate = matrix_flops(device, dtype)
        what = f"{rate / 1e12:.2f} TFLOP/s of {str(dtype).removeprefix('torch.')} matrix products"
        roofs[name] = (what, rate / flops)
    return roofs


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


def _batch(batch_size: int, view_size: int, device: torch.device) -> Batch:
    ids = torch.arange(batch_size)
    keys = torch.from_numpy(draw_keys(0, 0, ids.numpy())).to(device)
    return Batch(
        crops=random_images((batch_size, 2, view_size, view_size, 3), device),
        boxes=torch.zeros(batch_size, 2, 4, dtype=torch.int32, device=device),
        sample_id=ids.to(device),
        draw_key=keys,
        label=torch.full((batch_size,), -1, device=device),
        data_wait_seconds=0.0,
    )


def _moco(queue_size: int) -> MocoConfig:
    return MocoConfig(queue_size=queue_size, momentum=MOMENTUM, temperature=TEMPERATURE)


def _model(parts: Parts) -> MoCo:
    model, queue_size, device = parts
    return built_model(model, _moco(queue_size), device)


def _official(parts: Parts, batch: Batch, dtype: torch.dtype | None = None) -> Work:
    model = _model(parts)
    step = OfficialStep(model.query_encoder, model.queue.keys.float(), LEARNING_RATE)
    views = [
        normalized(batch.crops[:, view : view + 1], *statistics(parts[2]), torch.float32)
        for view in range(2)
    ]
    if dtype is None:
        views = [view.contiguous() for view in views]
    else:
        step.tune(dtype)
    return lambda: step(views[0], views[1])


def _ours(parts: Parts, batch: Batch, precision: Precision, *, graphed: bool = True) -> Work:
    """A step as `fastmoco train` does it: on a GPU, a CUDA graph."""
    model, queue_size, device = parts
    step = training_step(
        model,
        _moco(queue_size),
        policy=NO_AUGMENTATION,
        device=device,
        precision=precision,
        compiled=True,
    )
    if device.type == "cuda" and graphed:
        replayed = GraphedStep(step, CudaRecording(device), required=True)
        return lambda: replayed(batch, LEARNING_RATE)
    return lambda: step(batch, LEARNING_RATE)


def _tails(device: torch.device, batch_size: int, queue_size: int) -> dict[str, Work]:
    parts = (ModelConfig(encoder="resnet18", stem=Stem.small), queue_size, device)
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
