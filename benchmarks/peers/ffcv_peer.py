"""FFCV 1.0.2: its DatasetWriter and its Loader, as its ImageNet example uses them.

https://github.com/libffcv/ffcv-imagenet, write_imagenet.py: images of class folders by Pillow,
quality 90, chunks of 100, as many workers as there are CPUs. Imports are not timed.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
from ffcv.libffcv import imdecode
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from ffcv.transforms import ToTensor
from ffcv.writer import DatasetWriter
from PIL import Image

from benchmarks.memory import own_peak_bytes, reset_own_peak
from benchmarks.pictures import read_blobs
from benchmarks.rates import EPOCH_IMAGES, on_all_cpus


class ClassFolders:
    """What torchvision's ImageFolder does, without the seconds and the memory of its import."""

    def __init__(self, root: str) -> None:
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        self._samples = [
            (os.path.join(folder, name), label)
            for label, class_name in enumerate(classes)
            for folder, _, names in sorted(os.walk(os.path.join(root, class_name)))
            for name in sorted(names)
        ]

    def __len__(self) -> int:
        """The number of images."""
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """An image, decoded, and its class."""
        path, label = self._samples[index]
        with open(path, "rb") as file:
            return Image.open(file).convert("RGB"), label


def write_folder(
    source: str, destination: str, write_mode: str, max_resolution: int | None
) -> dict[str, float]:
    """Converts a folder, until the file is on the disk.

    Args:
        source: Class folders of images.
        destination: The file to make.
        write_mode: ``jpg`` or ``raw``.
        max_resolution: Longest side; larger images are shrunk to it.

    Returns:
        ``seconds`` and the file's ``num_bytes``.
    """
    fields = {
        "image": RGBImageField(
            write_mode=write_mode, max_resolution=max_resolution, jpeg_quality=90
        ),
        "label": IntField(),
    }
    start = time.perf_counter()
    dataset = ClassFolders(source)  # listing the folder is a part of ours, too
    writer = DatasetWriter(destination, fields, num_workers=len(os.sched_getaffinity(0)))
    writer.from_indexed_dataset(dataset, chunksize=100)
    _sync(destination)  # the same finish line: FFCV itself leaves the file to the page cache
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "num_bytes": Path(destination).stat().st_size}


def read_crops(path: str, view_size: int, threads: int = 0) -> Iterator[float]:
    """Random crops, each from a decode of its own; two of them count as one image: a stream.

    Samples come again within an epoch, so that it has `EPOCH_IMAGES`.

    Args:
        path: A file, also one of ours.
        view_size: Side of the crops in pixels.
        threads: Of the loader; 0: one for each CPU.
    """
    decoder = RandomResizedCropRGBImageDecoder((view_size, view_size), scale=(0.2, 1.0))
    samples = np.arange(EPOCH_IMAGES, dtype=np.uint64) % Reader(path).num_samples
    loader = Loader(
        path,
        batch_size=64,
        num_workers=threads or len(os.sched_getaffinity(0)),
        order=OrderOption.RANDOM,
        os_cache=True,
        indices=samples,
        drop_last=True,
        pipelines={"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )
    while True:
        for crops, _ in loader:
            yield len(crops) / 2


def decode(source: str) -> Iterator[int]:
    """FFCV's decoder, the fast inverse DCT of libjpeg-turbo, on all CPUs: a stream."""
    blobs = [np.frombuffer(blob, np.uint8) for blob in read_blobs(source)]
    shapes = [simplejpeg.decode_jpeg_header(blob.tobytes())[:2] for blob in blobs]

    def work(sample: int) -> None:
        height, width = shapes[sample]
        pixels = np.empty((height, width, 3), np.uint8)
        imdecode(blobs[sample], pixels, height, width, crop_height=height, crop_width=width)

    return on_all_cpus(len(blobs), work)


def open_file(path: str) -> dict[str, float]:
    """Makes a Loader; gives ``seconds`` and by how much that raised the resident peak.

    No batch is asked for, so that nothing is compiled by Numba but what the constructor compiles.
    """
    before = reset_own_peak()
    start = time.perf_counter()
    loader = Loader(
        path,
        batch_size=256,
        num_workers=len(os.sched_getaffinity(0)),
        order=OrderOption.SEQUENTIAL,
        os_cache=True,
        pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
    )
    seconds = time.perf_counter() - start
    growth = own_peak_bytes() - before
    return {"seconds": seconds, "growth_bytes": growth, "count": len(loader.indices)}


def _sync(path: str) -> None:
    for place in (path, os.path.dirname(path)):
        descriptor = os.open(place, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
