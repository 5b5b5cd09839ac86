"""Tar shards in WebDataset's layout: the files of one key are one sample.

Shards are listed once, header by header; an image is then read at its offset. Compressed shards
are refused: reading one image would mean unpacking everything before it.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastmoco.data.jpeg_markers import ImageError
from fastmoco.data.sources.labels import labels_of_texts
from fastmoco.data.sources.samples import EXTENSIONS, SampleSet, check_file_bytes, stamps_of
from fastmoco.data.sources.tables import cell_text

_UNPACK = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
_LABEL_EXTENSIONS = frozenset({"cls", "json"})
_WORDNET_ID = re.compile(r"n[0-9]{8}")

MemberKey = tuple[str, int, int]


@dataclass(kw_only=True, slots=True)
class _Sample:
    """Files of one key: extension, offset and size of its image, and text of its label."""

    extension: str = ""
    offset: int = 0
    size: int = 0
    label: str = ""
    files: set[str] = field(default_factory=set)


def open_shards(shards: list[Path]) -> SampleSet:
    """Open the images of plain tar files, in the order of shards and of the keys' first files.

    The label is the text of ``KEY.cls``, else ``label`` in ``KEY.json``, else -1. If all shards are
    named by WordNet ids, as ILSVRC2012_img_train.tar unpacks, these are the labels.

    Raises:
        ValueError: If a shard is compressed, cut or not a tar file, or there are no images.
        OSError: If a shard cannot be read.
    """
    names: list[str] = []
    keys: list[MemberKey] = []
    texts: list[str] = []
    num_ignored = 0
    by_shard = all(_WORDNET_ID.fullmatch(shard.stem) for shard in shards)
    for shard, title in zip(shards, _titles(shards), strict=True):
        path = str(shard.absolute())
        for key, sample in _read_index(shard).items():
            has_image = bool(sample.extension)
            num_ignored += len(sample.files - _LABEL_EXTENSIONS) - has_image
            if has_image:
                names.append(f"{title}/{key}{sample.extension}")
                keys.append((path, sample.offset, sample.size))
                texts.append(sample.label or (shard.stem if by_shard else ""))
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
        num_ignored=num_ignored,
    )


def read_member(key: MemberKey) -> bytes:
    """Read the bytes of an image in a shard.

    Args:
        key: Path of the shard; offset and size of the image in bytes.

    Raises:
        ImageError: If the image is empty, too large, or cut.
        OSError: If the shard cannot be read.
    """
    path, offset, size = key
    check_file_bytes(size)
    with open(path, "rb") as file:
        data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
        raise ImageError(f"{path} ends within the image")
    return data


def _titles(shards: list[Path]) -> list[str]:
    """Names of shards without ``.tar``; with their folders if two have the same name."""
    stems = [shard.stem for shard in shards]
    if len(set(stems)) == len(stems):
        return stems
    paths = [shard.absolute() for shard in shards]
    common = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(common).with_suffix("").as_posix() for path in paths]


def _read_index(shard: Path) -> dict[str, _Sample]:
    """Samples of a shard by key: a file's path up to the first dot of its name."""
    samples: dict[str, _Sample] = {}
    with shard.open("rb") as file:
        for name, offset, size in _members(shard):
            folder, slash, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            if not stem:
                continue  # hidden
            sample = samples.setdefault(folder + slash + stem, _Sample())
            extension = extension.lower()
            if extension in sample.files:
                raise ValueError(f"{shard}: holds {name} twice")
            sample.files.add(extension)
            if f".{extension}" in EXTENSIONS and not sample.extension:
                sample.extension, sample.offset, sample.size = f".{extension}", offset, size
            elif extension in _LABEL_EXTENSIONS:
                data = os.pread(file.fileno(), size, offset)
                label = _label(data, extension, f"{shard}: {name}")
                sample.label = (sample.label or label) if extension == "json" else label
    return samples


def _label(data: bytes, extension: str, where: str) -> str:
    """Text of a ``.cls`` file, or value of ``label`` in a ``.json`` file."""
    try:
        if extension == "cls":
            return data.decode().strip()
        found = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{where} is damaged ({error})") from error
    label = found.get("label") if isinstance(found, dict) else None
    return cell_text(label, where)


def _members(shard: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, and offset and size of the data, of each regular file.

    Raises:
        ValueError: If the shard is compressed, or not a tar file with its end mark.
    """
    _refuse_compressed(shard)
    try:
        with tarfile.open(shard, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # they would fill the memory
                if member.isreg() and not member.issparse():
                    yield member.name.removeprefix("./"), member.offset_data, member.size
            end = archive.offset
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: is cut or not a tar file ({error}); get it again") from error
    with shard.open("rb") as file:
        file.seek(end)
        if file.read(512) != bytes(512):
            raise ValueError(f"{shard}: is cut or damaged at byte {end}; get it again")


def _refuse_compressed(shard: Path) -> None:
    with shard.open("rb") as file:
        start = file.read(8)
    for magic, tool in _UNPACK.items():
        if start.startswith(magic):
            raise ValueError(f"{shard}: is compressed; unpack it first: {tool} {shard}")
