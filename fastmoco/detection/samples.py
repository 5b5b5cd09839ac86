"""From a scene to what a detector learns from or is tested on.

Every draw (order, scale, flip, crop) is a pure function of seed, epoch and image, as in the rest of
the data path, so resuming needs no generator's state.
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
    """As torchvision's detectors take it; segment: ``classes``, ``(h, w)`` int64."""


def read_image(scene: Scene) -> Tensor:
    """An image as it is, ``(3, height, width)`` uint8 RGB.

    Raises:
        AnnotationError: If it cannot be decoded, or is of another size than its annotation says.
    """
    try:
        pixels = load_image(scene.image.read_bytes(), MAX_SIDE)
    except ImageError as error:
        raise AnnotationError(f"{scene.image} {error}") from error
    if pixels.shape[:2] != (scene.height, scene.width):
        raise AnnotationError(
            f"{scene.image} has {pixels.shape[1]} x {pixels.shape[0]} pixels, {scene.source} says "
            f"{scene.width} x {scene.height}; mend one of them"
        )
    writable = np.require(pixels, requirements=["C", "W"])
    return torch.from_numpy(writable).permute(2, 0, 1)


def short_side_size(height: int, width: int, *, short: int, longest: int) -> tuple[int, int]:
    """Height and width with the short side `short`, or less where the long one would pass."""
    factor = min(short / min(height, width), longest / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 image ``(3, h, w)`` of another size, bilinear and antialiased."""
    if image.shape[1:] == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def training_sample(scene: Scene, data: SceneSet, key: Tensor, cfg: DetectConfig) -> Sample:
    """An image for training: scaled, flipped or not, for segment also cropped.

    Args:
        scene: The image.
        data: Its set.
        key: ``(1,)`` int64: all draws of this image in this epoch.
        cfg: DetectionTask and sizes.
    """
    flip = uniform(key, Draw.FLIP, 0).item() < 0.5
    scale = uniform(key, Draw.CROP_AREA, 0).item()  # a draw of size, as there
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
    """Boxes and labels of a scene on its image resized to ``(height, width)``."""
    scale = torch.tensor([size[1] / scene.width, size[0] / scene.height]).repeat(2)
    return {
        "boxes": torch.from_numpy(boxes_of(scene.instances)) * scale,
        "labels": torch.tensor([i.label for i in scene.instances], dtype=torch.int64),
    }


def scaled_keypoints(scene: Scene, size: tuple[int, int]) -> Tensor:
    """Keypoints ``(n, K, 3)`` of a scene on its image resized to ``(height, width)``."""
    scale = torch.tensor([size[1] / scene.width, size[0] / scene.height, 1.0])
    return torch.tensor([i.keypoints for i in scene.instances], dtype=torch.float32) * scale


def flipped(
    image: Tensor, target: dict[str, Tensor], keypoint_names: Sequence[str] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """An image and its target as in a mirror; ``left_*`` keypoints become ``right_*``."""
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
    for place, name in enumerate(names):
        side, separator, rest = name.partition("_")
        twin = f"{other.get(side, side)}{separator}{rest}"
        order.append(names.index(twin) if twin in names else place)
    return order


def _map_sample(
    scene: Scene, data: SceneSet, key: Tensor, cfg: DetectConfig, *, flip: bool, scale: float
) -> Sample:
    """Scaled, padded to the crop (black, of unknown class), cropped, flipped or not."""
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
    """Epoch and image of each sample of a step, of this rank's share.

    The stream of images is one shuffled pass over the set after the other; a batch may lie across
    two of them.
    """
    share = global_batch_size // ranks.world_size
    first = step * global_batch_size + ranks.rank * share
    places = []
    for position in range(first, first + share):
        epoch, place = divmod(position, num_images)
        places.append((epoch, int(_order(seed, epoch, num_images)[place])))
    return places


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_images: int) -> INT64:
    return epoch_order(seed, epoch, num_images)


def training_batches(
    data: SceneSet, cfg: DetectConfig, *, start: int, stop: int, num_threads: int, ranks: Ranks
) -> Generator[list[Sample], None, None]:
    """The batches of the steps ``start`` to ``stop - 1``, read ahead by threads.

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
    places = step_places(
        step,
        seed=cfg.seed,
        num_images=len(data.scenes),
        global_batch_size=cfg.global_batch_size,
        ranks=ranks,
    )
    futures = []
    for epoch, place in places:
        key = torch.from_numpy(draw_keys(cfg.seed, epoch, np.array([place])))
        futures.append(pool.submit(training_sample, data.scenes[place], data, key, cfg))
    return futures


def ignored_flags(instances: Sequence[Instance]) -> Tensor:
    """Which objects evaluation ignores, ``(n,)`` int64 of 0 and 1."""
    return torch.tensor([int(i.ignored) for i in instances], dtype=torch.int64)
