"""Decoders of JPEGs as Python offers them, on all CPUs; each gives a stream of RGB images."""

import io
from collections.abc import Iterator

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.pictures import read_blobs
from benchmarks.rates import on_all_cpus


def turbo(source: str) -> Iterator[int]:
    """libjpeg-turbo with nothing around it: what bounds every decoder on a CPU."""
    blobs = read_blobs(source)
    return on_all_cpus(
        len(blobs), lambda sample: simplejpeg.decode_jpeg(blobs[sample], colorspace="RGB")
    )


def pillow(source: str) -> Iterator[int]:
    """Pillow, as torchvision's datasets read images."""
    blobs = read_blobs(source)

    def work(sample: int) -> None:
        Image.open(io.BytesIO(blobs[sample])).convert("RGB")

    return on_all_cpus(len(blobs), work)


def torchvision(source: str) -> Iterator[int]:
    """torchvision.io, to tensors of ``(3, H, W)``."""
    torch.set_num_threads(1)
    blobs = [torch.from_numpy(np.frombuffer(blob, np.uint8).copy()) for blob in read_blobs(source)]
    return on_all_cpus(len(blobs), lambda sample: decode_jpeg(blobs[sample], ImageReadMode.RGB))
