"""The photometric half of both views, for each policy, beside Kornia's and torchvision's.

In one process, in mirrored blocks, on crops that lie on the device; nothing is decoded. Kornia's
classes draw one order of the jitter for a batch and ours one for each image, which favors Kornia.
The limit is memory: crops are read and views are written once. On a GPU a step of MoCo with a
ResNet-50 stands beside them.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from benchmarks import augment_subjects as subjects
from benchmarks.harness import (
    CPU_PLAN,
    GPU_PLAN,
    Plan,
    Work,
    again,
    cuda_timer,
    host_timer,
    measure_blocks,
    random_images,
    summarize,
)
from benchmarks.limits import COPY, copy_rate
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings
from benchmarks.step_subject import LEARNING_RATE, feed_step
from fastmoco.device import resolve_device
from fastmoco.draws.host import draw_keys
from fastmoco.moco.settings import ModelConfig
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import POLICIES
from fastmoco.train.compilation import resolve_compile
from fastmoco.train.settings import Compile

OURS, PLAIN, FUNCTIONS = "fastmoco", "by torch alone", "by Kornia's functions"
KORNIA, TORCHVISION, STEP = "Kornia's AugmentationSequential", "torchvision v2", "MoCo step"
GOALS = {KORNIA: ">= 5x", STEP: "views < 5% of the step"}
VIEW_SIZES = {"moco_v1": 224, "moco_v2": 224, "simclr": 224, "cifar": 32, "imagenette_pool": 224}
SMALL = ("moco_v2", "cifar", "imagenette_pool")  # the others differ from them in bounds alone
TWINS = ("moco_v2", "cifar")  # where the own operations are shown to pay; at small the first alone
SHARE_PLAN = Plan(steps=10, rounds=10)
Costs = Mapping[str, Sequence[float]]


def bench_augment(settings: Settings, report: Report) -> None:
    """Images per second, both views of each, of every policy."""
    device = resolve_device(report.device)
    on_gpu = device.type == "cuda"
    small, large = (256, 256) if on_gpu else (16, 64)
    count = settings.pick(small, large)
    report.subject = f"both views of {count} crops of 224 (cifar: {4 * count} of 32), random pixels"
    report.peers = ("kornia", "torchvision", "numba")
    plan, timer = (GPU_PLAN, cuda_timer) if on_gpu else (CPU_PLAN, host_timer())
    everything = on_gpu or settings.scale == "full"
    twins = TWINS if everything else TWINS[:1]
    for policy in VIEW_SIZES if everything else SMALL:
        size = VIEW_SIZES[policy]
        images = 4 * count if size == 32 else count
        works = _contenders(policy, device, images, size, twins)
        with torch.no_grad():
            seconds = measure_blocks(works, OURS, plan, timer)
        costs = {name: [each / images for each in found] for name, found in seconds.items()}
        goals = GOALS if on_gpu and policy == "moco_v2" else {}
        report.rows += _rows(policy, costs, copy_rate(device) / (2 * 3 * size**2 * (1 + 4)), goals)
    if on_gpu:
        report.rows.append(share_row(device, count))


def _contenders(
    policy: str, device: torch.device, count: int, size: int, twins: Collection[str]
) -> dict[str, Work]:
    """All ways to make the views; of a pool there is none but ours."""
    compiled, _ = resolve_compile(Compile.auto, device)
    crops = random_images((count, 2, size, size, 3), device)
    key = torch.from_numpy(draw_keys(0, 0, np.arange(count))).to(device)
    recipe = POLICIES[policy]
    ways = {OURS: subjects.ours(recipe, device, compiled=compiled and not recipe.pool)}
    if not recipe.pool:
        ways[KORNIA] = subjects.kornia_classes(recipe)
        ways[TORCHVISION] = subjects.torchvision_v2(recipe)
    if policy in twins:
        ways[FUNCTIONS] = subjects.by_kornia(recipe, device, compiled=compiled)
        ways[PLAIN] = subjects.by_planes(recipe, device, compiled=compiled)
    return {name: partial(views, crops, key) for name, views in ways.items()}


def _rows(policy: str, costs: Costs, most: float, goals: Mapping[str, str]) -> list[Row]:
    """The rows of a policy; `most` is the images a second that memory would allow."""

    def row(name: str, peer: str = "", note: str = "") -> Row:
        value = summarize([1 / cost for cost in costs[name]])
        return Row(
            what=f"{policy}, {name}",
            unit="images/s",
            value=value,
            ratio=beside(costs, name, peer, OURS),
            limit=COPY,
            share_of_limit=value.median / most,
            goal=goals.get(peer, ""),
            note=note,
        )

    peers = [name for name in costs if name not in (OURS, again(OURS))]
    ours = [row(OURS, peer) for peer in peers or ("",)]
    return [*ours, *map(row, peers), row(again(OURS), OURS, "A/A: the noise floor")]


def share_row(
    device: torch.device,
    count: int,
    encoder: str = "resnet50",
    size: int = 224,
    plan: Plan = SHARE_PLAN,
    *,
    compiled: bool = True,
) -> Row:
    """The augmentation of both views as a share of a training step that includes it."""
    policy = POLICIES["moco_v2"]
    step = feed_step(ModelConfig(encoder=encoder), policy, device)
    crops = random_images((count, 2, size, size, 3), device)
    key = torch.from_numpy(draw_keys(0, 0, np.arange(count))).to(device)
    batch = Batch(crops, torch.zeros(count, 2, 4), key, key, key, data_wait_seconds=0.0)
    views = torch.no_grad()(subjects.ours(policy, device, compiled=compiled))
    works: dict[str, Work] = {
        OURS: partial(views, crops, key),
        STEP: partial(step, batch, LEARNING_RATE),
    }
    timer = cuda_timer if device.type == "cuda" else host_timer()
    seconds = measure_blocks(works, OURS, plan, timer)
    shares = [100 * a / b for a, b in zip(seconds[OURS], seconds[STEP], strict=True)]
    return Row(
        what=f"moco_v2, both views within a step of {encoder}, bf16",
        unit="% of the step",
        value=summarize(shares),
        goal=GOALS[STEP],
    )
