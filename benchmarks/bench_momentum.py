"""The momentum update of all parameters, in place and at once, beside the official loop.

The official code makes new tensors for each parameter. What bounds both is memory: two numbers are
read and one is written for each parameter, as often as memory can be copied.
"""

from dataclasses import replace

import torch

from benchmarks.harness import (
    GPU_PLAN,
    Plan,
    Work,
    again,
    cuda_timer,
    host_timer,
    measure_blocks,
    summarize,
)
from benchmarks.limits import COPY, copy_rate
from benchmarks.peers.official_step import MOMENTUM, OfficialStep
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings
from benchmarks.step_subject import built_model
from fastmoco.device import resolve_device
from fastmoco.moco.settings import MocoConfig, ModelConfig

OURS, OFFICIAL = "fastmoco", "official"
NUMBERS = 3  # of 4 bytes, read or written for each parameter


def bench_momentum(settings: Settings, report: Report) -> None:
    """Milliseconds an update, of a ResNet-18 and a ResNet-50."""
    device = resolve_device("auto")
    on_cuda = device.type == "cuda"
    plan = GPU_PLAN if on_cuda else Plan(settings.pick(5, 20), 5)
    timer = cuda_timer if on_cuda else host_timer()
    report.subject = "k <- m k + (1 - m) q over all parameters, float32"
    for encoder in ("resnet18", "resnet50"):
        works, num_bytes = _contenders(encoder, device)
        seconds = measure_blocks(works, OURS, plan, timer)
        for name, peer in ((OURS, OFFICIAL), (OFFICIAL, ""), (again(OURS), OURS)):
            row = Row(
                what=f"{encoder}, {name}",
                unit="ms",
                value=summarize([1e3 * value for value in seconds[name]]),
                ratio=beside(seconds, name, peer, OURS),
                note="A/A: the noise floor" if peer == OURS else "",
            )
            reached = num_bytes / summarize(seconds[name]).median
            report.rows.append(replace(row, limit=COPY, share_of_limit=reached / copy_rate(device)))


def _contenders(encoder: str, device: torch.device) -> tuple[dict[str, Work], int]:
    """Both updates, and the bytes that one has to read and write."""
    model = built_model(ModelConfig(encoder=encoder), MocoConfig(queue_size=4096), device)
    official = OfficialStep(model.query_encoder, model.queue.keys.float(), 0.0)
    count = sum(parameter.numel() for parameter in model.query_encoder.parameters())
    works: dict[str, Work] = {
        OURS: model.update_key_encoder,
        OFFICIAL: official.update_key_encoder,
    }
    assert model.momentum.step == 1 - MOMENTUM
    return works, NUMBERS * 4 * count
