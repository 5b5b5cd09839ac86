"""Damage anywhere is refused with BetonError: by `verify`, and before a wrong pixel leaves.

FFCV returns another sample's pixels for a damaged image and crashes on hostile sizes.
"""

import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmoco.data import beton_writer
from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.data.beton_format import (
    ARGUMENTS_OFFSET,
    HEAD,
    METADATA,
    TABLE,
    align,
    index_digest,
)
from fastmoco.data.beton_writer import BetonWriter
from fastmoco.data.convert import ConvertConfig, Encoding, convert
from fastmoco.data.verify import verify
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import EpochPlan
from tests.faults.ledger import Ledger, Part
from tests.loader_data import training
from tests.pictures import write_class_folders

PAGE_BYTES = 1 << 21
MUTATIONS, FULL_MUTATIONS = 400, 10_000


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make(tmp_path_factory.mktemp("good"), Encoding.jpeg)


@pytest.fixture(scope="module")
def good_raw(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make(tmp_path_factory.mktemp("good_raw"), Encoding.raw)


def make(folder: Path, encoding: Encoding) -> bytes:
    write_class_folders(folder / "src")
    path = folder / "x.beton"
    convert(str(folder / "src"), path, ConvertConfig(encoding=encoding, page_bytes=PAGE_BYTES))
    return path.read_bytes()


def regions(data: bytes) -> dict[str, tuple[int, int]]:
    """Where each part of the file lies."""
    head = np.frombuffer(data, HEAD, 1)[0]
    count = int(head["header"]["num_samples"])
    table = int(head["header"]["table_pointer"])
    blobs = np.frombuffer(data, TABLE, count, table)
    metadata_end = HEAD.itemsize + count * METADATA.itemsize
    return {
        "header": (0, 24),
        "fields": (24, HEAD.itemsize),
        "metadata": (HEAD.itemsize, metadata_end),
        "padding": (metadata_end, align(metadata_end, PAGE_BYTES)),
        "blobs": (int(blobs[0]["pointer"]), int(blobs[-1]["pointer"] + blobs[-1]["size"])),
        "section": (int(head["image"]["arguments"]["pointer"]), table),
        "table": (table, len(data)),
    }


def read_all(path: Path) -> list[tuple[int, str, bytes]]:
    """Label, name and pixels of each sample."""
    with BetonFile.open(path) as beton:
        return [
            (int(beton.labels[i]), beton.name(i), beton.decode(i).tobytes())
            for i in range(len(beton))
        ]


def load_all(path: Path) -> list[tuple[list[int], list[int], bytes]]:
    """All that the loader hands out in two epochs: ids, labels and crops of each batch."""
    with BetonFile.open(path) as beton:
        plan = EpochPlan(seed=0, epoch=0, num_samples=len(beton), global_batch_size=4)
        spec, device = training(num_threads=1), torch.device("cpu")
        loader = build_loader(beton, plan, spec=spec, stop_epoch=2, device=device, name="beton")
        try:
            return [
                (batch.sample_id.tolist(), batch.label.tolist(), batch.crops.numpy().tobytes())
                for batch in loader
            ]
        finally:
            loader.close()


def mutate(data: bytes, random: np.random.Generator) -> tuple[str, bytes]:
    """One seeded damage, of a kind that is drawn."""
    places = regions(data)
    region = str(random.choice(list(places)))
    start, end = places[region]
    changed = bytearray(data)
    kinds = ["flip", "overwrite", "wipe", "cut", "grow", "swap blobs", "splice size", "label"]
    kind = str(random.choice(kinds))
    place = int(random.integers(start, end))
    if kind == "flip":
        changed[place] ^= 1 << int(random.integers(8))
    elif kind == "overwrite":
        changed[place : place + 8] = random.bytes(min(8, len(data) - place))
    elif kind == "wipe":
        changed[place : place + 512] = bytes(min(512, len(data) - place))
    elif kind == "cut":
        del changed[place:]
    elif kind == "grow":
        changed[place:place] = random.bytes(int(random.integers(1, 99)))
    elif kind == "label":
        label = places["metadata"][0] + 24 * int(random.integers(12)) + 16
        changed[label : label + 8] = int(random.integers(-1, 5)).to_bytes(8, "little", signed=True)
        return kind, bytes(changed)
    elif kind == "splice size":
        size, other = (places["table"][0] + 24 * int(i) + 16 for i in random.integers(12, size=2))
        changed[size : size + 8] = data[other : other + 8]
        return kind, bytes(changed)
    else:
        table = np.frombuffer(data, TABLE, offset=places["table"][0])
        first, second = random.choice(len(table), 2, replace=False)
        size = int(min(table["size"][first], table["size"][second]))
        a, b = int(table["pointer"][first]), int(table["pointer"][second])
        changed[a : a + size], changed[b : b + size] = data[b : b + size], data[a : a + size]
        return kind, bytes(changed)
    return f"{kind} {region}", bytes(changed)


@pytest.mark.parametrize("encoding", ["good", "good_raw"])
def test_random_damage_is_refused(
    encoding: str, request: pytest.FixtureRequest, tmp_path: Path, ledger: Ledger
) -> None:
    campaign = ledger.campaign(
        f"inputs_dataset_{encoding}",
        promise=f"A damaged dataset file ({'raw' if 'raw' in encoding else 'jpeg'}) is refused by "
        "`verify`, and before a wrong pixel leaves.",
        how="a drawn flip, overwrite, wipe, cut, growth, swap of images or sizes, or other label, "
        "in a drawn part of the file (seed 7)",
        unit="inputs",
    )
    for part in campaign.parts(1):
        damage_and_read(part, request.getfixturevalue(encoding), tmp_path)
    campaign.check()


def damage_and_read(part: Part, data: bytes, tmp_path: Path) -> None:
    """Each damaged file is refused with its name, by all readers."""
    path = tmp_path / "x.beton"
    path.write_bytes(data)
    verify(path)
    whole = {read: read(path) for read in (read_all, load_all)}
    random = np.random.default_rng(7)
    counts: Counter[str] = Counter()
    wanted = (MUTATIONS if part.quick else FULL_MUTATIONS) // 2
    while (number := sum(counts.values())) < wanted:
        kind, changed = mutate(data, random)
        if changed == data:
            continue
        counts[kind] += 1
        path.write_bytes(changed)
        start = time.monotonic()
        with pytest.raises(BetonError) as caught:
            verify(path)
        part.add("refused", time.monotonic() - start, place=kind)
        assert str(path) in str(caught.value), (number, kind)
        for read, expected in whole.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    found = read(path)
            except BetonError:
                continue
            assert found == expected, (number, kind, read)  # damage between the blobs is harmless
            assert "padding" in kind or "blobs" not in kind, (number, kind, read)
    assert len(counts) > 30, counts


def test_every_byte_of_the_head_counts(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    for place in [*range(0, 130), *range(130, HEAD.itemsize, 53)]:
        changed = bytearray(good)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        with pytest.raises(BetonError):
            BetonFile.open(path)


def resealed(data: bytes, change: Callable[[bytearray, dict[str, tuple[int, int]]], None]) -> bytes:
    """The file with a hostile change and a checksum that fits it."""
    changed = bytearray(data)
    places = regions(data)
    change(changed, places)
    digest = index_digest(
        bytes(changed[: HEAD.itemsize]),
        [
            bytes(changed[slice(*places["metadata"])]),
            bytes(changed[slice(*places["section"])]),
            bytes(changed[slice(*places["table"])]),
        ],
    )
    changed[ARGUMENTS_OFFSET + 40 : ARGUMENTS_OFFSET + 72] = digest
    return bytes(changed)


def put(offset: int, value: int, size: int, region: str = "metadata", sample: int = 3):  # type: ignore[no-untyped-def]
    """A change of one field of a sample, to a chosen value."""

    def change(data: bytearray, places: dict[str, tuple[int, int]]) -> None:
        place = places[region][0] + offset + (24 * sample if region in ("metadata", "table") else 0)
        data[place : place + size] = value.to_bytes(size, "little")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(0, 7, 1), "sample 3, byte 2178: its storage mode is unknown"),
        (put(1, 0, 2), "sample 3, byte 2179: its width or height is not in the allowed range"),
        (put(1, 65535, 2), "sample 3, byte 2179: its width or height is not in the allowed range"),
        (put(5, 0, 8), "metadata and table disagree on its offset"),
        (put(5, 1 << 63, 8), "sample 3, byte 2183: its image lies beyond the pages"),
        (put(8, 5, 8, "table"), "metadata and table disagree on its offset"),
        (put(16, 0, 8, "table"), "the size of its image is impossible"),
        (put(16, (1 << 64) - 1, 8, "table"), "the size of its image is impossible"),
        (put(16, 1 << 20, 8, "table"), "sample 3, byte 2183: its image overlaps the next"),
        (put(16, 1 << 20, 8, "table", 11), None),
        (put(16, PAGE_BYTES, 8, "table", 11), "lies outside of the pages"),
        (put(0, 5, 8, "table"), "sample 3, byte .*exactly once"),
        (put(0, 1 << 40, 8, "section"), None),
        (put(8, 1 << 62, 8, "header"), "is cut, unfinished or no .beton file"),
        (put(8, 0, 8, "header"), "holds no samples"),
        (put(16, 0, 8, "header"), "is cut, unfinished or no .beton file"),
        (put(4, 3 << 20, 4, "header"), "page size 3145728 is not a power of two"),
        (put(2, 3, 2, "header"), "3 fields, not the two"),
        (put(0, 1, 2, "header"), "not a .beton file of version 2"),
        (put(0, 5, 1, "fields"), "expected field `image` of type 2, found `image` of type 5"),
        (put(33, 1, 8, "fields"), "its image lies beyond the pages"),
        (put(33, 1 << 50, 8, "fields"), "its pages do not end where a page ends"),
        (put(41, 1 << 50, 8, "fields"), "section of checksums and names has a wrong size"),
    ],
)
def test_hostile_files_with_fitting_checksums_are_refused(
    good: bytes,
    tmp_path: Path,
    change: Callable[[bytearray, dict[str, tuple[int, int]]], None],
    message: str | None,
) -> None:
    path = tmp_path / "x.beton"
    path.write_bytes(resealed(good, change))
    if message is None:  # found only when the sample is read
        with pytest.raises(BetonError, match="sample"):
            verify(path)
    else:
        with pytest.raises(BetonError, match=message) as caught:
            BetonFile.open(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "facts",
    [
        "[" * 200_000,
        "{",
        "[1]",
        '{"channel_mean": 1}',
        '{"channel_std": [NaN, 1, 1]}',
        '{"num_measured_pixels": "many"}',
        '{"num_measured_pixels": -1}',
        '{"num_measured_pixels": 1e300}',
        '{"num_quarantined": [1]}',
    ],
)
def test_hostile_facts_are_refused(tmp_path: Path, facts: str) -> None:
    path = tmp_path / "x.beton"
    with BetonWriter(path, capacity=1, page_bytes=PAGE_BYTES) as writer:
        writer.add(b"abc", mode=1, width=1, height=1, label=0, name="a", crc32=zlib.crc32(b"abc"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(beton_writer.json, "dumps", lambda _: facts)
            writer.finish([], {"any": 1})
        writer.commit()
    with pytest.raises(BetonError, match="its facts are damaged"):
        BetonFile.open(path)


def test_raw_size_must_be_that_of_the_dimensions(good_raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    path.write_bytes(resealed(good_raw, put(1, 999, 2)))
    with pytest.raises(BetonError, match="sample 3, byte 2179: its size is not that"):
        BetonFile.open(path)


def test_jpeg_of_another_size_than_its_metadata_is_refused(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    path.write_bytes(resealed(good, put(1, 4, 2)))
    with (
        BetonFile.open(path) as beton,
        pytest.raises(BetonError, match=r"sample 3 \(class_0/3\.jpg\), byte .*its metadata"),
    ):
        beton.decode(3)


@pytest.mark.parametrize(
    "data", [b"", b"\x02\x00", bytes(5000), b"PK\x03\x04" * 999, b"\x02\x00\x02\x00" * 999]
)
def test_foreign_files_get_one_clear_line(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.beton"
    path.write_bytes(data)
    with pytest.raises(BetonError, match=r"photo\.beton: ") as caught:
        BetonFile.open(path)
    assert "\n" not in str(caught.value)
    assert "fastmoco convert" in str(caught.value)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(BetonError, match="not a regular file"):
        BetonFile.open(tmp_path)
    with pytest.raises(FileNotFoundError):
        BetonFile.open(tmp_path / "x.beton")


def test_a_file_that_shrinks_while_open_raises(good: bytes, tmp_path: Path) -> None:
    """A memory map would kill the process here."""
    path = tmp_path / "x.beton"
    path.write_bytes(good)
    with BetonFile.open(path) as beton:
        beton.decode(0)
        with path.open("r+b") as file:
            file.truncate(100)
        with pytest.raises(BetonError, match="the file ends too early"):
            beton.decode(0)
