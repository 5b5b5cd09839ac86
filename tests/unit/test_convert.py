"""Folders and the built-in set become files: order, labels, copied bytes, bad images, facts."""

import csv
import errno
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fastmoco.data import conversion
from fastmoco.data.beton import BetonFile
from fastmoco.data.beton_format import MODE_JPEG, MODE_RAW, sidecar_path
from fastmoco.data.convert import Check, ConvertConfig, Encoding, OnError, convert
from fastmoco.data.encode import MAX_READ_ERRORS
from fastmoco.data.sources import SourceOptions, open_source
from fastmoco.data.tally import Tally
from fastmoco.data.verify import describe, description_text, verify
from fastmoco.data.workers import BATCH_SAMPLES, encoded_batches
from tests.pictures import encoded, picture, write_class_folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "a folder"
    write_class_folders(root)
    return root


def test_class_folders(folder: Path, tmp_path: Path) -> None:
    (folder / "class_1" / "notes.txt").write_text("no image")
    (folder / "class_1" / ".hidden.jpg").write_bytes(b"no image")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.jpg").write_bytes(b"no image")
    summary = convert(str(folder), tmp_path / "x.beton", ConvertConfig())
    assert (summary.num_samples, summary.num_quarantined) == (12, 0)
    passed = [(row.reason, row.count, row.first) for row in summary.passed_over]
    assert passed == [("hidden", 2, ".cache"), ("not images", 1, "class_1/notes.txt")]
    assert summary.classes == ["class_0", "class_1", "class_2"]
    with BetonFile.open(tmp_path / "x.beton") as beton:
        names = [beton.name(i) for i in range(12)]
        assert names == [f"class_{label}/{i}.jpg" for label in range(3) for i in range(4)]
        assert beton.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert beton.classes == summary.classes
        for i, name in enumerate(names):
            assert bytes(beton.blob(i)) == (folder / name).read_bytes()
    table = dict(line.split(maxsplit=1) for line in summary.to_text().splitlines())
    assert table["classes"] == "3: class_0 4, class_1 4, class_2 4"
    assert (table["images"], table["size"]) == ("12", "16.8 MB")
    assert re.fullmatch(r"[\d,]+ images/s, [\d,.]+ MB/s read", table["rate"])
    command = f"fastmoco train experiment=own data.train={tmp_path / 'x.beton'}"
    assert list(table.items())[-1] == ("next", command)
    found = json.loads(json.dumps(summary.to_json()))
    assert (found["num_samples"], found["next"]) == (12, command)


def test_an_image_beside_class_folders_has_no_label(folder: Path, tmp_path: Path) -> None:
    (folder / "z.png").write_bytes(encoded(picture(1), "PNG"))
    (folder / "class_1" / "0.jpg").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"1 of 13 images are beside .* \(first z\.png\)"):
        summary = convert(str(folder), tmp_path / "x.beton", ConvertConfig())
    assert "3: class_0 4, class_1 3, class_2 4, no label 1" in summary.to_text()
    assert (summary.class_counts["class_1"], summary.num_unlabeled) == (3, 1)
    with BetonFile.open(tmp_path / "x.beton") as beton:
        assert beton.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4 + [-1]
        assert beton.name(11) == "z.png"


def test_classes_are_counted_over_all_files(folder: Path, tmp_path: Path) -> None:
    for options in ({"shards": 2}, {"holdout": 0.5}):
        summary = convert(str(folder), tmp_path / "x.beton", ConvertConfig(**options))
        assert summary.class_counts == {"class_0": 4, "class_1": 4, "class_2": 4}
    summary.class_counts = {f"class {n}": n + 1 for n in range(1000)}
    row = summary.to_text().splitlines()[4]
    assert row.startswith("classes      1,000: class 0 1, class 1 2, class 2 3, class 3 4, ")
    assert row.endswith(
        "class 4 5, ..., class 995 996, class 996 997, class 997 998, "
        "class 998 999, class 999 1,000, 1 to 1,000 images each"
    )


def test_what_may_not_be_copied_is_encoded_upright_and_small(tmp_path: Path) -> None:
    root = tmp_path / "src"
    root.mkdir()
    pixels = picture(1, 60, 90)
    exif = Image.Exif()
    exif[274] = 6
    sources = {
        "a_turned.jpg": encoded(pixels, quality=95, exif=exif),
        "b_large.jpg": encoded(picture(2, 300, 600), quality=95),
        "c_cmyk.jpg": b"",
        "d_wrong_extension.jpg": encoded(pixels, "PNG"),
        "e_stowaway.jpg": encoded(pixels, quality=95) + b"PK\x03\x04",
    }
    Image.fromarray(pixels).convert("CMYK").save(root / "c_cmyk.jpg", "JPEG")
    for name, blob in sources.items():
        if blob:
            (root / name).write_bytes(blob)
    convert(str(root), tmp_path / "x.beton", ConvertConfig(max_size=200))
    expected = [np.rot90(pixels, -1), None, pixels, pixels, pixels]
    with BetonFile.open(tmp_path / "x.beton") as beton:
        assert beton.widths.tolist() == [60, 200, 90, 90, 90]
        assert beton.heights.tolist() == [90, 100, 60, 60, 60]
        for i, want in enumerate(expected):
            got = beton.decode(i)
            assert bytes(beton.blob(i)[:2]) == b"\xff\xd8"
            assert want is None or np.abs(got.astype(int) - want).mean() < 4
        assert bytes(beton.blob(4)) == sources["e_stowaway.jpg"][:-4]


def test_raw_keeps_lossless_pixels(tmp_path: Path) -> None:
    root = tmp_path / "src"
    root.mkdir()
    for i in range(3):
        (root / f"{i}.png").write_bytes(encoded(picture(i), "PNG"))
    convert(str(root), tmp_path / "x.beton", ConvertConfig(encoding=Encoding.raw))
    with BetonFile.open(tmp_path / "x.beton") as beton:
        assert set(beton.modes) == {MODE_RAW}
        assert all(np.array_equal(beton.decode(i), picture(i)) for i in range(3))


@pytest.mark.parametrize("lossless", [True, False])
def test_lossless_keeps_the_pixels_of_lossless_sources(tmp_path: Path, lossless: bool) -> None:
    root = tmp_path / "src"
    root.mkdir()
    for name, image_format in (("a.png", "PNG"), ("b.bmp", "BMP"), ("c.ppm", "PPM")):
        (root / name).write_bytes(encoded(picture(1), image_format))
    (root / "d.jpg").write_bytes(encoded(picture(1)))
    (root / "e.webp").write_bytes(encoded(picture(1), "WEBP"))
    np.save(tmp_path / "x.npy", picture(1)[None])
    convert(str(root), tmp_path / "x.beton", ConvertConfig(lossless=lossless))
    with BetonFile.open(tmp_path / "x.beton") as beton:
        assert beton.modes.tolist() == [MODE_RAW if lossless else MODE_JPEG] * 3 + [MODE_JPEG] * 2
        same = [np.array_equal(beton.decode(i), picture(1)) for i in range(3)]
        assert same == [lossless] * 3
    convert(str(tmp_path / "x.npy"), tmp_path / "y.beton", ConvertConfig(lossless=lossless))
    with BetonFile.open(tmp_path / "y.beton") as beton:
        assert np.array_equal(beton.decode(0), picture(1)) == lossless


def test_twelve_bits_in_files_of_sixteen_are_said(tmp_path: Path) -> None:
    source = tmp_path / "pics"
    source.mkdir()
    levels = np.arange(40 * 56, dtype=np.uint16).reshape(40, 56)
    color = (levels[..., None] + np.zeros(3)).astype(np.uint16)
    files = {
        "gray_12.png": encoded(levels, "PNG"),
        "gray_12.tif": encoded(levels, "TIFF"),
        "color_12.png": _color_png(color),
        "gray_13.png": encoded(2 * levels, "PNG"),
        "color_16.png": _color_png(29 * color),
        "black.png": encoded(0 * levels, "PNG"),
        "night_of_8_bits.png": encoded(np.full((40, 56, 3), 9, np.uint8), "PNG"),
    }
    for name, blob in files.items():
        (source / name).write_bytes(blob)
    summary = convert(str(source), tmp_path / "x.beton", ConvertConfig())
    assert summary.num_twelve_bit == 3
    said = r"12 bits +3 images of 16 bits whose values stay below 4096, so they are dark"
    assert re.search(said, summary.to_text())
    tally = Tally(num_twelve_bit=3)
    assert Tally.from_record(json.loads(json.dumps(tally.to_record()))).num_twelve_bit == 3


def _color_png(levels: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits per channel, which Pillow cannot write."""
    height, width, _ = levels.shape
    rows = np.zeros((height, 1 + 6 * width), np.uint8)
    rows[:, 1:] = levels.astype(">u2").view(np.uint8).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def test_quality_is_that_of_what_is_encoded_anew(folder: Path, tmp_path: Path) -> None:
    (folder / "class_0" / "x.png").write_bytes(encoded(picture(1, 200, 200), "PNG"))
    sizes = []
    for quality in (30, 95):
        convert(str(folder), tmp_path / "x.beton", ConvertConfig(quality=quality))
        with BetonFile.open(tmp_path / "x.beton") as beton:
            sizes.append(beton.sizes)
    assert (sizes[0] != sizes[1]).nonzero()[0].tolist() == [4]  # the JPEGs are copied
    assert 2 * sizes[0][4] < sizes[1][4]


def test_a_file_is_on_disk_before_it_takes_the_old_ones_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync of the file, rename, fsync of the folder; the index is written before the first."""
    target, calls = tmp_path / "x.beton", []

    def spy(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            path = args[0]
            place = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path)
            calls.append((name, Path(place).name))
            return real(*args)

        return call

    for name in ("fsync", "replace", "pwrite", "pwritev"):
        monkeypatch.setattr(os, name, spy(name, getattr(os, name)))
    convert(str(folder), target, ConvertConfig())
    about = [call for call in calls if call[1] != "x.beton.journal"]
    partial, renamed = "x.beton.partial", about.index(("replace", "x.beton.partial"))
    assert about[renamed - 3 : renamed] == [("pwrite", partial)] * 2 + [("fsync", partial)]
    assert about[renamed + 1] == ("fsync", tmp_path.name)
    assert partial not in [file for _, file in about[renamed + 1 :]]


def test_bad_images_are_left_out_and_listed(folder: Path, tmp_path: Path) -> None:
    good = (folder / "class_0" / "0.jpg").read_bytes()
    bad = {
        "class_0/b_cut.jpg": good[:-300],
        "class_0/c_empty.jpg": b"",
        "class_1/odd, \udcff name.png": b"no image",
        "class_2/e_wiped.jpg": good[:700] + bytes(60) + good[760:],
    }
    for name, blob in bad.items():
        (folder / name).write_bytes(blob)
    target = tmp_path / "x.beton"
    summary = convert(str(folder), target, ConvertConfig())
    assert (summary.num_samples, summary.num_quarantined) == (12, len(bad))
    assert summary.quarantine_path == tmp_path / "x.quarantine.csv"
    with summary.quarantine_path.open(encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == sorted(bad)
    assert all(row["reason"] for row in rows)
    verify(target)
    with pytest.raises(ValueError, match=r"class_0/b_cut\.jpg: .*JPEG.*on_error=quarantine"):
        convert(str(folder), tmp_path / "y.beton", ConvertConfig(on_error=OnError.fail))
    assert not list(tmp_path.glob("y.*"))
    for name in bad:
        (folder / name).unlink()
    assert convert(str(folder), target, ConvertConfig()).quarantine_path is None
    assert not (tmp_path / "x.quarantine.csv").exists()


def test_header_check_reads_markers_only(folder: Path, tmp_path: Path) -> None:
    blob = (folder / "class_0" / "0.jpg").read_bytes()
    (folder / "class_0" / "cut.jpg").write_bytes(blob[:-300])
    convert(str(folder), tmp_path / "x.beton", ConvertConfig(check=Check.header))
    with (tmp_path / "x.quarantine.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["class_0/cut.jpg"]


def test_bytes_do_not_depend_on_workers(tmp_path: Path) -> None:
    """Nor on their speed: of seven batches every other one takes longer."""
    folder = tmp_path / "src"
    folder.mkdir()
    for i in range(7 * BATCH_SAMPLES):
        size = (300, 400) if i // BATCH_SAMPLES % 2 == 0 and i % 4 == 0 else (20, 30)
        (folder / f"{i:03d}.png").write_bytes(encoded(picture(i, *size), "PNG", compress_level=0))
    (folder / "100.png").write_bytes(b"no image")
    files = []
    for workers in (1, 2, 4):
        path = tmp_path / str(workers) / "x.beton"
        convert(str(folder), path, ConvertConfig(workers=workers))
        files.append(
            (path.read_bytes(), sidecar_path(path).read_bytes(), sorted(os.listdir(path.parent)))
        )
    assert files[0] == files[1] == files[2]


def test_facts(folder: Path, tmp_path: Path) -> None:
    (folder / "class_2" / "twin.jpg").write_bytes((folder / "class_0" / "0.jpg").read_bytes())
    path = tmp_path / "x.beton"
    summary = convert(str(folder), path, ConvertConfig())
    with BetonFile.open(path) as beton:
        pixels = np.concatenate([beton.decode(i).reshape(-1, 3) for i in range(13)]) / 255
        facts = json.loads(sidecar_path(path).read_text())
        assert facts["fingerprint"] == beton.fingerprint == summary.fingerprint
        assert beton.facts.items() <= facts.items()
    assert np.allclose(facts["channel_mean"], pixels.mean(0), atol=1e-6)
    assert np.allclose(facts["channel_std"], pixels.std(0), atol=1e-6)
    assert facts["num_duplicates"] == summary.num_duplicates == 1
    assert facts["class_counts"] == {"class_0": 4, "class_1": 4, "class_2": 5}
    assert facts["width_range"] == [40, 49]
    assert facts["height_range"] == [30, 34]
    assert facts["duplicates"] == [["class_0/0.jpg", "class_2/twin.jpg"]]
    assert facts["options"]["quality"] == 90
    assert facts["options"]["on_error"] == "quarantine"
    assert facts["fastmoco_version"] == version("fastmoco")
    described = describe(path)
    assert described["num_jpeg"] == 13
    assert "class_0 4, class_1 4, class_2 5" in description_text(described)
    sidecar_path(path).unlink()
    assert describe(path)["class_counts"] == facts["class_counts"]


def test_builtin_textures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmoco.data import textures

    monkeypatch.setattr(textures, "SPLIT_SIZES", {"train": 6000, "test": 20})
    path = tmp_path / "t.beton"
    convert("builtin:textures", path, ConvertConfig(split="test", encoding=Encoding.raw))
    with BetonFile.open(path) as beton:
        assert beton.classes == list(textures.CLASS_NAMES)
        for i in range(20):
            assert beton.labels[i] == textures.label_of("test", i)
        assert np.array_equal(beton.decode(7), textures.render("test", 7))
        assert beton.name(7) == "test/00007"


def _missing(root: Path) -> str:
    return str(root / "missing")


def _empty(root: Path) -> str:
    (root / "empty" / "below").mkdir(parents=True)
    (root / "empty" / "x.txt").write_text("")
    return str(root / "empty")


def _splits(root: Path) -> str:
    write_class_folders(root / "sets" / "train", 1, 1)
    return str(root / "sets")


def _all_bad(root: Path) -> str:
    (root / "bad").mkdir()
    (root / "bad" / "x.jpg").write_bytes(b"no image")
    return str(root / "bad")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (_missing, "no such folder"),
        (_empty, r"holds no images; searched it .*\.jpg .*1 other file"),
        (_splits, "holds the splits train"),
        (_all_bad, r"none of its 1 images is usable; the first is x\.jpg"),
        (lambda _: "builtin:other", "use builtin:textures"),
    ],
)
def test_bad_sources_get_one_line(
    tmp_path: Path, source: Callable[[Path], str], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        convert(source(tmp_path), tmp_path / "out" / "x.beton", ConvertConfig())
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    "options", [{"quality": 0}, {"quality": 101}, {"max_size": 0}, {"workers": -1}]
)
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ConvertConfig(**options)


def test_names_of_other_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not end in \.beton"):
        convert(str(folder), tmp_path / "x.bin", ConvertConfig())


def test_links_in_circles_end(folder: Path) -> None:
    (folder / "class_0" / "up").symlink_to(folder)
    (folder / "class_1" / "again.jpg").symlink_to(folder / "class_0" / "0.jpg")
    (folder / "class_1" / "nowhere.jpg").symlink_to(folder / "nothing")
    os.mkfifo(folder / "class_1" / "pipe.jpg")
    names = open_source(str(folder), SourceOptions()).names
    assert len(names) == 14
    assert {"class_1/again.jpg", "class_1/nowhere.jpg"} <= set(names)


def test_what_a_manifest_names_that_is_no_file_is_not_waited_for(
    folder: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "locked.jpg").symlink_to(tmp_path / "locked.jpg")
    names = ("gone.jpg", "pipe.jpg", "locked.jpg", "/dev/zero", f"{folder}/class_0")
    good = f"{folder}/class_0/0.jpg"
    (tmp_path / "list.csv").write_text("\n".join(("path", *names, good)) + "\n")
    cfg = ConvertConfig(max_bad_fraction=1)
    summary = convert(str(tmp_path / "list.csv"), tmp_path / "x.beton", cfg)
    assert (summary.num_samples, summary.num_quarantined) == (1, 5)
    with (tmp_path / "x.quarantine.csv").open() as file:
        reasons = [row["reason"] for row in csv.DictReader(file)]
    assert reasons[0] == "No such file or directory"
    assert reasons[1] == reasons[3] == "0 bytes are refused (1 to 536870912)"
    assert reasons[2] == "Too many levels of symbolic links"
    assert reasons[4] == "Is a directory"


@pytest.mark.parametrize("is_empty", [True, False])
def test_an_unplugged_disk_is_no_bad_image(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_empty: bool
) -> None:
    target = tmp_path / "x.beton"
    convert(str(folder), target, ConvertConfig())
    before = target.read_bytes()

    def unplugged(*arguments: object) -> object:
        folder.rename(tmp_path / "elsewhere")
        if is_empty:
            folder.mkdir()
        return encoded_batches(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "encoded_batches", unplugged)
        with pytest.raises(OSError, match=rf"^{folder}: cannot be read \(the folder is gone"):
            convert(str(folder), target, ConvertConfig(workers=2, quality=80))
    assert target.read_bytes() == before


def test_a_lost_disk_is_no_bad_image(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all that follows would be left out, and the file replaced by what was read before."""
    target = tmp_path / "x.beton"
    convert(str(folder), target, ConvertConfig())
    before = target.read_bytes()
    real = os.read

    def stale(descriptor: int, size: int) -> bytes:
        if size == (folder / "class_1" / "1.jpg").stat().st_size:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(descriptor, size)

    monkeypatch.setattr(os, "read", stale)
    with pytest.raises(OSError, match=r"cannot be read \(Stale file handle\); .*same command"):
        convert(str(folder), target, ConvertConfig(workers=2, quality=80))
    assert target.read_bytes() == before


@pytest.mark.parametrize("holdout", [0.0, 0.2])
@pytest.mark.parametrize(("bad", "stops"), [(MAX_READ_ERRORS, False), (MAX_READ_ERRORS + 1, True)])
def test_bad_blocks_are_bad_images_and_a_failing_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int, stops: bool, holdout: float
) -> None:
    write_class_folders(tmp_path / "src", classes=1, per_class=12)
    target, real, failing = tmp_path / "x.beton", os.read, iter(range(bad))

    def failing_read(descriptor: int, size: int) -> bytes:
        if (
            "/src/" in os.readlink(f"/proc/self/fd/{descriptor}")
            and next(failing, None) is not None
        ):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, size)

    monkeypatch.setattr(os, "read", failing_read)
    cfg = ConvertConfig(workers=1, holdout=holdout)
    if stops:
        with pytest.raises(OSError, match=r"cannot be read \(Input/output error\); .*same command"):
            convert(str(tmp_path / "src"), target, cfg)
        monkeypatch.undo()
        assert convert(str(tmp_path / "src"), target, cfg).num_quarantined == 0
    else:
        summary = convert(str(tmp_path / "src"), target, cfg)
        assert summary.num_quarantined == (0 if holdout else bad)  # the second pass reads them
