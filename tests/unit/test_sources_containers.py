"""Tar shards in WebDataset's layout, and arrays of NumPy and torch."""

import gzip
import io
import json
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastmoco.data.jpeg_markers import ImageError
from fastmoco.data.sources import SourceOptions, array_files, open_source
from tests.pictures import encoded, picture
from tests.sample_sets import labels_by_name, opened, pixels_of

pytestmark = pytest.mark.usefixtures("pickles_here")


def refused(source: object, message: str, **options: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        open_source(str(source), SourceOptions(**options))
    assert "\n" not in str(caught.value)


def png(seed: int) -> bytes:
    return encoded(picture(seed), "PNG")


def write_shard(path: Path, *files: tuple[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards: labels in either order and of both kinds, two keys without, and other files."""
    folder = tmp_path / "shards"
    write_shard(
        folder / "train-0008.tar",
        ("./b.PNG", png(0)),
        ("./b.cls", b"2\n"),
        ("./b.json", b'{"label": 1}'),
        ("a/0.json", json.dumps({"label": 0, "text": "x"}).encode()),
        ("a/0.txt", b"a caption"),
        ("a/0.png", png(1)),
    )
    write_shard(
        folder / "train-0010.tar",
        ("x.seg.png", png(8)),
        ("x.jpg", png(2)),
        ("alone.cls", b"1"),
        ("._x.png", b"hidden"),
        ("y.webp", png(3)),
        ("y.json", b'{"text": "no label"}'),
    )
    return folder


@pytest.mark.parametrize(
    "source", ["", "/*.tar", "/train-{0008,0010}.tar", "/train-00{08..10}.tar"]
)
def test_shards(shards: Path, source: str) -> None:
    if ".." in source:
        write_shard(shards / "train-0009.tar", ("extra.png", png(4)))
    else:
        (shards / "train-0008_stats.json").write_text("{}")
    samples = opened(f"{shards}{source}")
    labels = labels_by_name(samples)
    images = dict(zip(samples.names, pixels_of(samples), strict=True))
    if ".." in source:
        assert list(labels)[2] == "train-0009/extra.png"
        del labels["train-0009/extra.png"]
    assert list(labels.items()) == [
        ("train-0008/b.png", "2"),
        ("train-0008/a/0.png", "0"),
        ("train-0010/x.jpg", None),
        ("train-0010/y.webp", None),
    ]
    for seed, name in enumerate(labels):
        assert np.array_equal(images[name], picture(seed))
    assert len(samples.stamps) == (3 if ".." in source else 2)
    others = 4  # x.seg.png, ._x.png, 0.txt and alone.cls
    assert samples.passed_over.total == others + (not source)
    assert samples.keys[0] != samples.names[0]


def test_shards_with_class_names_and_of_one_name_in_two_folders(tmp_path: Path) -> None:
    write_shard(tmp_path / "a" / "0.tar", ("x.png", png(0)), ("x.cls", b"dog"))
    write_shard(tmp_path / "b" / "0.tar", ("x.png", png(1)), ("x.json", b'{"label": "cat"}'))
    samples = opened(f"{tmp_path}/{{b,a}}/0.tar")
    assert labels_by_name(samples) == {"b/0/x.png": "cat", "a/0/x.png": "dog"}
    assert opened(tmp_path / "a" / "0.tar").names == ["0/x.png"]
    refused(tmp_path / "a", "takes no labels=x.txt", labels="x.txt")


def test_shards_named_by_wordnet_ids_are_classes(tmp_path: Path) -> None:
    """So does ILSVRC2012_img_train.tar unpack."""
    write_shard(tmp_path / "n02" / "x.tar", ("n02_1.JPEG", png(0)))
    assert labels_by_name(opened(tmp_path / "n02")) == {"x/n02_1.jpeg": None}
    for seed, wnid in enumerate(("n00000002", "n00000001")):
        write_shard(tmp_path / "train" / f"{wnid}.tar", (f"{wnid}_7.JPEG", png(seed)))
    samples = opened(tmp_path / "train")
    expected = {f"{wnid}/{wnid}_7.jpeg": wnid for wnid in ("n00000001", "n00000002")}
    assert labels_by_name(samples) == expected
    assert np.array_equal(pixels_of(samples)[1], picture(0))
    write_shard(tmp_path / "all.tar", ("n00000001.tar", b"x"), ("n00000002.tar", b"x"))
    refused(tmp_path / "all.tar", "unpack tar files within a tar file first")


def test_damaged_shards_are_refused(shards: Path) -> None:
    path = shards / "train-0010.tar"
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        image = archive.getmember("y.webp")
        ends = [member.offset for member in archive.getmembers()]
    cuts = {image.offset_data + 1: "cut", ends[-1]: f"cut or damaged at byte {ends[-1]}"}
    for size, message in cuts.items():
        path.write_bytes(data[:size])
        refused(shards, rf"train-0010\.tar: is .*{message}")
    path.write_bytes(data[: ends[2]] + b"\xff" * 512 + data[ends[2] + 512 :])
    refused(shards, f"cut or damaged at byte {ends[2]}")
    path.write_bytes(b"no tar" * 1000)
    refused(shards, r"train-0010\.tar: is cut or not a tar file")
    path.write_bytes(gzip.compress(data))
    refused(shards, r"is compressed; unpack it first: gunzip .*train-0010\.tar")
    packed = path.rename(shards / "x.tar.gz")
    refused(packed, r"unpack it first: gunzip .*x\.tar\.gz")
    packed.rename(shards.parent / packed.name)  # else the folder is refused for it
    write_shard(path, ("a.png", png(0)), ("a.png", png(1)))
    refused(path, r"holds a\.png twice")
    write_shard(path, ("a.json", b"{"), ("a.png", png(1)))
    refused(path, r"a\.json is damaged")
    write_shard(path, ("a.txt", b""))
    refused(path, "no images in 1 shards; searched for KEY.EXTENSION")


def test_bad_images_of_a_shard_are_bad_images(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_shard(path, ("empty.png", b""), ("a.png", png(0)))
    samples = opened(path)
    with pytest.raises(ImageError, match="0 bytes are refused"):
        samples.load(samples.keys[0])
    path.write_bytes(path.read_bytes()[:1600])
    with pytest.raises(ImageError, match=r"x\.tar ends within the image"):
        samples.load(samples.keys[1])


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 9, 3), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.int32) % 3


def write_arrays(path: Path, arrays: object) -> None:
    if path.suffix == ".pt":
        torch.save(arrays, path)
    elif isinstance(arrays, dict):
        np.savez_compressed(path, **arrays)
    else:
        np.save(path, arrays)


def tensors(**arrays: NDArray[np.generic]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("name", "arrays", "labeled"),
    [
        ("x.npy", IMAGES, False),
        ("x.npy", IMAGES.transpose(0, 3, 1, 2), False),
        ("x.npz", {"X": IMAGES, "y": LABELS}, True),
        ("x.npz", {"images": IMAGES, "extra": LABELS}, False),
        ("x.npz", {"x_test": IMAGES[:1], "x_train": IMAGES, "y_train": LABELS[:, None]}, True),
        ("x.npz", {"train_images": IMAGES, "train_labels": LABELS.astype(str)}, True),
        ("x.pt", torch.from_numpy(IMAGES), False),
        ("x.pt", (torch.from_numpy(IMAGES), torch.from_numpy(LABELS)), True),
        ("x.pt", tensors(data=IMAGES.transpose(0, 3, 1, 2).copy(), targets=LABELS), True),
        ("x.pt", {"images": torch.from_numpy(IMAGES), "labels": LABELS.tolist()}, True),
    ],
)
def test_arrays(tmp_path: Path, name: str, arrays: object, labeled: bool) -> None:
    write_arrays(tmp_path / name, arrays)
    samples = opened(tmp_path / name)
    assert samples.names[:2] + samples.names[-1:] == ["00", "01", "11"]
    assert samples.labels.tolist() == (LABELS.tolist() if labeled else [-1] * 12)
    assert samples.classes == (["0", "1", "2"] if labeled else [])
    assert np.array_equal(pixels_of(samples), IMAGES)
    assert samples.load(samples.keys[0]).flags.writeable
    (tmp_path / "names.txt").write_text("cat\ndog\n" * 6)
    named = opened(tmp_path / name, labels=str(tmp_path / "names.txt"))
    assert list(labels_by_name(named).values()) == ["cat", "dog"] * 6
    assert len(named.stamps) == 2


@pytest.mark.parametrize("shape", [(12, 8, 27), (12, 8, 27, 1), (12, 1, 8, 27)])
def test_gray_arrays_become_rgb(tmp_path: Path, shape: tuple[int, ...]) -> None:
    gray = IMAGES.reshape(shape)
    np.save(tmp_path / "x.npy", gray)
    images = pixels_of(opened(tmp_path / "x.npy"))
    assert np.array_equal(images, np.repeat(gray.reshape(12, 8, 27, 1), 3, axis=3))


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        (
            "x.npy",
            IMAGES / np.float32(255),
            r"are float32, not uint8; convert them to levels",
        ),
        ("x.pt", torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16), "images are float32, not uint8"),
        ("x.npy", IMAGES[0], r"of shape \(8, 9, 3\); save \(N, H, W, 3\)"),
        ("x.npy", IMAGES[:0], r"of shape \(0, 8, 9, 3\)"),
        ("x.npy", IMAGES[..., [0, 1, 2, 0]], r"of shape \(12, 8, 9, 4\)"),
        ("x.npy", np.array([{}]), "not an array file"),
        ("x.npz", {"x": IMAGES, "y": LABELS[:5]}, "5 labels for 12 images; give one for each"),
        ("x.npz", {"x": IMAGES, "y": np.eye(12)}, r"labels are float64 of shape \(12, 12\)"),
        (
            "x.npz",
            {"x_test": IMAGES},
            r"holds x_test; name the images images, x, data",
        ),
        ("x.pt", {"images": Path("x")}, "holds a class of other code; save tensors"),
        ("x.pt", {"images": 3}, "holds a int; save tensors"),
        ("x.pt", (torch.zeros(1), torch.zeros(1), torch.zeros(1)), "holds 3 tensors"),
    ],
)
def test_arrays_that_are_no_images_are_refused(
    tmp_path: Path, name: str, arrays: object, message: str
) -> None:
    write_arrays(tmp_path / name, arrays)
    refused(tmp_path / name, message)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
    refused(tmp_path / name, rf"{name}: ")


HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 8, 8, 3), }"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(2,", "(2000000000000,"),
        ("(2, 8", f"({1 << 40}, {1 << 40}"),
        ("(2, 8, 8, 3)", f"({1 << 32}, {1 << 32}, 8, 8)"),
        ("(2,", "(-2,"),
        ("(2, 8", "(-2, -8"),
        ("'|u1'", "'<U99999999'"),
        ("'|u1'", "[('a', '|O')]"),
        ("'|u1'", "["),
        ("{", "(" * 900),
        ("'|u1'", "__import__('os').mkdir('never')"),
        ("{'descr", "   \n\n\t{'"),
    ],
)
def test_headers_that_claim_or_call_ask_for_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = HEADER.replace(old, new, 1).encode()
    data = b"\x93NUMPY\1\0" + struct.pack("<H", len(text) + 1) + text + b"\n" + bytes(2 * 8 * 8 * 3)
    (tmp_path / "x.npy").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", data)
    tracemalloc.start()
    for name in ("x.npy", "x.npz"):
        refused(tmp_path / name, f"{name}: is damaged")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20
    assert not (tmp_path / "never").exists()


def test_arrays_larger_than_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=IMAGES)
    monkeypatch.setattr(array_files, "free_bytes", lambda: 1000)
    refused(tmp_path / "x.npz", "x needs 0.0 GB of memory, 0.0 are free")


def test_labels_of_arrays_that_hold_images_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    torch.save((torch.from_numpy(IMAGES), torch.from_numpy(LABELS)), tmp_path / "y.pt")
    refused(tmp_path / "x.npy", "holds images and labels", labels=str(tmp_path / "y.pt"))
