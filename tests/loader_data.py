"""Small .beton files of smooth pictures, for the tests of the loaders."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import ConvertConfig, Encoding, convert
from fastmoco.pipelines import small_rows
from fastmoco.pipelines.contract import LoaderSpec
from fastmoco.pipelines.policies import Policy

SIZES = [(48, 48), (60, 41), (37, 64), (96, 72)]
"""Height and width, in turn."""


def picture(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Smooth in space, as photographs are: what differs between resizers is then the resizer."""
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_beton(folder: Path, num_samples: int, *, encoding: Encoding = Encoding.jpeg) -> BetonFile:
    """A file of pictures in two classes, in sizes of `SIZES`."""
    rng = np.random.default_rng(0)
    for i in range(num_samples):
        path = folder / "images" / f"class{i % 2}" / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(rng, *SIZES[i % len(SIZES)]).save(path, quality=95)
    destination = folder / "set.beton"
    convert(str(folder / "images"), destination, ConvertConfig(encoding=encoding, workers=1))
    return BetonFile.open(destination)


def training(**values: int) -> LoaderSpec:
    """Two random crops of 32 pixels."""
    return LoaderSpec(view_size=32, policy=Policy(), **values)


def evaluation(**values: int) -> LoaderSpec:
    """One central crop of 32 pixels."""
    return LoaderSpec(view_size=32, policy=None, **values)


def loader_threads() -> list[threading.Thread]:
    """Threads of loaders that are alive now."""
    return [t for t in threading.enumerate() if t.name.startswith("fastmoco-loader")]


def use_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the beton loader call `Dataset.decode` for small images, too."""
    monkeypatch.setattr(small_rows, "stored_rows", lambda _: None)
