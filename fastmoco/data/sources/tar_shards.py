"""Tar shards in WebDataset's layout: the files of one key are one sample.

The last dot of a name ends its key, so that names such as ``IMG_2021.05.03.jpg`` are kept. Beside
an image ``x.jpg``, ``x.seg.png`` is another image of the key ``x``, as in WebDataset.

Shards are listed once, header by header; an image is then read at its offset.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastmoco.data.jpeg_markers import ImageError
from fastmoco.data.sources.labels import labels_of_texts
from fastmoco.data.sources.passed_over import PassedOver
from fastmoco.data.sources.recognition import (
    EXTENSIONS,
    HEAD_BYTES,
    named_like_image,
    named_otherwise,
    starts_like_image,
)
from fastmoco.data.sources.samples import (
    Place,
    SampleSet,
    check_file_bytes,
    stamps_of,
)
from fastmoco.data.sources.tables import cell_text
from fastmoco.data.sources.tar_members import list_members
from fastmoco.files import regular_file
from fastmoco.parsing import parse_json

_LABEL_EXTENSIONS = frozenset({".cls", ".json"})
_MAX_LABEL_BYTES = 1 << 20
_WORDNET_ID = re.compile(r"n[0-9]{8}")
_VIEW = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")  # `seg`, `depth.left`; not the `05` of a date


@dataclass(kw_only=True, slots=True)
class _Sample:
    """Files of one key: extension and place of its image, text of its label, names of labels."""

    extension: str = ""
    place: Place | None = None
    label: str = ""
    labels: list[str] = field(default_factory=list)


def open_shards(shards: list[Path]) -> SampleSet:
    """Open the images of plain tar files, in the order of shards and of the keys' first files.

    The label is the text of ``KEY.cls``, else ``label`` in ``KEY.json``, else -1. If all shards are
    named by WordNet ids, as ILSVRC2012_img_train.tar unpacks, these are the labels.

    Raises:
        UsageError: If a shard is a pipe or device.
        ValueError: If a shard is compressed, cut or not a tar file, or there are no images.
        OSError: If a shard cannot be read.
    """
    names: list[str] = []
    keys: list[Place] = []
    texts: list[str] = []
    passed_over = PassedOver()
    by_shard = all(_WORDNET_ID.fullmatch(shard.stem) for shard in shards)
    for shard, title in zip(shards, _titles(shards), strict=True):
        regular_file(shard)
        for name, place, label in _images(_read_index(shard, passed_over), passed_over):
            names.append(f"{title}/{name}")
            keys.append(place)
            texts.append(label or (shard.stem if by_shard else ""))
    if not names:
        raise ValueError(
            f"{shards[0]}: no images in {len(shards)} shards; searched for KEY.EXTENSION with "
            f"{' '.join(sorted(EXTENSIONS))}; unpack tar files within a tar file first"
        )
    labels, classes = labels_of_texts(texts, shards[0].parent, names.__getitem__)
    return SampleSet(
        names=names,
        labels=labels,
        classes=classes,
        load=read_member,
        keys=keys,
        stamps=stamps_of(shards),
        passed_over=passed_over,
    )


def read_member(place: Place) -> bytes:
    """Read the bytes of an image in a shard.

    Raises:
        ImageError: If the image is empty, too large, or cut, or its place has a fault.
        OSError: If the shard cannot be read.
    """
    if place.fault:
        raise ImageError(place.fault)
    check_file_bytes(place.size)
    with open(place.path, "rb") as file:
        data = os.pread(file.fileno(), place.size, place.offset)
    if len(data) != place.size:
        raise ImageError(f"{place.path} ends within the image")
    return data


def _titles(shards: list[Path]) -> list[str]:
    """Names of shards without ``.tar``; with their folders if two have the same name."""
    stems = [shard.stem for shard in shards]
    if len(set(stems)) == len(stems):
        return stems
    paths = [shard.absolute() for shard in shards]
    common = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(common).with_suffix("").as_posix() for path in paths]


def _read_index(shard: Path, passed_over: PassedOver) -> dict[str, _Sample]:
    """Samples of a shard by key: a file's path up to the last dot of its name."""
    samples: dict[str, _Sample] = {}
    seen: set[tuple[str, str]] = set()
    with shard.open("rb") as file:
        for name, place in list_members(shard, passed_over):
            if name.rpartition("/")[2].startswith("."):
                passed_over.add("hidden", name)
                continue
            key, extension = os.path.splitext(name)
            extension = extension.lower()
            if extension not in EXTENSIONS | _LABEL_EXTENSIONS:
                key, extension = name, ""
            if (key, extension) in seen:
                raise ValueError(f"{shard}: holds {name} twice")
            seen.add((key, extension))
            if extension in _LABEL_EXTENSIONS:
                label = _label(file, place, extension, f"{shard}: {name}")
                sample = samples.setdefault(key, _Sample())
                sample.label = (sample.label or label) if extension == ".json" else label
                sample.labels.append(name)
            elif reason := _reason_to_pass(file, name, place):
                passed_over.add(reason, name)
            elif (sample := samples.setdefault(key, _Sample())).place:
                passed_over.add("other images", name)
            else:
                sample.extension, sample.place = extension, place
    return samples


def _reason_to_pass(file: BinaryIO, name: str, place: Place) -> str:
    """Why a file is not an image, by its name or else its first bytes; ``""`` if it may be one."""
    if named_like_image(name):
        return ""
    if reason := named_otherwise(name):
        return reason
    head = os.pread(file.fileno(), min(HEAD_BYTES, place.size), place.offset)
    return "" if place.fault or starts_like_image(head) else "not images"


def _label(file: BinaryIO, place: Place, extension: str, where: str) -> str:
    """Text of a ``.cls`` file, or value of ``label`` in a ``.json`` file."""
    if place.fault:
        raise ValueError(f"{where} {place.fault}")
    if place.size > _MAX_LABEL_BYTES:
        raise ValueError(f"{where} is no label: it has {place.size:,} bytes")
    data = os.pread(file.fileno(), place.size, place.offset)
    try:
        if extension == ".cls":
            return data.decode().strip()
        found = parse_json(data)
    except ValueError as error:
        raise ValueError(f"{where} is damaged ({error})") from error
    label = found.get("label") if isinstance(found, dict) else None
    return cell_text(label, where)


def _images(
    samples: dict[str, _Sample], passed_over: PassedOver
) -> Iterator[tuple[str, Place, str]]:
    """Yield name, place and label of each key's image; pass over what belongs to no image."""
    used = set()
    for key, sample in samples.items():
        if sample.place is None:
            continue
        above = list(_keys_above(key))
        main = above[-1] if above else key
        is_view = sample.extension in EXTENSIONS and _VIEW.fullmatch(key[len(main) + 1 :])
        if is_view and main in samples and samples[main].place:
            passed_over.add("other images", key + sample.extension)
            continue
        labeled = next((one for one in (key, *above) if one in samples and samples[one].label), key)
        used.add(labeled)
        yield key + sample.extension, sample.place, samples[labeled].label
    for key, sample in samples.items():
        if key not in used and sample.place is None:
            for name in sample.labels:
                passed_over.add("lone labels", name)


def _keys_above(key: str) -> Iterator[str]:
    """Shorter keys whose label an image takes if it has none: ``x.1.left`` -> ``x.1``, ``x``."""
    while (shorter := os.path.splitext(key)[0]) != key:
        key = shorter
        yield key
