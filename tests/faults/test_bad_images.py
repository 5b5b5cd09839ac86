"""Every crafted image meets its fate: kept as it is, encoded anew, or listed with a reason."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import ConvertConfig, convert
from fastmoco.data.sources.samples import BROKEN_LINK
from fastmoco.data.verify import verify
from tests.faults.crafted_images import CRAFTED, PIXELS, TURNED

# Not the picture that the others show, or one that lost much of it on the way.
_OTHER_PICTURES = {"large.jpg", "arithmetic.jpg", "palette.png", "gray.jpg", "gray_alpha.png"}
_OTHER_PICTURES |= {"sixteen_bit_gray.png", "one_bit.png", "turned.jpg", "odd_sampling.jpg"}
_OTHER_PICTURES |= {f"turned_{orientation}.jpg" for orientation in TURNED}
_OTHER_PICTURES |= {"ycck.jpg", "animated.gif", "animated.webp", "pages.tif"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("crafted")
    for name, (blob, _) in CRAFTED.items():
        (root / name).write_bytes(blob)
    (root / "gone.jpg").symlink_to(root / "nothing")
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")  # reading it would wait for ever
    return root


@pytest.mark.parametrize("workers", [1, 2])
def test_every_image_meets_its_fate(source: Path, tmp_path: Path, workers: int) -> None:
    target = tmp_path / "x.beton"
    summary = convert(str(source), target, ConvertConfig(workers=workers, max_bad_fraction=1))
    fates = {}
    with BetonFile.open(target) as beton:
        for sample in range(len(beton)):
            name, blob = beton.name(sample), CRAFTED[beton.name(sample)][0]
            how = "copied" if blob.startswith(beton.blob(sample)) else "encoded"
            fates[name] = f"{how} {beton.widths[sample]} x {beton.heights[sample]}"
            pixels = beton.decode(sample).astype(int)
            if name not in _OTHER_PICTURES:
                assert np.abs(pixels - PIXELS).mean() < 4, name
    with (tmp_path / "x.quarantine.csv").open(
        encoding="utf-8", errors="surrogateescape", newline=""
    ) as file:
        fates |= {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert fates.pop("gone.jpg") == BROKEN_LINK
    assert fates == {name: fate for name, (_, fate) in CRAFTED.items()}
    assert summary.num_quarantined + summary.num_samples == len(CRAFTED) + 1
    verify(target)
    print(f"{len(CRAFTED)} crafted images: {summary.num_quarantined} refused, the rest as expected")


def test_kinds_show_the_picture_that_pillow_shows(source: Path, tmp_path: Path) -> None:
    """Of the pictures that differ from the others, what they should look like."""
    target = tmp_path / "x.beton"
    convert(str(source), target, ConvertConfig(max_bad_fraction=1))
    with BetonFile.open(target) as beton:
        stored = {beton.name(i): beton.decode(i).astype(int) for i in range(len(beton))}
    for name in ("gray.jpg", "one_bit.png", "palette.png", "arithmetic.jpg", "animated.gif"):
        expected = np.asarray(Image.open(io.BytesIO(CRAFTED[name][0])).convert("RGB"), int)
        assert np.abs(stored[name] - expected).mean() < 7, name
    assert np.abs(stored["turned.jpg"] - np.rot90(PIXELS, -1)).mean() < 4
