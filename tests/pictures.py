"""Small images with structure for the tests of dataset files, made from a seed."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def picture(seed: int, height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    """A smooth color picture, ``(H, W, 3)`` uint8: JPEG keeps it within a few levels."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: NDArray[np.uint8], image_format: str = "JPEG", **options: object) -> bytes:
    """An image file's bytes, as Pillow writes them."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **options)
    return file.getvalue()


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The upright picture of stored pixels, by the table of EXIF 2.32, section 4.6.4 A."""
    upright = pixels.transpose(1, 0, 2) if orientation in (5, 6, 7, 8) else pixels
    if orientation in (2, 3, 6, 7):
        upright = upright[:, ::-1]
    return upright[::-1] if orientation in (3, 4, 7, 8) else upright


def write_class_folders(root: Path, classes: int = 3, per_class: int = 4) -> None:
    """JPEG files of different sizes at ``ROOT/class_0/0.jpg`` and so on."""
    for label in range(classes):
        folder = root / f"class_{label}"
        folder.mkdir(parents=True)
        for index in range(per_class):
            pixels = picture(10 * label + index, 30 + 2 * label, 40 + 3 * index)
            (folder / f"{index}.jpg").write_bytes(encoded(pixels, quality=92))
