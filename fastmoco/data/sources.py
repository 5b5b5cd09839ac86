"""Where images come from: a folder, or ``builtin:textures``.

A source is a list of names and labels and a function that loads one of them by name; the function
travels to worker processes, so it is a `functools.partial` of a module's function.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.jpeg_markers import ImageError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm"}
)
MAX_FILE_BYTES = 1 << 29
_SPLIT_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "test"})

Loaded = bytes | NDArray[np.uint8]


@dataclass(kw_only=True, slots=True)
class SampleSet:
    """The samples of a source, in the order in which they are written.

    Attributes:
        names: Relative name of each, unique.
        labels: Class of each, ``(n,)`` int64; -1 where unlabeled.
        classes: Class names; ``[]`` if unlabeled.
        load: Takes a name, gives an encoded image's bytes or ``(H, W, 3)`` uint8 RGB; picklable.
            It raises ImageError or OSError where there is nothing to be had.
        num_ignored: Files passed over because they are hidden or of no image's extension.
    """

    names: list[str]
    labels: NDArray[np.int64]
    classes: list[str]
    load: Callable[[str], Loaded]
    num_ignored: int = 0


def open_source(source: str, split: str) -> SampleSet:
    """Lists a source's samples.

    Args:
        source: A folder, or ``PREFIX:NAME`` with a prefix of `SOURCES`.
        split: Which part of a source that has splits.

    Raises:
        ValueError: If it holds no images or is of no known kind.
        FileNotFoundError: If there is no such folder.
    """
    prefix, colon, name = source.partition(":")
    if colon and prefix in SOURCES:
        return SOURCES[prefix](name, split)
    folder = Path(source)
    if folder.is_dir():
        return _open_folder(folder)
    if folder.exists():
        raise ValueError(f"{source}: is no folder; name a folder of images or {_known_sources()}")
    raise FileNotFoundError(
        f"{source}: no such folder; name a folder of images or {_known_sources()}"
    )


def read_image_file(root: str, name: str) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: If it is empty, or too large to be an image.
        OSError: If it cannot be read.
    """
    path = Path(root, name)
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        raise ImageError(f"{size} bytes are refused (1 to {MAX_FILE_BYTES})")
    return path.read_bytes()


def _open_folder(root: Path) -> SampleSet:
    """Class folders where every image lies below the first level; else unlabeled.

    The order is that of the path's parts, folder by folder, whatever the locale.
    """
    names, num_ignored = [], 0
    for name, is_image in _walk(root, "", ()):
        if is_image:
            names.append(name)
        else:
            num_ignored += 1
    if not names:
        raise ValueError(
            f"{root}: holds no images; looked in it and below for {' '.join(sorted(EXTENSIONS))} "
            f"({num_ignored} other files)"
        )
    names.sort(key=lambda name: name.split("/"))
    classes: list[str] = []
    labels = np.full(len(names), -1, np.int64)
    if all("/" in name for name in names):
        firsts = [name.partition("/")[0] for name in names]
        classes = sorted(set(firsts))
        _refuse_splits(root, classes)
        number = {name: label for label, name in enumerate(classes)}
        labels[:] = [number[first] for first in firsts]
    load = partial(read_image_file, str(root.absolute()))
    return SampleSet(
        names=names, labels=labels, classes=classes, load=load, num_ignored=num_ignored
    )


def _refuse_splits(root: Path, classes: list[str]) -> None:
    """Splits are no classes; taking them for such would teach which split an image is of."""
    if _SPLIT_FOLDERS.issuperset(classes):
        raise ValueError(
            f"{root}: holds the splits {', '.join(classes)}, not classes; convert each by itself, "
            f"such as {root / classes[0]}"
        )


def _walk(
    folder: Path, prefix: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, bool]]:
    """Relative names of all regular files below, each with whether it is an image by its extension.

    Follows links, but not into a folder that it is in already. Hidden folders are passed over.
    """
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            hidden = entry.name.startswith(".")
            if entry.is_dir():
                if not hidden:
                    yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, here))
            else:
                extension = os.path.splitext(entry.name)[1].lower()
                is_image = extension in EXTENSIONS and not hidden and entry.is_file()
                yield prefix + entry.name, is_image


def _open_builtin(name: str, split: str) -> SampleSet:
    """The textures that are made by code."""
    from fastmoco.data import textures

    if name != "textures":
        raise ValueError(f"builtin:{name} is unknown; there is builtin:textures")
    if split not in textures.SPLIT_SIZES:
        known = ", ".join(textures.SPLIT_SIZES)
        raise ValueError(f"builtin:textures has no split={split}; it has {known}")
    count = textures.SPLIT_SIZES[split]
    return SampleSet(
        names=[f"{split}/{index:05d}" for index in range(count)],
        labels=np.array([textures.label_of(split, index) for index in range(count)], np.int64),
        classes=list(textures.CLASS_NAMES),
        load=_render_texture,
    )


def _render_texture(name: str) -> NDArray[np.uint8]:
    """A texture by its name, ``train/00017``."""
    from fastmoco.data import textures

    split, _, index = name.partition("/")
    return textures.render(split, int(index))


SOURCES: dict[str, Callable[[str, str], SampleSet]] = {"builtin": _open_builtin}


def _known_sources() -> str:
    return ", ".join(f"{prefix}:NAME" for prefix in SOURCES)
