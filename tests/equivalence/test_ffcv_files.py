"""FFCV reads what we write, and we read what FFCV wrote: equal labels, equal pixels of equal bytes.

FFCV runs in processes of its own: it sets torch's number of threads for the whole process, and
Numba's clean-up of its compiled pipelines raises at exit.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import ConvertConfig, Encoding, convert
from fastmoco.data.images import decode_jpeg
from fastmoco.data.part import write_part
from fastmoco.data.verify import verify
from tests.limits import HANG_SECONDS
from tests.optional import require
from tests.pictures import encoded, picture


@pytest.fixture(scope="module", autouse=True)
def ffcv() -> None:
    require("ffcv")


COUNT = 37
SHAPE = (40, 56)

# Reads our files by FFCV's loader, with either of its caches, and decodes our blobs by its decoder;
# then writes a file of its own in each mode.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.libffcv import imdecode
from ffcv.loader import Loader, OrderOption
from ffcv.writer import DatasetWriter
from fastmoco.data.beton import BetonFile
from tests.pictures import picture

class Pictures:
    def __len__(self):
        return count
    def __getitem__(self, index):
        return picture(index, *shape), index % 5

def read(path, os_cache):
    loader = Loader(
        str(path), batch_size=8, num_workers=1, os_cache=os_cache, order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
    )
    batches = [(image.copy(), label.copy()) for image, label in loader]
    return [np.concatenate(column) for column in zip(*batches)]

def decode(blob):
    pixels = np.zeros((*shape, 3), np.uint8)
    assert imdecode(np.frombuffer(blob, np.uint8), pixels, *shape, *shape) == 0
    return pixels

if __name__ == "__main__":
    root, count, shape = Path(sys.argv[1]), int(sys.argv[2]), (int(sys.argv[3]), int(sys.argv[4]))
    out = {}
    names = ("jpeg", True), ("jpeg", False), ("raw", True), ("kinds", True), ("merged", True)
    for name, os_cache in names:
        images, labels = read(root / f"{name}.beton", os_cache)
        out |= {f"{name}_{os_cache}_images": images, f"{name}_{os_cache}_labels": labels}
    with BetonFile.open(root / "jpeg.beton") as beton:
        out["decoded"] = np.stack([decode(beton.blob(i)) for i in range(count)])
    np.savez(root / "read.npz", **out)
    for mode in "jpg", "raw":
        fields = {"image": RGBImageField(write_mode=mode), "label": IntField()}
        writer = DatasetWriter(f"{root}/ffcv_{mode}.beton", fields, 1 << 21, num_workers=2)
        writer.from_indexed_dataset(Pictures(), chunksize=3)
"""


def write_kinds(root: Path) -> None:
    """One picture as each kind of JPEG that is copied, and as a PNG, which is kept raw."""
    pixels = picture(0, *SHAPE)
    kinds = {
        "baseline.jpg": encoded(pixels, quality=95),
        "progressive.jpg": encoded(pixels, quality=95, progressive=True),
        "restarts.jpg": encoded(pixels, quality=95, restart_marker_blocks=2),
        "gray.jpg": encoded(pixels[..., 0], quality=95),
        "stowaway.jpg": encoded(pixels, quality=95) + b"PK",
        "raw.png": encoded(pixels, "PNG"),
    }
    for sampling in ("444", "422", "420", "440", "411"):
        kinds[f"sampled_{sampling}.jpg"] = bytes(
            simplejpeg.encode_jpeg(pixels.copy(), quality=95, colorsubsampling=sampling)
        )
    root.mkdir()
    for name, blob in kinds.items():
        (root / name).write_bytes(blob)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds our files, what FFCV read in them, and FFCV's own."""
    root = tmp_path_factory.mktemp("ffcv")
    for index in range(COUNT):
        source = root / "src" / str(index % 5)
        source.mkdir(parents=True, exist_ok=True)
        (source / f"{index}.jpg").write_bytes(encoded(picture(index, *SHAPE), quality=90))
    write_kinds(root / "kinds")
    options = ConvertConfig(page_bytes=1 << 21, lossless=True)
    convert(str(root / "kinds"), root / "kinds.beton", options)
    for encoding in Encoding:
        cfg = ConvertConfig(encoding=encoding, page_bytes=1 << 21)
        convert(str(root / "src"), root / f"{encoding.value}.beton", cfg)
    with BetonFile.open(root / "jpeg.beton") as beton:
        ids, other = np.arange(COUNT)[::-1], (beton.labels + 1) % 5
        write_part(
            root / "merged.beton", beton, ids, labels=other[ids], classes=beton.classes, origin={}
        )
    command = [sys.executable, "-c", SCRIPT, *map(str, (root, COUNT, *SHAPE))]
    top = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=top, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize(("name", "os_cache"), [("jpeg", True), ("jpeg", False), ("raw", True)])
def test_ffcv_reads_our_files(folder: Path, name: str, os_cache: bool) -> None:
    read = np.load(folder / "read.npz")
    images, labels = read[f"{name}_{os_cache}_images"], read[f"{name}_{os_cache}_labels"]
    with BetonFile.open(folder / f"{name}.beton") as beton:
        ours = np.stack([beton.decode(i) for i in range(COUNT)])
        assert np.array_equal(labels[:, 0], beton.labels)
    if name == "raw":
        assert np.array_equal(images, ours)
    else:
        assert np.array_equal(images, read["decoded"])
        # Its fast inverse DCT differs a little from the accurate one that we use.
        assert np.abs(images.astype(int) - ours).mean(axis=(1, 2, 3)).max() < 3


def test_ffcv_reads_files_with_other_labels(folder: Path) -> None:
    """As `merge-labels` writes them; here in another order, too."""
    read = np.load(folder / "read.npz")
    assert np.array_equal(read["merged_True_images"][::-1], read["jpeg_True_images"])
    with BetonFile.open(folder / "jpeg.beton") as beton:
        assert np.array_equal(read["merged_True_labels"][::-1, 0], (beton.labels + 1) % 5)


def test_ffcv_reads_every_kind_that_is_copied(folder: Path) -> None:
    images = np.load(folder / "read.npz")["kinds_True_images"].astype(int)
    with BetonFile.open(folder / "kinds.beton") as beton:
        assert len(images) == len(beton) == 11
        for i, found in enumerate(images):
            path = folder / "kinds" / beton.name(i)
            pillow = np.asarray(Image.open(path).convert("RGB"), int)
            assert np.abs(found - pillow).mean() < 3, path.name
            if path.suffix == ".jpg":
                assert path.read_bytes().startswith(beton.blob(i)), path.name
            else:
                assert np.array_equal(found, pillow)


@pytest.mark.parametrize("write_mode", ["jpg", "raw"])
def test_we_read_files_of_ffcv(folder: Path, write_mode: str) -> None:
    path = folder / f"ffcv_{write_mode}.beton"
    with pytest.warns(UserWarning, match="has no checksums"):
        beton = BetonFile.open(path)
    with beton:
        assert not beton.has_checksums
        assert beton.name(3) == "sample 3"
        assert beton.classes == []
        assert beton.labels.tolist() == [index % 5 for index in range(COUNT)]
        for index in range(COUNT):
            pixels = beton.decode(index)
            if write_mode == "raw":
                assert np.array_equal(pixels, picture(index, *SHAPE))
            else:
                assert np.array_equal(pixels, decode_jpeg(beton.blob(index)))
                assert np.abs(pixels.astype(int) - picture(index, *SHAPE)).mean() < 4
    with pytest.warns(UserWarning, match="has no checksums"):
        assert verify(path).num_samples == COUNT
