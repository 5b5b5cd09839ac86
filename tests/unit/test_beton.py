"""What BetonWriter writes, BetonFile reads; index, names, checksums and pages are as documented."""

import os
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmoco.data import beton_writer
from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.data.beton_format import MODE_JPEG, MODE_RAW
from fastmoco.data.beton_writer import BetonWriter
from fastmoco.data.images import decode_jpeg
from tests.disk_calls import disk_calls
from tests.pictures import encoded, picture

PAGE_BYTES = 1 << 21


def about(sample: int, blob: bytes) -> dict[str, Any]:
    """What the tests say of a sample: JPEG and raw in turn."""
    return {
        "mode": MODE_RAW if sample % 2 else MODE_JPEG,
        "width": 56,
        "height": 40,
        "label": sample % 3 - 1,
        "name": f"dir/ü{sample}\udcff.png",
        "crc32": zlib.crc32(blob),
    }


def write(path: Path, count: int = 5, facts: dict[str, Any] | None = None) -> list[bytes]:
    """A file of JPEG and raw samples in turn."""
    blobs = []
    with BetonWriter(path, capacity=count + 3, page_bytes=PAGE_BYTES) as writer:
        for sample in range(count):
            pixels = picture(sample)
            blob = pixels.tobytes() if sample % 2 else encoded(pixels)
            blobs.append(blob)
            writer.add(blob, **about(sample, blob))
        writer.finish(("cat", "dog"), facts)
        writer.commit()
    return blobs


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a file.beton"
    blobs = write(path)
    with BetonFile.open(path) as beton:
        assert len(beton) == 5
        assert beton.labels.tolist() == [-1, 0, 1, -1, 0]
        assert set(beton.widths) == {56}
        assert set(beton.heights) == {40}
        assert beton.has_checksums
        assert beton.classes == ["cat", "dog"]
        assert beton.facts == {}
        assert [beton.name(i) for i in range(5)] == [f"dir/ü{i}\udcff.png" for i in range(5)]
        assert [bytes(beton.blob(i)) for i in range(5)] == blobs
        assert np.array_equal(beton.decode(1), picture(1))
        assert np.array_equal(beton.decode(np.int64(2)), decode_jpeg(blobs[2]))
        assert beton.decode(0).flags.c_contiguous
        for outside in (-1, 5):
            with pytest.raises(IndexError, match="no sample"):
                beton.decode(outside)
    with pytest.raises(BetonError, match="closed"):
        beton.blob(0)


def test_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 3), ("c", 4)):
        write(tmp_path / f"{name}.beton", count)
    found = {name: BetonFile.open(tmp_path / f"{name}.beton") for name in "abc"}
    assert found["a"].fingerprint == found["b"].fingerprint != found["c"].fingerprint
    assert len(found["a"].fingerprint) == 64
    for beton in found.values():
        beton.close()


def test_no_blob_straddles_a_page(tmp_path: Path) -> None:
    path = tmp_path / "pages.beton"
    blob = np.random.default_rng(0).integers(0, 256, 3 * 400 * 700, dtype=np.uint8).tobytes()
    with BetonWriter(path, capacity=7, page_bytes=PAGE_BYTES) as writer:
        for sample in range(7):
            writer.add(
                blob,
                mode=MODE_RAW,
                width=700,
                height=400,
                label=0,
                name=str(sample),
                crc32=zlib.crc32(blob),
            )
        with pytest.raises(ValueError, match="page_bytes"):
            writer.add(bytes(PAGE_BYTES + 1), mode=0, width=1, height=1, label=0, name="", crc32=0)
        writer.finish([])
        writer.commit()
    with BetonFile.open(path) as beton:
        assert all(bytes(beton.blob(i)) == blob for i in range(7))
        assert beton.num_bytes > 5 * PAGE_BYTES  # two a page, and the head
        assert all(not any(gap) for _, gap in beton.gaps())
        assert sum(len(gap) for _, gap in beton.gaps()) > 4 * (PAGE_BYTES - 2 * len(blob)) - 999


def test_a_blob_may_fill_a_page_or_the_rest_of_one(tmp_path: Path) -> None:
    path, half = tmp_path / "full.beton", PAGE_BYTES // 2
    blobs = [bytes(size) for size in (PAGE_BYTES, half, half, 1)]
    with BetonWriter(path, capacity=4, page_bytes=PAGE_BYTES) as writer:
        for sample, blob in enumerate(blobs):
            writer.add(blob, **about(sample, blob) | {"mode": MODE_JPEG})
        writer.finish([])
        writer.commit()
    with BetonFile.open(path) as beton:
        places = (beton.pointers - beton.pointers[0]).tolist()
        assert places == [0, PAGE_BYTES, PAGE_BYTES + half, 2 * PAGE_BYTES]
        assert [bytes(beton.blob(i)) for i in range(4)] == blobs


def test_blobs_that_changed_places_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "swapped.beton"
    blobs = write(path)
    with BetonFile.open(path) as beton:
        first, second = beton.pointers[[1, 3]].tolist()  # of raw pixels, so equally long
        wanted = zlib.crc32(blobs[3] + (3).to_bytes(8, "little"))
        assert beton.checksums is not None
        assert beton.checksums[3] == wanted
    with path.open("r+b") as file:
        for place, blob in ((first, blobs[3]), (second, blobs[1])):
            file.seek(place)
            file.write(blob)
    with BetonFile.open(path) as beton:
        for sample in (1, 3):
            with pytest.raises(BetonError, match=f"sample {sample} .*checksum of its image"):
                beton.blob(sample)


def test_reads_that_bring_a_part_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux reads at most 2 GiB at once."""
    blobs, real = write(tmp_path / "a.beton"), os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: real(file, min(size, 1000), at))
    with BetonFile.open(tmp_path / "a.beton") as beton:
        assert [bytes(beton.blob(i)) for i in range(5)] == blobs


def test_without_commit_the_old_file_stays_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    write(path)
    before = path.read_bytes()
    with BetonWriter(path, capacity=1, page_bytes=PAGE_BYTES) as writer:
        writer.add(b"abc", mode=MODE_RAW, width=1, height=1, label=0, name="a", crc32=0)
        writer.finish([])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.beton"]


def test_two_writers_of_one_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    with (
        BetonWriter(path, capacity=1),
        pytest.raises(OSError, match="another process is writing it"),
    ):
        BetonWriter(path, capacity=1)


def test_a_writer_that_ends_while_another_opens_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rename comes between opening and locking: the other would write into the new file."""
    path = tmp_path / "x.beton"
    renamed = lambda _, partial, **__: partial.rename(path)  # noqa: E731
    monkeypatch.setattr(beton_writer, "lock_descriptor", renamed)
    with pytest.raises(OSError, match="another process is writing it"):
        BetonWriter(path, capacity=1)


def test_a_file_is_on_the_disk_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disk_calls(monkeypatch) as calls:
        write(tmp_path / "x.beton")
    assert calls == ["sync file", "replace", "sync folder"]


@pytest.mark.parametrize("page_bytes", [0, 1 << 20, 3 << 20, 1 << 32])
def test_refuses_odd_page_sizes(tmp_path: Path, page_bytes: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        BetonWriter(tmp_path / "x.beton", capacity=1, page_bytes=page_bytes)


def test_facts_travel_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    facts = {"channel_mean": [0.5, 0.4, 0.3], "num_duplicates": 2}
    write(path, facts=facts)
    path = path.rename(tmp_path / "elsewhere.beton")
    with BetonFile.open(path) as beton:
        assert beton.facts == facts


@pytest.mark.parametrize("mean", [[0.5, 0.5], [0.5, 0.5, 2.0], [0.5, 0.5, float("nan")], ["a"] * 3])
def test_absurd_statistics_are_refused(tmp_path: Path, mean: list[float]) -> None:
    path = tmp_path / "x.beton"
    write(path, facts={"channel_mean": mean})
    with pytest.raises(BetonError, match="its facts are damaged"):
        BetonFile.open(path)


def test_recall_takes_up_what_an_unfinished_file_holds(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.beton", tmp_path / "x.beton"
    blobs = write(whole)
    with BetonWriter(path, capacity=8, page_bytes=PAGE_BYTES) as writer:
        writer.add(blobs[0], **about(0, blobs[0]))
        writer.add(blobs[1], **about(1, blobs[1]))
        writer.flush()
        writer.add(blobs[2], **about(2, blobs[2]))
        writer.keep_partial = True
    with BetonWriter(path, capacity=8, page_bytes=PAGE_BYTES, resume=True) as writer:
        assert writer.recall(len(blobs[0]), **about(0, blobs[0]))
        assert writer.recall(len(blobs[1]), **about(1, blobs[1]))
        writer.rewind(1)
        assert writer.recall(len(blobs[1]), **about(1, blobs[1]))
        assert not writer.recall(len(blobs[2]), **about(2, blobs[2]))  # it was never flushed
        for sample in (2, 3, 4):
            writer.add(blobs[sample], **about(sample, blobs[sample]))
        writer.finish(("cat", "dog"))
        writer.commit()
    assert path.read_bytes() == whole.read_bytes()


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    blobs = write(path, 40)
    wrong: list[int] = []
    with BetonFile.open(path) as beton:

        def read(seed: int) -> None:
            for sample in np.random.default_rng(seed).integers(0, 40, 200):
                if bytes(beton.blob(sample)) != blobs[sample] or beton.name(sample)[5:-5] != str(
                    sample
                ):
                    wrong.append(int(sample))

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_opens_a_million_samples_fast(tmp_path: Path) -> None:
    """A tenth of ImageNet here; the whole took 0.5 to 0.8 s and 165 MB on 2 shared cores."""
    path = tmp_path / "big.beton"
    count = 128_000
    crc32 = zlib.crc32(bytes(3))
    with BetonWriter(path, capacity=count, page_bytes=PAGE_BYTES) as writer:
        for sample in range(count):
            writer.add(
                bytes(3), mode=MODE_RAW, width=1, height=1, label=0, name=str(sample), crc32=crc32
            )
        writer.finish([])
        writer.commit()
    with BetonFile.open(path) as beton:
        assert len(beton) == count
        assert beton.name(count - 1) == str(count - 1)
        assert beton.decode(count - 1).tolist() == [[[0, 0, 0]]]
