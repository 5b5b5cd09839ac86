"""Which batch norm a configuration gets on how many devices, and EMAN's keys."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastmoco.data.settings import DataConfig
from fastmoco.errors import UsageError
from fastmoco.moco.batchnorm import (
    SplitBatchNorm2d,
    SynchronizedBatchNorm2d,
    resolve_batch_norm,
)
from fastmoco.moco.build import build_model
from fastmoco.moco.mechanism import Views
from fastmoco.moco.settings import BatchNorm, MocoConfig, ModelConfig, Stem
from fastmoco.ranks import ALONE, Ranks
from fastmoco.runs import distributed
from fastmoco.runs.distributed import loader_threads, resolve_rank_device
from fastmoco.train.checks import check_config
from fastmoco.train.settings import TrainConfig


def small_model(ranks=ALONE, **changes):
    moco = MocoConfig(dim=8, queue_size=32, **changes)
    return build_model(ModelConfig(encoder="resnet18", stem=Stem.small, width=4), moco, ranks)


@pytest.mark.parametrize(
    ("batch_norm", "splits", "devices", "kind", "groups", "layer", "shuffled"),
    [
        ("auto", 1, 1, "plain", 1, nn.BatchNorm2d, False),
        ("auto", 4, 1, "shuffled", 4, SplitBatchNorm2d, True),
        ("auto", 1, 2, "shuffled", 2, nn.BatchNorm2d, True),
        ("auto", 4, 2, "shuffled", 4, SplitBatchNorm2d, True),
        ("shuffled", 2, 2, "shuffled", 2, nn.BatchNorm2d, True),
        ("plain", 4, 1, "plain", 1, nn.BatchNorm2d, False),
        ("plain", 4, 2, "plain", 2, nn.BatchNorm2d, False),
        ("synchronized", 4, 1, "synchronized", 1, nn.BatchNorm2d, False),
        ("synchronized", 4, 2, "synchronized", 1, SynchronizedBatchNorm2d, False),
        ("eman", 4, 2, "eman", 2, nn.BatchNorm2d, False),
    ],
)
def test_batch_norm_by_devices(batch_norm, splits, devices, kind, groups, layer, shuffled):
    options = {"batch_norm": BatchNorm(batch_norm), "batch_norm_splits": splits}
    ranks = Ranks(devices - 1, devices)
    assert resolve_batch_norm(MocoConfig(**options), ranks) == (kind, groups)
    model = small_model(ranks, **options)
    assert type(model.query_encoder.backbone.bn1) is layer
    assert model.shuffle_keys == shuffled
    if layer is SplitBatchNorm2d:
        assert model.query_encoder.backbone.bn1.num_splits == groups // devices


@pytest.mark.parametrize(
    ("batch", "devices", "moco", "words"),
    [
        (9, 2, {}, "global_batch_size must be a positive multiple of the 2 devices, got 9"),
        (8, 8, {}, "groups of 2 or more on 8 devices"),
        (16, 4, {"batch_norm_splits": 2}, "set it to a multiple of 4, or to 1"),
        (16, 2, {"batch_norm_splits": 3}, "moco.batch_norm_splits=3 does not split"),
        (8, 1, {"batch_norm": BatchNorm.shuffled}, "changes nothing on one device"),
    ],
)
def test_batches_that_do_not_fall_into_groups_are_refused(tmp_path, batch, devices, moco, words):
    cfg = TrainConfig(
        data=DataConfig(train=tmp_path), global_batch_size=batch, moco=MocoConfig(**moco)
    )
    for rank in range(devices):
        with pytest.raises(UsageError, match=words):
            check_config(cfg, Ranks(rank, devices))


def test_synchronized_batch_norm_of_one_rank_is_plain():
    torch.manual_seed(0)
    images = torch.randn(6, 5, 3, 3, dtype=torch.float64) * 3 + 1
    ours, plain = (
        layer.double() for layer in (SynchronizedBatchNorm2d(5, ranks=ALONE), nn.BatchNorm2d(5))
    )
    torch.testing.assert_close(ours(images), plain(images))
    torch.testing.assert_close(ours.running_var, plain.running_var)
    torch.testing.assert_close(ours.eval()(images), plain.eval()(images))


def test_eman_keys_use_running_statistics_that_follow_the_queries():
    """arXiv:2101.08482: keys in evaluation mode; their statistics are momentum averages."""
    torch.manual_seed(0)
    model = small_model(batch_norm=BatchNorm.eman, momentum=0.75)
    assert model.query_encoder.training
    views = torch.randn(2, 8, 3, 16, 16)
    before = [buffer.clone() for buffer in model.running_statistics()[1]]
    found = model(Views(views[0], views[1], *[torch.arange(8)] * 3)).key
    assert all(map(torch.equal, before, model.running_statistics()[1]))
    one_by_one = torch.cat([model.key_encoder(view[None]) for view in views[1]])
    torch.testing.assert_close(found, F.normalize(one_by_one, dim=1))
    model.update_key_encoder()
    query, key = model.running_statistics()
    assert len(key) == 40
    for now, old, theirs in zip(key, before, query, strict=True):
        torch.testing.assert_close(now, 0.75 * old + 0.25 * theirs)
        assert not torch.equal(now, old)


def as_rank(monkeypatch, rank, world_size, devices):
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(world_size))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    return Ranks(rank, world_size)


def test_each_process_takes_its_own_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    ranks = as_rank(monkeypatch, 1, 2, devices=2)
    assert resolve_rank_device("auto", ranks) == torch.device("cuda", 1)
    assert resolve_rank_device("cuda", ranks) == torch.device("cuda", 1)
    assert resolve_rank_device("cpu", ranks) == torch.device("cpu")
    assert resolve_rank_device("cuda", ALONE) == torch.device("cuda")
    with pytest.raises(UsageError, match="device=cuda:0 would be shared by all 2 processes"):
        resolve_rank_device("cuda:0", ranks)
    with pytest.raises(UsageError, match="torch sees 1 CUDA devices"):
        resolve_rank_device("cuda", as_rank(monkeypatch, 1, 2, devices=1))


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(distributed.os, "sched_getaffinity", lambda _: set(range(8)))
    assert loader_threads(0) == 0
    as_rank(monkeypatch, 0, 4, devices=0)
    assert loader_threads(0) == 2
    assert loader_threads(5) == 5
