"""NVIDIA DALI: decoding alone, and two views of each image laid out as solo-learn does it.

https://github.com/vturrisi/solo-learn, its DALI data module, described and written anew: DALI's
file reader with a shuffle after each epoch, one decode of an image, then for each view a random
resized crop (bicubic), color jitter as one linear map of colors, grayscale and blur, which are
computed for all images and kept for some, and at last the flip with the normalization. MoCo v2's
parameters.
"""

import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLUR_WINDOW = 23

dali: Any = import_module("nvidia.dali")  # Any: its types come and go with the package
fn: Any = import_module("nvidia.dali.fn")
types: Any = import_module("nvidia.dali.types")


def decode(source: str) -> Iterator[int]:
    """Its decoder alone, RGB: a stream."""
    pipeline = _pipeline("cpu")
    with pipeline:
        encoded, _ = _reader(source)
        pipeline.set_outputs(fn.decoders.image(encoded, device="cpu", output_type=types.RGB))
    yield from _runs(pipeline)


def views(source: str, view_size: int, device: str = "cpu") -> Iterator[int]:
    """Two whole views of each image, ``(N, 3, H, W)`` float32: a stream."""
    yield from _runs(two_views(source, view_size, device))


def two_views(source: str, view_size: int, device: str, batch_size: int = BATCH) -> Any:
    """A pipeline whose outputs are both views and the labels.

    Args:
        source: Class folders of JPEGs.
        view_size: Side of the views, pixels.
        device: ``cpu`` or ``gpu``.
        batch_size: Images.
    """
    pipeline = _pipeline(device, batch_size)
    with pipeline:
        encoded, labels = _reader(source)
        decoder = "mixed" if device == "gpu" else "cpu"
        images = fn.decoders.image(encoded, device=decoder, output_type=types.RGB)
        query, key = (_view(images, view_size, device) for _ in range(2))
        pipeline.set_outputs(query, key, labels)
    return pipeline


def _pipeline(device: str, batch_size: int = BATCH) -> Any:
    return dali.Pipeline(
        batch_size=batch_size,
        num_threads=len(os.sched_getaffinity(0)),
        device_id=0 if device == "gpu" else None,
        seed=12,
    )


def _reader(source: str) -> tuple[Any, Any]:
    encoded, labels = fn.readers.file(file_root=source, shuffle_after_epoch=True)
    return encoded, labels


def _view(images: Any, view_size: int, device: str) -> Any:
    crops = fn.random_resized_crop(
        images,
        device=device,
        size=view_size,
        random_area=(0.2, 1.0),
        interp_type=types.INTERP_CUBIC,
    )
    factors = {
        name: fn.random.uniform(range=(0.6, 1.4))
        for name in ("brightness", "contrast", "saturation")
    }
    hue = fn.random.uniform(range=(-36.0, 36.0))  # degrees
    crops = _some(0.8, fn.color_twist(crops, device=device, hue=hue, **factors), crops)
    gray = fn.color_space_conversion(
        crops, device=device, image_type=types.RGB, output_type=types.GRAY
    )
    crops = _some(0.2, fn.cat(gray, gray, gray, axis=2, device=device), crops)
    sigma = fn.random.uniform(range=(0.1, 2.0))
    blurred = fn.gaussian_blur(crops, device=device, sigma=sigma, window_size=BLUR_WINDOW)
    crops = _some(0.5, blurred, crops)
    return fn.crop_mirror_normalize(
        crops,
        device=device,
        dtype=types.FLOAT,
        output_layout=types.NCHW,
        mean=[255 * value for value in MEAN],
        std=[255 * value for value in STD],
        mirror=fn.random.coin_flip(probability=0.5),
    )


def _some(probability: float, changed: Any, images: Any) -> Any:
    """Some of the images changed: both are computed, as `p` of a batch does it."""
    chosen = fn.cast(fn.random.coin_flip(probability=probability), dtype=types.BOOL)
    return chosen * changed + (chosen ^ True) * images


def _runs(pipeline: Any) -> Iterator[int]:
    pipeline.build()
    while True:
        outputs = pipeline.run()
        yield len(outputs[0])
