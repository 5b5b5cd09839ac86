"""Settings that fit images and devices, each with its reason.

Pure functions of the number and size of the images and of the kind, memory and number of the
devices: static rules, no measurement, so that the same command does the same arithmetic. They serve
`experiment=own` (`own.py`), the warnings of a run's header (`run_warnings.py`) and `fastmoco info`.
docs/choosing.md has their results as a table. This module imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastmoco.data.dataset import Survey
from fastmoco.errors import UsageError
from fastmoco.moco.resnet_designs import RESNETS
from fastmoco.moco.settings import Mechanism, ModelConfig, Precision, Stem
from fastmoco.train.estimate import MEMORY_SHARE, memory_bytes
from fastmoco.train.machine import Machine
from fastmoco.train.rules import (
    BLUR_FROM,
    FEW_IMAGES,
    FEWEST_BATCHES,
    FEWEST_QUEUE_STEPS,
    LONGEST_QUEUE,
    MANY_IMAGES,
    MEASUREMENTS,
    MOMENTA,
    NEIGHBORS,
    NORM_KEYS,
    QUEUE_AGE,
    QUEUE_SHARE,
    RATES,
    RULES,
    SMALLEST_SET,
    VIEW_SIZES,
    WARMUP_STEPS,
)


@dataclass(frozen=True, slots=True)
class Advice:
    """Values of some options, or none, and the reason."""

    values: Mapping[str, Any]
    """Value of each key, as on the command line."""
    reason: str
    """One line."""

    def __str__(self) -> str:
        """``KEY=VALUE KEY=VALUE: REASON``, or the reason alone."""
        values = " ".join(f"{key}={value}" for key, value in self.values.items())
        return f"{values}: {self.reason}" if values else self.reason


class _Choices:
    """The values chosen so far: what the user gave is kept, and later rules build on it."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.advice: list[Advice] = []
        self.given = given
        self._values = dict(given)

    def add(self, reason: str, values: Mapping[str, Any]) -> None:
        """Choose those values whose keys were not given."""
        new = {key: value for key, value in values.items() if key not in self.given}
        self._values |= new
        if new:
            self.advice.append(Advice(new, reason))

    def get(self, key: str, default: Any = None) -> Any:
        """Value that was given or chosen, or the default."""
        return self._values.get(key, default)

    @property
    def weights(self) -> str:
        """Weights that the user starts from; "" = none."""
        given = str(self.given.get("weights") or "random")
        return "" if given == "random" else given

    @property
    def batch(self) -> int:
        """Images per step, over all devices."""
        return int(self._values["global_batch_size"])


def advise(found: Survey, machine: Machine, given: Mapping[str, Any] | None = None) -> list[Advice]:
    """Choose the settings of a run of `experiment=own`.

    Args:
        found: Number and size of the images, and their classes.
        machine: Devices of the run.
        given: Values that the user gave, by key; they are kept, and the others follow them.

    Returns:
        Values of options that were not given; later ones follow from earlier ones.

    Raises:
        UsageError: If there are fewer than `SMALLEST_SET` images.
    """
    images = found.images
    if images < SMALLEST_SET:
        raise UsageError(
            f"experiment=own needs {SMALLEST_SET} images or more, got {images}; give a larger set "
            "as data.train"
        )
    chosen = _Choices(given or {})
    if images < FEW_IMAGES and not chosen.weights:
        chosen.advice.append(Advice({}, outlook(images)))
    _choose_views(chosen, found.side, machine.kind)
    _choose_encoder(chosen, images, machine.kind)
    _choose_batch(chosen, images, machine)
    _choose_length(chosen, images, machine.kind)
    if found.classes > 1:
        _choose_monitor(chosen, found)
    elif 0 < found.unlabeled < images and "monitor.every_epochs" not in chosen.given:
        chosen.advice.append(Advice({}, f"no kNN while training: {_some_unlabeled(found)}"))
    return chosen.advice


def outlook(images: int) -> str:
    """Say in words what a number of images allows."""
    if images < FEW_IMAGES:
        return (
            f"{images:,} images: too few to learn from nothing; start from published weights, such "
            "as weights=torchvision:resnet18"
        )
    if images < MANY_IMAGES:
        return f"{images:,} images: enough for a small encoder (ResNet-18) from nothing"
    return f"{images:,} images: enough for a ResNet-50 from nothing, on a GPU"


def _some_unlabeled(found: Survey) -> str:
    """Say what prevents a measurement of a set with labels, and what to do."""
    return (
        f"{found.unlabeled:,} of {found.images:,} images have no label; put them into the folders "
        "of their classes, or elsewhere, and convert again"
    )


def _choose_views(chosen: _Choices, side: int, kind: str) -> None:
    allowed = [size for size in VIEW_SIZES if size <= min(side, RULES[kind].largest_view)]
    view = max(allowed, default=VIEW_SIZES[0])
    reason = f"short sides of {side} pixels" + (", on a CPU" if kind == "cpu" else "")
    values: dict[str, Any] = {"pipeline.view_size": view}
    if chosen.given.get("pipeline.view_size", view) < BLUR_FROM and "policy" not in chosen.given:
        values["policy.blur_probability"] = 0.0
    chosen.add(reason, values)


def _choose_encoder(chosen: _Choices, images: int, kind: str) -> None:
    view, on_gpu = chosen.get("pipeline.view_size"), kind == "cuda"
    values: dict[str, Any] = {}
    if chosen.weights:  # the encoder is theirs; only torchvision's names say which one it is
        source, _, name = chosen.weights.partition(":")
        if source == "torchvision":
            values = {"model.encoder": name, "model.width": 64, "model.stem": Stem.imagenet.value}
    elif "model.encoder" not in chosen.given:
        large = on_gpu and images >= MANY_IMAGES and view >= 96
        values["model.encoder"] = "resnet50" if large else "resnet18"
        values["model.width"] = RULES[kind].width
    if not chosen.weights and chosen.get("model.encoder", "resnet18") in RESNETS:
        small = Stem.small if on_gpu and view < BLUR_FROM else Stem.small_stride2
        values["model.stem"] = (Stem.imagenet if view >= 96 else small).value
    device = "a GPU" if on_gpu else "a CPU"
    chosen.add(f"{images:,} images, views of {view} pixels, {device}", values)


def _choose_batch(chosen: _Choices, images: int, machine: Machine) -> None:
    """Choose batch, learning rate, and the groups of batch norm."""
    share, reason = RULES[machine.kind].batch, f"usual on a {machine.kind.upper()}"
    while share > 2 and share * machine.devices * FEWEST_BATCHES > images:
        share, reason = share // 2, f"{FEWEST_BATCHES} steps or more an epoch"
    while share > 2 and not _fits(chosen, share, machine):
        share, reason = share // 2, f"{machine.memory_bytes / 1e9:.0f} GB of memory"
    chosen.add(reason, {"global_batch_size": share * machine.devices})
    batch, name = chosen.batch, chosen.get("optimizer.name", RULES[machine.kind].optimizer)
    values = {"optimizer.name": str(name)}
    if name in RATES:
        rate, at_batch, power = RATES[name]
        values["optimizer.learning_rate"] = f"{rate * (batch / at_batch) ** power:.3g}"
    chosen.add(f"a batch of {batch}", values)
    groups = norm_groups(batch)
    if machine.devices == 1 and groups > 1 and not chosen.given.keys() & NORM_KEYS:
        chosen.add(
            f"{batch // groups} images in each group of batch norm (docs/choosing.md)",
            {"moco.batch_norm_splits": groups},
        )


def _fits(chosen: _Choices, images: int, machine: Machine) -> bool:
    model = ModelConfig(
        encoder=chosen.get("model.encoder", "resnet50"),
        stem=Stem(chosen.get("model.stem", Stem.imagenet)),
        width=chosen.get("model.width", 64),
    )
    precision = Precision(chosen.get("precision", Precision.auto))
    needed = memory_bytes(
        model,
        machine.kind,
        view_size=chosen.get("pipeline.view_size"),
        images=images,
        precision=machine.precision if precision is Precision.auto else precision,
    )
    return (needed or 0) <= MEMORY_SHARE * machine.memory_bytes


def norm_groups(batch: int) -> int:
    """Groups of batch norm for a batch on one device; 1 = it cannot be divided.

    They hold 16 or 32 images, as in experiment=cifar10_cpu and moco_v2_1gpu, or fewer where the
    batch is small, and are a divisor of it.
    """
    wanted = max(min(4, batch // 8), batch // 32, 2)
    divisors = (groups for groups in range(wanted, 1, -1) if batch % groups == 0)
    return next((groups for groups in divisors if batch // groups > 1), 1)


def _choose_length(chosen: _Choices, images: int, kind: str) -> None:
    """Choose K, epochs and what depends on the number of steps."""
    rules, batch = RULES[kind], chosen.batch
    per_epoch = max(1, images // batch)
    epochs = min(max(-(-rules.steps // per_epoch), rules.fewest_epochs), rules.most_epochs)
    values = {"train.epochs": epochs, "optimizer.warmup_epochs": max(1, WARMUP_STEPS // per_epoch)}
    chosen.add(f"{per_epoch:,} steps an epoch", values)
    if chosen.get("moco.mechanism", Mechanism.moco) != Mechanism.moco:
        return
    steps = chosen.get("train.epochs") * per_epoch
    keys = 2 * batch if chosen.get("moco.symmetric") else batch
    queue = queue_size(images, keys, steps)
    chosen.add(
        f"{100 * queue / images:.0f}% of {images:,} images; keys of {queue // keys} steps",
        {"moco.queue_size": queue},
    )
    m = momentum(steps)
    chosen.add(
        f"{steps:,} steps; the key encoder follows within {1 / (1 - m):.0f}", {"moco.momentum": m}
    )


def _choose_monitor(chosen: _Choices, found: Survey) -> None:
    """Measure kNN while training where there are labels: the verdict rests on it."""
    epochs = chosen.get("train.epochs")
    k = next(k for k, fewest in NEIGHBORS if found.images >= fewest)
    values = {"monitor.every_epochs": max(1, epochs // MEASUREMENTS), "monitor.k": k}
    chosen.add(f"{found.classes:,} classes: kNN tells whether they are learned", values)


def queue_size(images: int, keys: int, steps: int) -> int:
    """K for a set of images and a number of steps, in multiples of the keys of a step.

    It is `QUEUE_SHARE` of the images, unless its oldest keys would be older than `QUEUE_AGE` of the
    run; their age is a power of two, so that a larger set never gets a shorter queue by the
    rounding of epochs.
    """
    oldest = max(FEWEST_QUEUE_STEPS, 1 << (int(steps * QUEUE_AGE) | 1).bit_length() - 1)
    wanted = min(images * QUEUE_SHARE, LONGEST_QUEUE, oldest * keys)
    return keys * max(1, int(wanted // keys))


def momentum(steps: int) -> float:
    """Momentum m of the key encoder for a number of steps."""
    return next(m for m, fewest in MOMENTA if steps >= fewest)


def shorter_queue(images: int, keys: int, steps: int) -> str:
    """What to set where a queue holds a set of images, with so many keys of a step."""
    queue = queue_size(images, keys, steps)
    return f"set moco.queue_size={queue}" if queue <= images else "set a smaller global_batch_size"
