"""The peers that benchmarks time do the same mathematics as fastmoco."""

import copy
import json
import math
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from benchmarks import long_run, two_codes
from benchmarks.child import KeptChild
from benchmarks.peers import notebook_peer, official_peer, official_step
from benchmarks.pictures import write_thumbnails
from benchmarks.rates import EPOCH_IMAGES
from fastmoco.data.convert import ConvertConfig, convert
from fastmoco.moco.build import build_model
from fastmoco.moco.loss import info_nce
from fastmoco.moco.mechanism import Views
from fastmoco.moco.settings import Head, MocoConfig, ModelConfig, Stem
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.settings import OptimizerConfig
from tests.limits import HANG_SECONDS
from tests.optional import require
from tests.pictures import encoded, picture

STEPS, BATCH, QUEUE, DIM = 6, 8, 32, 16
NO_LIGHTLY = "lightly is not installed; pip install lightly"


def test_official_step_equals_ours() -> None:
    """Same losses and weights: it updates keys before a step, and we after the one before."""
    torch.manual_seed(0)
    moco = MocoConfig(
        queue_size=QUEUE,
        dim=DIM,
        momentum=official_step.MOMENTUM,
        temperature=official_step.TEMPERATURE,
    )
    model = build_model(ModelConfig(encoder="resnet18", stem=Stem.small, width=8), moco).double()
    queue = model.queue.keys.clone()
    official = official_step.OfficialStep(copy.deepcopy(model.query_encoder), queue, 0.03)
    optimizer = build_optimizer(model.query_encoder.parameters(), OptimizerConfig())
    for _ in range(STEPS):
        query_view, key_view = torch.randn(2, BATCH, 3, 16, 16, dtype=torch.float64)
        theirs = official(query_view, key_view)
        contrast = model(Views(query_view, key_view, *[torch.arange(BATCH)] * 3))
        optimizer.zero_grad()
        contrast.loss.backward()
        optimizer.step()
        model.update_key_encoder()
        model.queue.enqueue(contrast.key)
        assert abs(contrast.loss.item() - theirs.item()) < 1e-10
    torch.testing.assert_close(official.queue.T, model.queue.keys, rtol=0, atol=1e-10)
    pairs = zip(official.encoder_q.parameters(), model.query_encoder.parameters(), strict=True)
    for theirs_q, ours_q in pairs:
        torch.testing.assert_close(theirs_q, ours_q, rtol=0, atol=1e-10)


def test_tuned_official_step_stays_near() -> None:
    """What its users add changes rounding alone: bfloat16 has 8 bits, the loss stays in 2%."""
    torch.manual_seed(0)
    moco = MocoConfig(queue_size=QUEUE, dim=DIM)
    encoder = build_model(ModelConfig(encoder="resnet18", stem=Stem.small, width=8), moco)
    queue = encoder.queue.keys
    plain = official_step.OfficialStep(copy.deepcopy(encoder.query_encoder), queue, 0.0)
    tuned = official_step.OfficialStep(encoder.query_encoder, queue, 0.0).tune(torch.bfloat16)
    views = torch.randn(2, BATCH, 3, 16, 16)
    torch.testing.assert_close(tuned(*views).float(), plain(*views), rtol=0.02, atol=0)


def test_official_contrast_equals_info_nce() -> None:
    torch.manual_seed(0)
    query, key, queue = (F.normalize(torch.randn(rows, DIM).double()) for rows in (8, 8, QUEUE))
    model = build_model(
        ModelConfig(encoder="resnet18", stem=Stem.small, width=8),
        MocoConfig(queue_size=QUEUE, dim=DIM),
    )
    official = official_step.OfficialStep(model.query_encoder, queue, 0.0)
    expected, _ = info_nce(query, key, queue, official_step.TEMPERATURE)
    assert abs(official.contrast(query, key).item() - expected.item()) < 1e-12


def test_dali_peer_makes_two_different_normalized_views_of_each_image(tmp_path: Path) -> None:
    require("nvidia.dali")
    from benchmarks.peers import dali_peer

    write_thumbnails(tmp_path, 20)
    pipeline = dali_peer.two_views(str(tmp_path), 24, "cpu", batch_size=10)
    pipeline.build()
    query, key, labels = (np.asarray(output.as_array()) for output in pipeline.run())
    assert query.shape == key.shape == (10, 3, 24, 24)
    assert query.dtype == np.float32
    low, high = -0.485 / 0.229, (1 - 0.406) / 0.225  # of all values that 0 and 255 can become
    assert low - 1e-4 <= query.min() < 0 < query.max() <= high + 1e-4
    differences = np.abs(query - key).reshape(10, -1).mean(1)
    assert (differences > 0.01).all()  # drawn for each view
    assert len(set(np.round(differences, 4))) == 10  # and for each image
    assert set(labels.ravel().tolist()) <= set(range(10))


def test_official_peer_goes_through_a_small_set_many_times_in_an_epoch(tmp_path: Path) -> None:
    """Else it would stand still after every few batches, as it does not on a large set."""
    write_thumbnails(tmp_path, 20)
    loader = official_peer.two_crop_loader(str(tmp_path), v2.PILToTensor())
    assert len(loader) == EPOCH_IMAGES // official_peer.BATCH
    drawn = list(islice(loader.sampler, 40))
    assert sorted(drawn[:20]) == sorted(drawn[20:]) == list(range(20))
    assert drawn[:20] != drawn[20:]


@pytest.mark.parametrize("module", [pytest.param("ffcv", marks=pytest.mark.full), "lightly"])
def test_streams_of_peers_do_not_end_with_a_small_set(tmp_path: Path, module: str) -> None:
    """Both drop what is less than a batch: of 20 images alone nothing would ever come."""
    if module == "lightly":  # a peer of the benchmarks alone, which nothing else needs
        pytest.importorskip(module, reason=NO_LIGHTLY)
    else:
        require(module)
    source, file = tmp_path / "images", tmp_path / "file.beton"
    write_thumbnails(source, 20)
    target, arguments = "lightly_peer:views", {"source": str(source)}
    if module == "ffcv":
        convert(str(source), file, ConvertConfig())
        target, arguments = "ffcv_peer:read_crops", {"path": str(file)}
    stream = f"benchmarks.peers.{target}", {**arguments, "view_size": 32}
    with closing(KeptChild(*stream, timeout_seconds=HANG_SECONDS)) as child:
        assert child.measure(0.01).value["images"] > 0


def test_lightly_peer_learns_against_its_memory_bank() -> None:
    pytest.importorskip("lightly", reason=NO_LIGHTLY)
    from benchmarks.peers import lightly_peer

    torch.manual_seed(0)
    small = ModelConfig(encoder="resnet18", stem=Stem.small, width=8)
    model = build_model(small, MocoConfig(queue_size=QUEUE, dim=DIM))
    backbone = model.query_encoder.backbone
    step = lightly_peer.LightlyStep(backbone, backbone.feature_dim, QUEUE, 0.03)
    before = [parameter.clone() for parameter in step.backbone_momentum.parameters()]
    losses = [step(*torch.randn(2, BATCH, 3, 16, 16)).item() for _ in range(3)]
    assert all(0 < loss < 20 for loss in losses)
    pairs = zip(step.backbone_momentum.parameters(), before, strict=True)
    assert any(not torch.equal(after, old) for after, old in pairs)


def test_the_notebook_equals_ours() -> None:
    """Groups, shuffling, queue, key encoder and statistics, over six steps in float64.

    Its groups are every fourth image and ours are blocks, so its images come in another order.
    """
    torch.manual_seed(0)
    groups = 4
    moco = MocoConfig(
        queue_size=QUEUE,
        dim=DIM,
        momentum=0.9,
        temperature=0.1,
        head=Head.linear,
        batch_norm_splits=groups,
    )
    small = ModelConfig(encoder="resnet18", stem=Stem.small, width=8)
    model = build_model(small, moco).double()
    encoder = copy.deepcopy(model.query_encoder)
    notebook_peer.use_split_batch_norm(encoder, groups)
    recipe = notebook_peer.Recipe(
        dim=DIM, queue_size=QUEUE, momentum=0.9, temperature=0.1, groups=groups
    )
    theirs = notebook_peer.NotebookMoCo(encoder.double(), recipe)
    theirs.queue = model.queue.keys.T.clone()
    settings = OptimizerConfig(learning_rate=0.06, weight_decay=5e-4)
    optimizer = build_optimizer(model.query_encoder.parameters(), settings)
    their_optimizer = torch.optim.SGD(
        encoder.parameters(), lr=0.06, weight_decay=5e-4, momentum=0.9
    )
    place = torch.arange(BATCH).view(groups, -1).T.flatten()
    for _ in range(STEPS):
        query_view, key_view = torch.randn(2, BATCH, 3, 16, 16, dtype=torch.float64)
        shuffle = torch.randperm(BATCH)
        ids = torch.arange(BATCH)
        ours = model(Views(query_view, key_view, shuffle, ids, ids))
        order = torch.argsort(place)[shuffle[place]]
        loss = theirs.loss(query_view[place], key_view[place], order)
        for one, step in ((ours.loss, optimizer), (loss, their_optimizer)):
            step.zero_grad()
            one.backward()
            step.step()
        model.update_key_encoder()
        model.queue.enqueue(ours.key)
        assert abs(ours.loss.item() - loss.item()) < 1e-10
    blocks = theirs.queue.T.view(-1, BATCH, DIM)[:, torch.argsort(place)]
    torch.testing.assert_close(blocks.flatten(0, 1), model.queue.keys, rtol=0, atol=1e-10)
    for name, value in model.query_encoder.state_dict().items():
        if value.is_floating_point():
            found = encoder.state_dict()[name]
            torch.testing.assert_close(found, value, rtol=0, atol=1e-10, msg=name)
    rates = [notebook_peer.learning_rate(recipe, epoch) for epoch in (1, 100, 200)]
    assert rates == pytest.approx([0.06 * (1 + math.cos(math.pi / 200)) / 2, 0.03, 0])


def write_small_cifar(folder: Path) -> Path:
    """Two classes of 16 images for each split, in class folders."""
    for split in ("train", "test"):
        for label in range(2):
            images = folder / split / f"class_{label}"
            images.mkdir(parents=True)
            for index in range(16):
                pixels = picture(1000 * (split == "test") + 100 * label + index, 32, 32)
                (images / f"{index}.jpg").write_bytes(encoded(pixels, quality=92))
    return folder


@pytest.mark.full
def test_two_codes_run_one_recipe_and_go_on(tmp_path: Path) -> None:
    """At the smallest size: a row each, and what is done stays."""
    cifar, runs = write_small_cifar(tmp_path / "cifar"), tmp_path / "runs"
    setup = two_codes.Setup(cifar, runs, (0, 1), 2, 2, 16, 8, batch=16, queue_size=32)
    two_codes.measure(setup, tmp_path / "results")
    first, second, *losses = json.loads((tmp_path / "results/two_codes.json").read_text())
    assert (first["what"], second["what"]) == ("fastmoco", "the notebook")
    assert "equality within 1.5 points is" in first["note"]
    assert len(losses) == 2 * setup.epochs
    done = setup.result("the notebook", 1)
    before = done.stat().st_mtime_ns
    setup.result("fastmoco", 0).unlink()
    two_codes.measure(setup, tmp_path / "results")  # by its run, which is finished
    assert setup.result("fastmoco", 0).exists()
    assert done.stat().st_mtime_ns == before


@pytest.mark.full
def test_the_long_run_at_the_smallest_size(tmp_path: Path) -> None:
    """It goes on where it was stopped, and has a row for each encoder."""
    options = ("experiment=cifar10_cpu", "model.width=4", "global_batch_size=16")
    small = (*options, "moco.queue_size=32", "train.compile=never")
    cifar = write_small_cifar(tmp_path / "cifar")
    setup = long_run.Setup(cifar, tmp_path / "runs", 3, 1, 1, small)
    long_run.measure(setup, tmp_path / "results")
    found = {
        row["what"]: row for row in json.loads((tmp_path / "results/long_run.json").read_text())
    }
    assert [*found] == [
        *(f"epoch {epoch}" for epoch in (1, 2, 3)),
        *("pretrained", "untrained", "pixels", "supervised"),
    ]
    assert found["epoch 3"]["value"] == found["pretrained"]["value"]
    assert "its classifier" in found["supervised"]["note"]
    run = (tmp_path / "runs/runs/long/metrics.jsonl").read_bytes()
    long_run.measure(setup, tmp_path / "results")
    assert (tmp_path / "runs/runs/long/metrics.jsonl").read_bytes() == run


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ([80.1, 80.3, 79.9, 80.2, 80.0], "is shown: fastmoco less the notebook +0.10"),
        ([81.6, 81.9, 81.4, 81.5, 81.6], "is not shown: fastmoco less the notebook -1.40"),
        ([80.1], "fewer than two seeds"),
    ],
)
def test_equivalence_is_shown_by_the_interval(theirs: list[float], words: str) -> None:
    assert words in two_codes.equivalence([80.2, 80.4, 80.0, 80.3, 80.1], theirs)
