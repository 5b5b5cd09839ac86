"""Make samples for a detector from scenes.

Every draw (order, scale, flip, crop) is a pure function of seed, epoch and image, as in the rest of
the data path, so resuming needs no generator state.
"""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmoco.data.images import MAX_SIDE, load_image
from fastmoco.data.jpeg_markers import ImageError
from fastmoco.detection.annotations import AnnotationError, Instance, Scene, SceneSet, boxes_of
from fastmoco.detection.masks import UNKNOWN, instance_mask, read_class_map
from fastmoco.detection.settings import DetectConfig, DetectionTask
from fastmoco.draws.device import uniform
from fastmoco.draws.host import draw_keys, epoch_order
from fastmoco.draws.streams import INT64, Draw
from fastmoco.ranks import ALONE, Ranks

BATCHES_AHEAD = 2


@dataclass(slots=True)
class Sample:
    """One image with its target."""

    image: Tensor
    """``(3, h, w)`` uint8 RGB."""
    target: dict[str, Tensor]
    """Target in the format of torchvision's detectors; segment: ``classes``, ``(h, w)`` int64."""


def read_image(scene: Scene) -> Tensor:
    """Read an image at its original size, ``(3, height, width)`` uint8 RGB.

    Raises:
        AnnotationError: If it cannot be decoded, or its size differs from that in the annotation.
    """
    try:
        pixels = load_image(scene.image.read_bytes(), MAX_SIDE)
    except ImageError as error:
        raise AnnotationError(f"{scene.image} {error}") from error
    if pixels.shape[:2] != (scene.height, scene.width):
        raise AnnotationError(
            f"{scene.image} has {pixels.shape[1]} x {pixels.shape[0]} pixels, {scene.source} says "
            f"{scene.width} x {scene.height}; correct one of them"
        )
    writable = np.require(pixels, requirements=["C", "W"])
    return torch.from_numpy(writable).permute(2, 0, 1)


def short_side_size(height: int, width: int, *, short: int, longest: int) -> tuple[int, int]:
    """Height and width with a short side of `short`, less if the long side would pass `longest`."""
    factor = min(short / min(height, width), longest / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 image ``(3, h, w)`` resized to ``(height, width)``, bilinear and antialiased."""
    if image.shape[1:] == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def training_sample(scene: Scene, data: SceneSet, key: Tensor, cfg: DetectConfig) -> Sample:
    """Make a training sample: scaled, randomly flipped, for segment also cropped.

    Args:
        scene: The image.
        data: Dataset of the image.
        key: Key of all draws of this image in this epoch, ``(1,)`` int64.
        cfg: Task and sizes.
    """
    flip = uniform(key, Draw.FLIP, 0).item() < 0.5
    scale = uniform(key, Draw.CROP_AREA, 0).item()  # a draw of a size, as in pretraining
    if cfg.task is DetectionTask.segment:
        return _map_sample(scene, data, key, cfg, flip=flip, scale=scale)
    short = cfg.train_sizes[int(scale * len(cfg.train_sizes))]
    size = short_side_size(scene.height, scene.width, short=short, longest=cfg.max_size)
    image = resized(read_image(scene), size)
    target = box_target(scene, size)
    if cfg.task is DetectionTask.masks:
        masks = np.stack([instance_mask(i, scene) for i in scene.instances])
        target["masks"] = F.interpolate(torch.from_numpy(masks)[:, None], size)[:, 0]
    if cfg.task is DetectionTask.keypoints:
        target["keypoints"] = scaled_keypoints(scene, size)
    if flip:
        image, target = flipped(image, target, data.keypoint_names)
    return Sample(image, target)


def box_target(scene: Scene, size: tuple[int, int]) -> dict[str, Tensor]:
    """Boxes and labels of a scene, with its image resized to ``(height, width)``."""
    scale = torch.tensor([size[1] / scene.width, size[0] / scene.height]).repeat(2)
    return {
        "boxes": torch.from_numpy(boxes_of(scene.instances)) * scale,
        "labels": torch.tensor([i.label for i in scene.instances], dtype=torch.int64),
    }


def scaled_keypoints(scene: Scene, size: tuple[int, int]) -> Tensor:
    """Keypoints ``(n, K, 3)`` of a scene, with its image resized to ``(height, width)``."""
    scale = torch.tensor([size[1] / scene.width, size[0] / scene.height, 1.0])
    return torch.tensor([i.keypoints for i in scene.instances], dtype=torch.float32) * scale


def flipped(
    image: Tensor, target: dict[str, Tensor], keypoint_names: Sequence[str] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """Flip an image and its target horizontally; ``left_*`` keypoints become ``right_*``."""
    width = image.shape[-1]
    mirrored = {**target, "boxes": target["boxes"].clone()}
    mirrored["boxes"][:, [0, 2]] = width - target["boxes"][:, [2, 0]]
    if "masks" in target:
        mirrored["masks"] = target["masks"].flip(-1)
    if "keypoints" in target:
        points = target["keypoints"][:, _mirror_order(tuple(keypoint_names))]
        points[..., 0] = torch.where(points[..., 2] > 0, width - points[..., 0], 0.0)
        mirrored["keypoints"] = points
    return image.flip(-1), mirrored


@lru_cache(maxsize=4)
def _mirror_order(names: tuple[str, ...]) -> list[int]:
    other = {"left": "right", "right": "left"}
    order = []
    for index, name in enumerate(names):
        side, separator, rest = name.partition("_")
        twin = f"{other.get(side, side)}{separator}{rest}"
        order.append(names.index(twin) if twin in names else index)
    return order


def _map_sample(
    scene: Scene, data: SceneSet, key: Tensor, cfg: DetectConfig, *, flip: bool, scale: float
) -> Sample:
    """Scale, pad to the crop size (black, of unknown class), crop, and flip if `flip`."""
    low, high = cfg.scale_range
    factor, side = low + (high - low) * scale, cfg.crop_size
    size = (max(1, round(scene.height * factor)), max(1, round(scene.width * factor)))
    image = resized(read_image(scene), size)
    assert scene.class_map is not None
    classes = torch.from_numpy(read_class_map(scene.class_map, scene, data.num_classes))
    classes = F.interpolate(classes[None, None], size)[0, 0]
    padding = (0, max(0, side - size[1]), 0, max(0, side - size[0]))
    image, classes = F.pad(image, padding), F.pad(classes, padding, value=UNKNOWN)
    top = int(uniform(key, Draw.CROP_TOP, 0).item() * (image.shape[1] - side + 1))
    left = int(uniform(key, Draw.CROP_LEFT, 0).item() * (image.shape[2] - side + 1))
    image = image[:, top : top + side, left : left + side]
    classes = classes[top : top + side, left : left + side].long()
    if flip:
        image, classes = image.flip(-1), classes.flip(-1)
    return Sample(image, {"classes": classes})


def step_places(
    step: int, *, seed: int, num_images: int, global_batch_size: int, ranks: Ranks = ALONE
) -> list[tuple[int, int]]:
    """Epoch and image index of each sample of a step on this rank.

    The stream of images is a sequence of shuffled passes over the set; a batch may span two passes.
    """
    count = global_batch_size // ranks.world_size
    first = step * global_batch_size + ranks.rank * count
    positions = [divmod(position, num_images) for position in range(first, first + count)]
    return [(epoch, int(_order(seed, epoch, num_images)[index])) for epoch, index in positions]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_images: int) -> INT64:
    return epoch_order(seed, epoch, num_images)


def training_batches(
    data: SceneSet, cfg: DetectConfig, *, start: int, stop: int, num_threads: int, ranks: Ranks
) -> Generator[list[Sample], None, None]:
    """Batches of the steps ``start`` to ``stop - 1``, read ahead by threads.

    Raises:
        AnnotationError: If an image or a mask cannot be read.
    """
    waiting: deque[list[Future[Sample]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for step in range(start, stop):
                waiting.append(_submit(pool, data, cfg, step, ranks))
                if len(waiting) > BATCHES_AHEAD:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _submit(
    pool: ThreadPoolExecutor, data: SceneSet, cfg: DetectConfig, step: int, ranks: Ranks
) -> list[Future[Sample]]:
    samples = step_places(
        step,
        seed=cfg.seed,
        num_images=len(data.scenes),
        global_batch_size=cfg.global_batch_size,
        ranks=ranks,
    )
    futures = []
    for epoch, index in samples:
        key = torch.from_numpy(draw_keys(cfg.seed, epoch, np.array([index])))
        futures.append(pool.submit(training_sample, data.scenes[index], data, key, cfg))
    return futures


def ignored_flags(instances: Sequence[Instance]) -> Tensor:
    """1 for each object that evaluation ignores, else 0, ``(n,)`` int64."""
    return torch.tensor([int(i.ignored) for i in instances], dtype=torch.int64)
