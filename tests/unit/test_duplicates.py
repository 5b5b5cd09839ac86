"""Hashes of images and groups of copies: what a copy is, and that none is missed."""

import numpy as np
import pytest
from PIL import Image

from fastmoco.data.duplicates import copy_groups, near_pairs
from fastmoco.data.image_hash import hash_image
from fastmoco.data.images import UPRIGHT
from tests.pictures import encoded, picture


def distance(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def test_copies_have_near_hashes_and_other_pictures_have_not() -> None:
    pixels = [picture(seed, 211, 301) for seed in range(6)]
    hashes = [hash_image(one).difference for one in pixels]
    for one, expected in zip(pixels, hashes, strict=True):
        image = Image.fromarray(one)
        copies = [encoded(one, quality=quality) for quality in (50, 70, 95)]
        for scale in (0.5, 0.7, 1.5, 2.0):
            size = round(scale * image.width), round(scale * image.height)
            copies.append(encoded(np.asarray(image.resize(size, Image.Resampling.BICUBIC))))
        copies.append(encoded(one, "PNG"))
        assert max(distance(hash_image(copy).difference, expected) for copy in copies) <= 3
    others = [distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(others) > 10


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_image_turned_by_exif_has_the_hash_of_the_upright_one(orientation: int) -> None:
    pixels, exif = picture(1, 97, 141), Image.Exif()
    exif[274] = orientation
    upright = np.asarray(Image.fromarray(pixels).transpose(UPRIGHT[orientation]))
    turned = hash_image(encoded(pixels, quality=95, exif=exif))
    assert distance(turned.difference, hash_image(upright).difference) <= 1


def test_the_content_is_that_of_the_picture() -> None:
    jpeg, pixels = encoded(picture(1)), picture(2)
    assert hash_image(jpeg).content == hash_image(jpeg + b"PK\x03\x04").content
    assert hash_image(encoded(pixels, "PNG")).content == hash_image(encoded(pixels, "BMP")).content
    assert hash_image(jpeg).content != hash_image(encoded(picture(1), quality=80)).content


def test_pages_and_slopes_are_flat_and_pictures_are_not() -> None:
    page = np.full((90, 120, 3), 250, np.uint8)
    page[40:44, 30:50] = 0
    assert hash_image(page).is_flat
    assert not hash_image(picture(3)).is_flat
    noise = np.random.default_rng(0).integers(120, 124, (90, 120, 3), dtype=np.uint8)
    assert hash_image(noise).is_flat


def test_all_near_pairs_are_found_and_no_others() -> None:
    random = np.random.default_rng(0)
    hashes = list(random.integers(0, 2**64, 60, dtype=np.uint64))
    for one in hashes[:]:
        for count in range(1, 6):
            bits = random.choice(64, count, replace=False)
            hashes.append(one ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64)))
    distinct = np.unique(hashes)
    numbers = distinct.tolist()
    expected = {
        (i, j) for j, b in enumerate(numbers) for i in range(j) if distance(numbers[i], b) <= 3
    }
    found = {
        (min(a, b), max(a, b))
        for one, other in near_pairs(distinct)
        for a, b in zip(one.tolist(), other.tolist(), strict=True)
    }
    assert found == expected
    assert len(expected) > 200


def test_groups_are_chains_of_copies() -> None:
    # Each of the first three is 3 bits from the one before; the fourth is 4 bits from the first.
    difference = np.array([0, 0b111, 0b111111, 0b1111 << 20, 0, 0], np.uint64)
    is_flat = np.array([0, 0, 0, 0, 1, 1], bool)
    content = np.array([1, 2, 3, 4, 5, 5], np.uint64)
    assert copy_groups(content, difference, is_flat).tolist() == [0, 0, 0, 3, 4, 4]
    content[4] = 2  # the same file as the second, flat or not
    assert copy_groups(content, difference, is_flat).tolist() == [0, 0, 0, 3, 0, 5]
