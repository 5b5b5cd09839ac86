"""Thousands of mutated inputs: each is read or refused in a line; none crashes or hangs."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors

from fastmoco import cli
from fastmoco.data.beton_format import MODE_JPEG
from fastmoco.data.encode import encode_batch
from fastmoco.data.images import decode_jpeg
from fastmoco.data.settings import ConvertConfig
from fastmoco.data.sources import SourceOptions, open_source
from fastmoco.data.verify import verify
from fastmoco.detection.annotations import Instance, Scene
from fastmoco.detection.coco import read_coco
from fastmoco.detection.masks import instance_mask, mask_library
from fastmoco.labeling.merging import merge_labels
from fastmoco.labeling.settings import MergeLabelsConfig
from fastmoco.runs.weights_file import read_weights
from tests.faults.crafted_images import CRAFTED
from tests.faults.damage import mutated
from tests.faults.forks import Case, run_cases
from tests.faults.ledger import Ledger, Seen, observe
from tests.optional import require
from tests.pictures import encoded, picture
from tests.runs import write_colors, write_run

SEED = 23
HOW = (
    "one to three of: a flipped bit, a cut, bytes zeroed, deleted, swapped, overwritten, inserted "
    f"or repeated, at drawn positions of %s (seed {SEED})"
)
HOSTILE: list[Any] = [
    *(None, True, "", "text", "1", -1, 0, 0.5, 1e300, -1e300, 2**31, 2**63, 10**40),
    *(float("nan"), float("inf"), [], {}, [[]], [None], [1e308, -1e308], {"size": 1}),
]


def inputs_of(
    ledger: Ledger,
    name: str,
    promise: str,
    how: str,
    count: tuple[int, int],
    case: Callable[[np.random.Generator], tuple[str, Seen]],
    gap: str = "",
) -> None:
    """Run a campaign of ``count`` cases (all, quick); ``case`` draws an input and reads it."""
    campaign = ledger.campaign(name, promise=promise, how=how, unit="inputs", gap=gap)
    for part in campaign.parts(max(1, count[0] // 500)):

        def run(number: int, first: int = 500 * part.number) -> Case:
            place, seen = case(np.random.default_rng([SEED, first + number]))
            return Case(seen.outcome, seen.seconds, place, str(seen.result)[:300])

        run_cases(part, count[1] if part.quick else min(500, count[0]), run)
    campaign.check()


def drawn(seeds: Mapping[str, bytes], random: np.random.Generator) -> tuple[str, bytes]:
    """A seed's name and a mutation of it."""
    name = str(random.choice(list(seeds)))
    return name, mutated(seeds[name], random)[1]


def hostile(value: Any, random: np.random.Generator) -> Any:
    """JSON with one value, at a drawn place, replaced by a hostile one, removed or doubled."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.15:
        return HOSTILE[int(random.integers(len(HOSTILE)))]
    changed = value.copy()
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[int(random.integers(len(keys)))]
    action = random.random()
    if action < 0.1:
        del changed[key]
    elif action < 0.2 and isinstance(changed, list):
        changed.append(changed[key])
    else:
        changed[key] = hostile(value[key], random)
    return changed


# ------------------------------------------------------------------------------------- images

CFG = ConvertConfig()


def stored_or_reason(data: bytes) -> str:
    """Encode an image as `convert` does; what is stored decodes to the size that is said."""
    (image,) = encode_batch(lambda _: data, [0], [True], CFG).images
    if isinstance(image, str):
        assert image
        assert "\n" not in image
        return "refused"
    if image.mode == MODE_JPEG:
        assert decode_jpeg(image.blob).shape == (image.height, image.width, 3)
    else:
        assert len(image.blob) == image.height * image.width * 3
    return "read"


def image_case(
    seeds: Mapping[str, bytes],
) -> Callable[[np.random.Generator], tuple[str, Seen]]:
    def case(random: np.random.Generator) -> tuple[str, Seen]:
        name, data = drawn(seeds, random)
        seen = observe(lambda: stored_or_reason(data), refusals=())
        if seen.outcome != "done":
            return name, seen
        return name, Seen(seen.result, seen.result, seen.seconds)

    return case


PLAIN = ("plain.jpg", "gray.jpg", "cmyk.jpg", "ycck.jpg", "rgb.jpg", "progressive.jpg")
JPEGS = (*PLAIN, "restarts.jpg", "arithmetic.jpg", "turned.jpg", "odd_sampling.jpg", "large.jpg")
OTHERS = (
    *("plain.png", "palette.png", "alpha.png", "sixteen_bit_gray.png", "animated.gif"),
    *("plain.webp", "animated.webp", "plain.bmp", "plain.tif", "pages.tif", "plain.ppm"),
)


def test_jpegs(ledger: Ledger) -> None:
    inputs_of(
        ledger,
        "inputs_jpeg",
        "A damaged JPEG is stored readable or listed with a reason.",
        HOW % f"{len(JPEGS)} kinds of JPEG",
        (10_000, 150),
        image_case({name: CRAFTED[name][0] for name in JPEGS}),
    )


def test_other_images(ledger: Ledger) -> None:
    inputs_of(
        ledger,
        "inputs_images",
        "A damaged image of another format is stored readable or listed with a reason.",
        HOW % "PNG, GIF, WebP, BMP, TIFF and PPM files",
        (3000, 60),
        image_case({name: CRAFTED[name][0] for name in OTHERS}),
    )


# ------------------------------------------------------------------------------------- sources


def tar_of(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def array_of(**options: Any) -> bytes:
    file, pixels = io.BytesIO(), np.stack([picture(i, 12, 12) for i in range(4)])
    np.savez(file, **options, images=pixels) if options else np.save(file, pixels)
    return file.getvalue()


def source_seeds() -> dict[str, bytes]:
    jpegs = {f"{i}.jpg": encoded(picture(i, 16, 16)) for i in range(3)}
    labels = {f"{i}.cls": str(i % 2).encode() for i in range(3)}
    rows = "".join(f"{i}.jpg,class {i % 2}\n" for i in range(3))
    return {
        "x.tar": tar_of(dict(sorted({**jpegs, **labels}.items()))),
        "x.csv": f"path,label\n{rows}".encode(),
        "x.npy": array_of(),
        "x.npz": array_of(labels=np.arange(4)),
    }


def test_sources(ledger: Ledger, tmp_path: Path) -> None:
    """Tar shards, manifests and arrays, listed and loaded as `convert` does it."""
    seeds = source_seeds()
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(picture(i, 16, 16)))

    def case(random: np.random.Generator) -> tuple[str, Seen]:
        name, data = drawn(seeds, random)
        (tmp_path / name).write_bytes(data)

        def read() -> int:
            samples = open_source(str(tmp_path / name), SourceOptions())
            keys = list(samples.keys[:])
            return len(encode_batch(samples.load, keys, [False] * len(keys), CFG).images)

        return name.partition(".")[2], observe(read)

    inputs_of(
        ledger,
        "inputs_sources",
        "A damaged tar shard, manifest or array file is read in part or refused in one line.",
        HOW % "a tar, CSV, npy and npz file",
        (3000, 40),
        case,
    )


# ------------------------------------------------------------------------------------- labels


@pytest.fixture(scope="module")
def requested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A request of 6 of 12 images, and a table that grants all of them."""
    folder = tmp_path_factory.mktemp("merge")
    write_run(folder / "run")
    write_colors(folder / "images", seed=0, per_class=4)
    names = sorted(str(one.relative_to(folder)) for one in folder.rglob("*.jpg"))
    (folder / "list.csv").write_text("\n".join(["path", *names]) + "\n")
    assert cli.main(["convert", str(folder / "list.csv"), str(folder / "set.beton")]) == 0
    options = [f"out={folder / 'asked'}", "count=6", "mode=random", "max_similarity=1"]
    data = f"data.train={folder / 'set.beton'}"
    assert cli.main(["request", str(folder / "run"), data, *options]) == 0
    rows = (folder / "asked/request.csv").read_text().splitlines()[1:]
    table = [f"{row.split(',')[0]},{row.split(',')[1]},kind {i % 2}" for i, row in enumerate(rows)]
    return folder, "\n".join(["sample_id,path,label", *table]) + "\n"


def test_tables_of_labels(ledger: Ledger, requested: tuple[Path, str]) -> None:
    folder, table = requested
    seeds = {
        "comma": table.encode(),
        "semicolon": table.replace(",", ";").encode(),
        "UTF-16": table.encode("utf-16"),
        "quoted": table.replace(",kind", ',"kind').replace("\n", '"\n').encode(),
    }
    out = folder / "out.beton"

    def case(random: np.random.Generator) -> tuple[str, Seen]:
        name, data = drawn(seeds, random)
        (folder / "granted.csv").write_bytes(data)
        cfg = MergeLabelsConfig(labels=folder / "granted.csv", out=out)
        cfg.data.train = folder / "set.beton"

        def merge() -> int:
            merge_labels(folder / "asked", cfg)
            return verify(out).num_samples

        seen = observe(merge)
        is_lost = seen.outcome == "done" and seen.result != 12
        return name, Seen("silent" if is_lost else seen.outcome, seen.result, seen.seconds)

    inputs_of(
        ledger,
        "inputs_labels",
        "A damaged table of labels is merged into a complete file or refused in one line.",
        HOW % "a CSV with commas, semicolons, quotes or in UTF-16",
        (2000, 20),
        case,
    )


# ------------------------------------------------------------------------------------- detection


def annotations() -> dict[str, Any]:
    def instance(number: int) -> dict[str, Any]:
        square = [4.0, 4.0, 20.0, 4.0, 20.0, 16.0, 4.0, 16.0]
        more = {"iscrowd": 0, "area": 192.0, "segmentation": [square]}
        return {
            "id": number,
            "image_id": number % 3,
            "category_id": 1,
            "bbox": [4, 4, 16, 12],
        } | more

    sizes = {"height": 24, "width": 32}
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", **sizes} for i in range(3)],
        "categories": [{"id": 1, "name": "one"}, {"id": 7, "name": "two"}],
        "annotations": [instance(i) for i in range(5)],
    }


def test_annotations(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / f"images/{i}.jpg").write_bytes(encoded(picture(i, 24, 32)))
    good, path = annotations(), tmp_path / "annotations.json"
    text = json.dumps(good).encode()

    def case(random: np.random.Generator) -> tuple[str, Seen]:
        if random.random() < 0.5:
            kind, data = "bytes", mutated(text, random)[1]
        else:
            kind, data = "values", json.dumps(hostile(good, random)).encode()
        path.write_bytes(data)
        read = lambda: len(read_coco(path, images=tmp_path / "images", option="images").scenes)  # noqa: E731
        return kind, observe(read)

    inputs_of(
        ledger,
        "inputs_annotations",
        "A damaged annotation file in COCO's format is read or refused in one line.",
        f"{HOW % 'the text'}, or one of its values replaced by a hostile one",
        (3000, 100),
        case,
    )


def test_masks(ledger: Ledger) -> None:
    require("faster_coco_eval")
    square = np.zeros((24, 32), np.uint8, order="F")
    square[4:16, 4:20] = 1
    runs = mask_library().encode(square)
    plain = [100, *[12, 12] * 15, 12, 296]
    seeds: list[Any] = [
        {"size": [24, 32], "counts": runs["counts"].decode()},
        {"size": [24, 32], "counts": plain},
        [[4.0, 4.0, 20.0, 4.0, 20.0, 16.0, 4.0, 16.0]],
    ]

    def case(random: np.random.Generator) -> tuple[str, Seen]:
        number = int(random.integers(len(seeds)))
        mask = seeds[number]
        if number == 0 and random.random() < 0.7:
            mask = {**mask, "counts": mutated(mask["counts"].encode(), random)[1].decode("latin1")}
        else:
            mask = hostile(mask, random)
        scene = Scene(image=Path("0.jpg"), height=24, width=32, source="x.json")
        one = Instance(box=(4, 4, 20, 16), label=1, mask=mask)
        kind = ("text", "runs", "polygons")[number]
        return kind, observe(lambda: int(instance_mask(one, scene).sum()))

    inputs_of(
        ledger,
        "inputs_masks",
        "A damaged mask becomes one of the image's size or is refused in one line.",
        f"{HOW % 'run lengths as text'}, or a value of run lengths or polygons replaced",
        (3000, 100),
        case,
    )


# ------------------------------------------------------------------------------------- weights


def test_weights(ledger: Ledger, tmp_path: Path) -> None:
    """Foreign safetensors; pickles are read in a child, which the zoo of pickles tries."""
    tensors = {"conv1.weight": torch.randn(4, 3, 3, 3), "fc.bias": torch.randn(9).half()}
    seeds = {"safetensors": save_tensors(tensors, {"format": "pt"})}
    path = tmp_path / "x.safetensors"

    def case(random: np.random.Generator) -> tuple[str, Seen]:
        name, data = drawn(seeds, random)
        path.write_bytes(data)
        return name, observe(lambda: len(read_weights(path).tensors))

    inputs_of(
        ledger,
        "inputs_safetensors",
        "A damaged foreign safetensors file is read or refused in one line.",
        HOW % "a file of two tensors",
        (1000, 60),
        case,
    )
