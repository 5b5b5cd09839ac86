"""Every random stream gives bit for bit what it gave at commit 6d9686d, before the modules moved.

``draws.json`` holds for each stream the first values, to read, and the SHA-256 of all. A value that
differs means that runs, labeled parts or requests of earlier versions cannot be made again: change
the code, not the file.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from fastmoco import cli
from fastmoco.data.shards import shard_samples
from fastmoco.detection.annotations import Instance, Scene, SceneSet
from fastmoco.detection.fitting import seed_region_sampling
from fastmoco.detection.samples import step_places, training_sample
from fastmoco.detection.settings import DetectConfig, DetectionTask
from fastmoco.draws.device import (
    fork,
    permutation,
    stream_integers,
    stream_uniforms,
    uniform,
)
from fastmoco.draws.host import draw_keys, epoch_order, random_resized_crop_boxes
from fastmoco.draws.streams import Draw, hashed_order
from fastmoco.evaluate.labels import hold_out, stratified_part, symmetric_noise
from fastmoco.labeling.pretext_scores import Scorer
from fastmoco.labeling.sample_runs import sample_ids
from fastmoco.moco.memory_bank import draw_others
from fastmoco.pipelines.contract import EpochPlan
from fastmoco.pipelines.policies import POLICIES
from fastmoco.pipelines.pool import draw_ops
from fastmoco.pipelines.view_parameters import draw_parameters
from fastmoco.ranks import Ranks
from tests.runs import write_colors, write_run

IDS = np.array([0, 1, 2, 3, 1000, 2**31, 2**40 + 7], np.int64)
LABELS = np.arange(600) % 7
Values = dict[str, Any]
"""Arrays, tensors and numbers by name."""


def keys(count: int = 200, seed: int = 5, epoch: int = 3) -> npt.NDArray[np.int64]:
    return draw_keys(seed, epoch, np.arange(count))


def device_keys(count: int = 200) -> torch.Tensor:
    return torch.from_numpy(keys(count))


def host_streams(_: Path) -> Values:
    sizes = np.arange(20, 220), np.arange(300, 100, -1)
    scale, ratio = (0.2, 1.0), (3 / 4, 4 / 3)
    plan = EpochPlan(seed=7, epoch=2, num_samples=100, global_batch_size=16, start_batch=2)
    return {
        "draw keys": np.stack([draw_keys(s, e, IDS) for s, e in [(0, 0), (1, 9), (2**62, 10**6)]]),
        "order of an epoch": np.stack(
            [epoch_order(s, e, 500) for s, e in [(0, 0), (3, 0), (3, 1)]]
        ),
        "batches of a plan": np.stack(list(plan.batches())),
        "crop boxes": random_resized_crop_boxes(
            keys(), *sizes, scale=scale, ratio=ratio, num_views=2
        ),
        "crop boxes of long images": random_resized_crop_boxes(
            keys(), np.full(200, 20), np.full(200, 300), scale=scale, ratio=ratio, num_views=3
        ),
        "hashed order": hashed_order(1000),
        "shards": np.concatenate([shard_samples(100, shard, 3) for shard in range(3)]),
    }


def device_streams(_: Path) -> Values:
    draws = [uniform(device_keys(), what, view) for what in list(Draw)[:18] for view in (0, 1)]
    stream = fork(device_keys(), Draw.POOL, 1)
    batch = torch.tensor([3, 8, 40, 41])
    return {
        "uniforms": torch.stack(draws),
        "uniforms of views with keys of their own": uniform(
            device_keys().view(100, 2), Draw.HUE, 1
        ),
        "fork": stream,
        "stream of uniforms": stream_uniforms(stream, 2, 7),
        "stream of integers": stream_integers(stream, 3, 5, 1001),
        "batch norm's permutation": permutation(device_keys()),
        "memory bank's negatives": draw_others(
            batch, fork(device_keys(1), Draw.NEGATIVES, 0), 300, 50
        ),
    }


def policy_streams(_: Path) -> Values:
    found: Values = {}
    for name in ("moco_v1", "moco_v2", "simclr"):
        drawn = draw_parameters(device_keys(), [0, 1], POLICIES[name])
        assert drawn.jitter is not None
        found |= {
            f"{name}: {field}": getattr(drawn, field)
            for field in ("flip", "grayscale", "blur_sigma")
            if getattr(drawn, field) is not None
        }
        found |= {
            f"{name}: {field}": getattr(drawn.jitter, field)
            for field in ("brightness", "contrast", "saturation", "hue", "order")
        }
    found["pool"] = draw_ops(device_keys(), [0, 1], POLICIES["imagenette_pool"])
    return found


def label_streams(_: Path) -> Values:
    candidates = np.arange(1000, 1400)
    return {
        "labeled part": stratified_part(LABELS, 0.1, 4),
        "held out": hold_out(LABELS, 0.1, 4),
        "label noise": symmetric_noise(LABELS, 0.3, 7, 4),
        "samples of a request": np.stack([sample_ids(candidates, n, 50, 4) for n in (0, 1, 9)]),
    }


def request_streams(folder: Path) -> Values:
    """The order of a random request; what candidates are compared with, and in which epoch."""
    write_run(folder / "run")
    write_colors(folder / "images", seed=0, per_class=10)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    (folder / "list.csv").write_text("\n".join(["path", *names]) + "\n")
    data = folder / "set.beton"
    assert cli.main(["convert", str(folder / "list.csv"), str(data)]) == 0
    options = [f"data.train={data}", "count=20", "max_similarity=1", "images=false", "seed=4"]
    plans: list[tuple[int, list[int]]] = []
    plain = Scorer.plan

    def recorded(self: Scorer, ids: npt.NDArray[np.int64], epoch: int, *rest: int) -> EpochPlan:
        plans.append((int(epoch), ids.tolist()))
        return plain(self, ids, epoch, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "plan", recorded)
        for mode in (["mode=random"], ["negatives=dataset", "views=1"]):
            out = f"out={folder / mode[0]}"
            assert cli.main(["request", str(folder / "run"), *options, out, *mode]) == 0
    rows = (folder / "mode=random" / "request.csv").read_text().splitlines()[1:]
    assert len(plans) == 2
    return {
        "random request": [int(row.split(",")[0]) for row in rows],
        "negatives of a request": max(plans)[1],
        "epoch of a request's negatives": max(plans)[0],
    }


def detection_streams(_: Path) -> Values:
    places = [
        step_places(step, seed=6, num_images=30, global_batch_size=8, ranks=Ranks(rank, 2))
        for step in (0, 3, 50)
        for rank in (0, 1)
    ]
    seeds = []
    for step, rank in [(0, 0), (1, 0), (1, 1)]:
        with torch.random.fork_rng(devices=[]):
            seed_region_sampling(6, step, Ranks(rank, 2))
            seeds.append(torch.initial_seed())
    return {"images of a step": places, "seeds of anchors": np.array(seeds, np.int64)}


def detection_views(folder: Path) -> Values:
    """Sizes, mirrors and crops of an image whose pixels are their own coordinates."""
    rows, columns = np.mgrid[:96, :128].astype(np.uint8)
    Image.fromarray(np.stack([rows, columns, columns], -1)).save(folder / "image.png")
    Image.fromarray(np.zeros((96, 128), np.uint8)).save(folder / "classes.png")
    scene = Scene(
        image=folder / "image.png",
        height=96,
        width=128,
        source="test",
        instances=[Instance(box=(8.0, 16.0, 40.0, 48.0), label=1)],
        class_map=folder / "classes.png",
    )
    data = SceneSet(name="test", classes=("one",), scenes=[scene])
    boxes = DetectConfig(task=DetectionTask.boxes, train_sizes=[48, 96, 144, 192], max_size=1000)
    crops = DetectConfig(task=DetectionTask.segment, scale_range=[1.0, 1.0], crop_size=32)
    sizes, corners = [], []
    for number in range(24):
        key = device_keys()[number : number + 1]
        sample = training_sample(scene, data, key, boxes)
        sizes.append([*sample.image.shape[1:], *sample.target["boxes"][0].tolist()])
        corner = training_sample(scene, data, key, crops).image[:2, 0, [0, -1]]
        corners.append(corner.flatten().tolist())
    return {"detection: sizes and boxes": np.array(sizes), "detection: crops": np.array(corners)}


def described(values: Any) -> dict[str, Any]:
    array = np.ascontiguousarray(values)
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return {"first": array.ravel()[:4].tolist(), "sha256": digest.hexdigest()}


STREAMS: list[Callable[[Path], Values]] = [
    host_streams,
    device_streams,
    policy_streams,
    label_streams,
    request_streams,
    detection_streams,
    detection_views,
]
PINNED = json.loads(Path(__file__).with_name("draws.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        name: described(values)
        for streams in STREAMS
        for name, values in streams(tmp_path_factory.mktemp(streams.__name__)).items()
    }


@pytest.mark.parametrize("name", sorted(PINNED.keys() - {"Draw"}))
def test_a_stream_is_bit_equal_to_that_of_the_older_version(
    name: str, found: dict[str, Any]
) -> None:
    assert found[name] == PINNED[name]


def test_every_stream_is_pinned(found: dict[str, Any]) -> None:
    assert found.keys() == PINNED.keys() - {"Draw"}


def test_draws_keep_their_numbers() -> None:
    known = {draw.name: draw.value for draw in Draw if draw.name in PINNED["Draw"]}
    assert known == PINNED["Draw"]
