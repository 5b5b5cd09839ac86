"""The path of a training run on photographs: a loader, the views on the device, a compiled step.

All loaders feed the same step in one process, in mirrored blocks; while one is measured, the others
have filled their queues and rest. The first steps of a block use what was made ahead and are not
counted.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from benchmarks.gpu.checks import recording
from benchmarks.gpu.job import TOY, Job
from benchmarks.harness import Timer, again, measure_blocks, summarize
from benchmarks.harness import Work as Step
from benchmarks.pictures import write_photographs
from benchmarks.report import Report, Row, absent, beside
from benchmarks.step_subject import LEARNING_RATE, noise_batch, training_step
from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import ConvertConfig, Statistics, convert
from fastmoco.device import peak_memory_bytes, reserved_memory_bytes, synchronize
from fastmoco.moco.settings import MocoConfig, ModelConfig, Stem
from fastmoco.optim.precision import choose_precision
from fastmoco.pipelines.augment import choose_augmentation
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec, ViewLoader
from fastmoco.pipelines.policies import POLICIES
from fastmoco.train.acceleration import GraphedStep
from fastmoco.train.data_wait import DataWait

OURS, DALI, NO_LOADER = "beton", "dali", "no loader: the same batch again"
POLICY = POLICIES["moco_v2"]
SETTLE_STEPS = 6
"""Steps before a block that use up what a loader made ahead: `LoaderSpec.prefetch_batches` and
what it hands over."""
WAIT_GOAL = "< 2%"


class Feed:
    """A loader and the step that it feeds; a call is one step.

    Attributes:
        waits: Of each block, the share of its time for which the device waited for data.
        loader: The loader.
    """

    def __init__(self, step: GraphedStep, loader: ViewLoader, device: torch.device) -> None:
        """Count the waits for a loader."""
        self.waits: list[float] = []
        self.loader = loader
        self._step, self._wait, self._device = step, DataWait(device), device

    def __call__(self) -> None:
        """Take the next batch, and learn."""
        self._step(self._wait.next(self.loader), LEARNING_RATE)

    def block(self, timer: Timer, steps: int) -> float:
        """Seconds of a block of steps, without those that use what was made ahead."""
        for _ in range(SETTLE_STEPS if steps > 1 else 1):
            self()
        synchronize(self._device)
        self._wait.restart()
        seconds = timer(self, steps)
        synchronize(self._device)
        self.waits.append(100 * self._wait.seconds() / seconds)
        return seconds


def feed_photographs(job: Job, report: Report) -> None:
    """ResNet-50 at 224 in 16 bits, its views on the device, fed by `beton` and by `dali`."""
    count = job.pick(8, 256)
    path = _file(job.scratch, job.pick(16, 1024))
    size = job.pick(32, 224)
    views, _ = choose_augmentation(job.device)
    report.subject = (
        f"photographs of 500 x 375, ResNet-50 at {size}, batch {count}, compiled, views on the "
        f"device by {views.value}"
    )
    report.peers = ("nvidia-dali-cuda130", "kornia", "simplejpeg")
    step, reasons = _step(job), {}
    with ExitStack() as stack:
        beton = stack.enter_context(BetonFile.open(path))
        feeds, held = {}, {}
        for name in (OURS, DALI):
            before = _used_bytes(job.device)
            try:
                loader = stack.enter_context(closing(_loader(beton, name, count, size, job)))
                feeds[name] = Feed(step, loader, job.device)
                feeds[name]()
            except (ImportError, ValueError, RuntimeError) as error:
                reasons[name] = " ".join(str(error).split())
                feeds.pop(name, None)
            held[name] = _used_bytes(job.device) - before
        batch = noise_batch(count, size, job.device)
        works: dict[str, Step] = {**feeds, NO_LOADER: lambda: step(batch, LEARNING_RATE)}
        assert OURS in feeds, reasons
        seconds = measure_blocks(works, OURS, job.plan(20), _timer(job))
    report.rows = [absent(name, "images/s", reason) for name, reason in reasons.items()]
    for name in seconds:
        report.rows.append(_rate_row(name, count, seconds, feeds))
    for name, one in feeds.items():
        report.rows += _loader_rows(name, one, held[name], job)
    report.rows += _memory_rows(job)
    assert DALI not in reasons or not job.on_gpu, f"dali: {reasons[DALI]}"


def _file(scratch: Path, count: int) -> Path:
    """A dataset file of photographs, as many as are given."""
    path = scratch / "photographs.beton"
    write_photographs(scratch / "photographs", count)
    convert(str(scratch / "photographs"), path, ConvertConfig(statistics=Statistics.none))
    return path


def _step(job: Job) -> GraphedStep:
    """The step as ``fastmoco train`` makes it, a CUDA graph on a GPU."""
    encoder = "resnet18" if job.scale == TOY else "resnet50"
    step = training_step(
        ModelConfig(encoder=encoder, stem=Stem.imagenet, width=job.pick(4, 64)),
        MocoConfig(queue_size=job.pick(64, 65_536)),
        policy=POLICY,
        device=job.device,
        precision=choose_precision(job.device)[0],
        compiled=job.compiled,
    )
    return GraphedStep(step, recording(job.device), required=True)


def _loader(beton: BetonFile, name: str, count: int, size: int, job: Job) -> ViewLoader:
    plan = EpochPlan(seed=0, epoch=0, num_samples=len(beton), global_batch_size=count)
    spec = LoaderSpec(view_size=size, policy=POLICY, num_threads=job.pick(1, 0))
    return build_loader(beton, plan, spec=spec, stop_epoch=100_000, device=job.device, name=name)


def _timer(job: Job) -> Timer:
    def seconds(work: Step, steps: int) -> float:
        return work.block(job.timer, steps) if isinstance(work, Feed) else job.timer(work, steps)

    return seconds


def _rate_row(
    name: str, count: int, seconds: Mapping[str, Sequence[float]], feeds: Mapping[str, Feed]
) -> Row:
    is_fed = name in feeds
    return Row(
        what=name,
        unit="images/s",
        value=summarize([count / value for value in seconds[name]]),
        ratio=beside(seconds, name, NO_LOADER if is_fed else "", OURS),
        decode_device=feeds[name].loader.decode_device if is_fed else "none",
        note="A/A: the noise floor" if name == again(OURS) else "",
    )


def _loader_rows(name: str, feed: Feed, held: int, job: Job) -> list[Row]:
    """The wait for a loader, and the device memory that came with it."""
    first, *blocks = feed.waits
    wait = Row(
        what=f"{name}, waiting for data",
        unit="% of the time",
        value=summarize(blocks or [first]),
        goal=WAIT_GOAL,
        decode_device=feed.loader.decode_device,
    )
    if not job.on_gpu:
        return [wait]
    memory = Row(
        what=f"{name}, device memory with its first step",
        unit="GB",
        value=summarize([held / 1e9]),
        note="the first one holds the step, too",
    )
    return [wait, memory]


def _memory_rows(job: Job) -> list[Row]:
    peaks = {"allocated": peak_memory_bytes(job.device)}
    if (reserved := reserved_memory_bytes(job.device)) is not None:
        peaks["reserved"] = reserved
    return [
        Row(what=f"most memory, {name}", unit="GB", value=summarize([peak / 1e9]))
        for name, peak in peaks.items()
    ]


def _used_bytes(device: torch.device) -> int:
    """Memory of the GPU that is in use by anyone, other libraries than torch included."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free)
