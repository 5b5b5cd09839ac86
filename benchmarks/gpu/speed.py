"""How fast a card trains: steps beside the official one, views, forms of the loss, precisions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from benchmarks import augment_subjects as subjects
from benchmarks.bench_augment import KORNIA as CLASSES
from benchmarks.bench_augment import share_row
from benchmarks.bench_loss import loss_work
from benchmarks.bench_step import measure_step
from benchmarks.gpu.job import FULL, TOY, Job
from benchmarks.harness import Work, again, measure_blocks, random_images, summarize
from benchmarks.report import Report, Row, beside
from benchmarks.step_contenders import (
    OFFICIAL,
    OURS,
    OURS_EAGER,
    OURS_FP16,
    OURS_FP32,
    OURS_PLAIN,
    OURS_UNGRAPHED,
    TUNED,
    Parts,
    step_builders,
)
from benchmarks.step_subject import noise_batch
from fastmoco.draws.host import draw_keys
from fastmoco.moco.loss_choice import fault_of_fused
from fastmoco.moco.settings import Loss, ModelConfig, Stem
from fastmoco.pipelines.policies import POLICIES

Costs = Mapping[str, Sequence[float]]
PLANES, KORNIA = "planes", "Kornia"
SIZES = {"moco_v2": 224, "cifar": 32}
BESIDE = (OFFICIAL, TUNED, OURS)
PRECISIONS = (OURS, OURS_FP16, OURS_FP32)
MODES = (OURS, OURS_EAGER, OURS_UNGRAPHED, OURS_PLAIN)


def resnet50(job: Job, report: Report) -> None:
    """Our step beside the official one as published, and tuned; at full scale device memory."""
    alone = (OFFICIAL, OURS) if job.on_gpu and job.scale == FULL else ()
    _steps(job, report, "resnet50", BESIDE, 10, alone)


def resnet18(job: Job, report: Report) -> None:
    """The same at 32 pixels, where the launches of kernels take the longest part."""
    _steps(job, report, "resnet18", BESIDE, 50)


def precisions(job: Job, report: Report) -> None:
    """ResNet-18 in float32 (TF32), fp16 and what ``precision=auto`` takes."""
    _steps(job, report, "resnet18", PRECISIONS, 50)


def modes(job: Job, report: Report) -> None:
    """ResNet-18 eager and compiled, with and without a CUDA graph."""
    _steps(job, report, "resnet18", MODES, 50)


def _steps(
    job: Job,
    report: Report,
    encoder: str,
    names: Sequence[str],
    steps: int,
    alone: Sequence[str] = (),
) -> None:
    is_large = encoder == "resnet50"
    stem = Stem.imagenet if is_large else Stem.small
    model = ModelConfig(encoder=encoder, stem=stem, width=job.pick(4, 64))
    parts = Parts(model, job.pick(32, 65_536 if is_large else 4096), job.device)
    batch = noise_batch(
        job.pick(8, 256 if is_large else 512), job.pick(32, 224 if is_large else 32), job.device
    )
    builders = step_builders(parts, batch, everything=True, compiled=job.compiled)
    chosen = {name: build for name, build in builders.items() if name in names}
    plan, under_roof = job.plan(steps), job.scale != TOY
    measure_step(report, parts, batch, plan, chosen, alone, under_roof=under_roof)


def augmentation(job: Job, report: Report) -> None:
    """Both views by our planes and by Kornia, with and without blur; the share of a step.

    `OURS` is what training takes on this device, beside Kornia's classes as their users have them.
    """
    count = job.pick(4, 256)
    report.subject = f"both views of {count} crops of 224 (cifar: {4 * count} of 32), random pixels"
    report.peers = ("kornia", "torchvision")
    shares: dict[str, Sequence[float]] = {}
    for name, size in SIZES.items():
        images = count if size == 224 else 4 * count
        works = _views(job, name, images, job.pick(16, size))
        with torch.no_grad():
            seconds = measure_blocks(works, PLANES, job.plan(20), job.timer)
        report.rows += [_views_row(name, images, seconds, way) for way in seconds]
        blurred = {way: f"{way}, no blur" for way in (PLANES, KORNIA)}
        for way, plain in blurred.items():
            if plain in seconds:
                pairs = zip(seconds[plain], seconds[way], strict=True)
                shares[f"{name}, {way}"] = [100 * (1 - less / more) for less, more in pairs]
    report.rows += [
        Row(what=f"blur in {name}", unit="% of the views", value=summarize(share))
        for name, share in shares.items()
    ]
    encoder, size = ("resnet18", 32) if job.scale == TOY else ("resnet50", 224)
    plan, compiled = job.plan(10), job.compiled
    report.rows.append(share_row(job.device, count, encoder, size, plan, compiled=compiled))


def _views(job: Job, policy: str, count: int, size: int) -> dict[str, Work]:
    """The ways to make the views of a policy, on the same crops."""
    device, recipe = job.device, POLICIES[policy]
    crops = random_images((count, 2, size, size, 3), device)
    key = torch.from_numpy(draw_keys(0, 0, np.arange(count))).to(device)
    recipes = {"": recipe}
    if recipe.blur_probability:
        recipes[", no blur"] = replace(recipe, blur_probability=0.0)
    found: dict[str, Work] = {}
    for suffix, one in recipes.items():
        ways = {PLANES: subjects.by_planes, KORNIA: subjects.by_kornia}
        for way, make in ways.items():
            found[way + suffix] = partial(make(one, device, compiled=job.compiled), crops, key)
    found[OURS] = partial(subjects.ours(recipe, device, compiled=job.compiled), crops, key)
    if policy == "moco_v2":
        found[CLASSES] = partial(subjects.kornia_classes(recipe), crops, key)
    return found


def _views_row(policy: str, count: int, seconds: Costs, way: str) -> Row:
    peer = CLASSES if way == OURS else PLANES
    return Row(
        what=f"{policy}, {way}",
        unit="images/s",
        value=summarize([count / value for value in seconds[way]]),
        ratio=beside(seconds, way, peer if way != PLANES else "", PLANES),
        note="A/A: the noise floor" if way == again(PLANES) else "",
    )


def loss_forms(job: Job, report: Report) -> None:
    """Every form of the loss with its gradient, by C, queries and keys."""
    report.subject = "InfoNCE with gradient, by C"
    cases = [(64, 8, 64)] if job.scale == TOY else [
        (dim, count, keys)
        for count, keys in ((256, 65_536), (512, 4_096))
        for dim in (64, 128, 256, 512)
    ]  # fmt: skip
    for dim, count, keys in cases:
        forms = [Loss.chunked, Loss.plain]
        if job.on_gpu and not fault_of_fused(job.device, dim):
            forms.insert(0, Loss.fused)
        works = {one.value: loss_work(one, count, keys, job.device, dim) for one in forms}
        first = forms[0].value
        seconds = measure_blocks(works, first, job.plan(20), job.timer)
        for name, values in seconds.items():
            report.rows.append(
                Row(
                    what=f"{name}, C = {dim}, N = {count}, K = {keys:,}",
                    unit="ms",
                    value=summarize([1e3 * value for value in values]),
                    ratio=beside(seconds, name, "plain" if name == first else "", first),
                )
            )
