"""Where memory runs out, one line says the sizes and options that fit."""

import dataclasses

import numpy as np
import pytest
import torch

from fastmoco import cli
from fastmoco.configuration import load_config
from fastmoco.detection.settings import DetectConfig
from fastmoco.detection.trial import _explain_step
from fastmoco.evaluate import features
from fastmoco.moco.batchnorm import resolve_batch_norm
from fastmoco.out_of_memory import explained, shortage
from fastmoco.ranks import ALONE, Ranks
from fastmoco.train.checks import check_config
from fastmoco.train.estimate import MEMORY_SHARE, run_cost
from fastmoco.train.machine import Machine
from fastmoco.train.settings import TrainConfig
from fastmoco.train.smaller_steps import advise_smaller
from fastmoco.train.trainer import Trainer
from tests.pictures import write_class_folders

CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 392.00 MiB. GPU 0 has a total capacity of 15.77 GiB of "
    "which 118.88 MiB is free. Process 4242 has 15.65 GiB memory in use. Of the allocated memory"
)
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4000000000 bytes. Error code 12 (Cannot allocate memory)"
)
SMALL_GPU = Machine(kind="cuda", memory_bytes=16_000_000_000, units=40)


def config(*overrides):
    return load_config(TrainConfig, ["data.train=x.beton", *overrides])


def advised(cfg, machine=SMALL_GPU, ranks=ALONE):
    """The configurations of all ways that the advice names, and its text."""
    text = advise_smaller(cfg, machine, ranks)
    ways = [way.partition(" (")[0] for way in text.removeprefix("set ").split(", or ")]
    return [config(*COMMON, *way.split()) for way in ways], text


COMMON = ["experiment=moco_v2_1gpu", "precision=float32", "device=cpu"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CUDA, "392.00 MiB more were asked for, the device has 15.77 GiB, 118.88 MiB of them free"),
        (CPU, "4000000000 bytes more were asked for"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), "ALLOC_FAILED"),
        (RuntimeError("shapes differ"), None),
    ],
)
def test_sizes_are_read_from_the_message(error, words):
    found = shortage(error)
    assert found is None if words is None else words in found


def test_a_real_message_of_numpy():
    with pytest.raises(MemoryError) as caught:
        np.empty((1 << 50,), np.uint8)
    assert shortage(caught.value) == "1.00 PiB more were asked for"


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), explained(lambda: "no"):
        raise RuntimeError("shapes differ")


def test_what_is_advised_is_allowed_fits_and_learns_the_same():
    cfg = config(*COMMON)
    before = run_cost(cfg, 1, SMALL_GPU).memory_bytes
    assert before > MEMORY_SHARE * SMALL_GPU.memory_bytes
    (parts, smaller), text = advised(cfg)
    for way in (parts, smaller):
        check_config(way)
        assert run_cost(way, 1, SMALL_GPU).memory_bytes <= MEMORY_SHARE * SMALL_GPU.memory_bytes
    group = cfg.global_batch_size // resolve_batch_norm(cfg.moco, ALONE)[1]
    for way in (parts, smaller):  # as many images in a group of batch norm
        _, groups = resolve_batch_norm(way.moco, ALONE, way.train.accumulate)
        assert way.global_batch_size // groups == group, text
    assert parts.global_batch_size == cfg.global_batch_size
    rates = [one.optimizer.learning_rate / one.global_batch_size for one in (cfg, smaller)]
    assert rates[0] == pytest.approx(rates[1])  # linear, by SGD


def test_a_step_that_should_fit_is_halved_and_adamw_takes_the_root():
    large = dataclasses.replace(SMALL_GPU, memory_bytes=10**12)
    cfg = config(*COMMON, "optimizer.name=adamw", "optimizer.learning_rate=0.002")
    (parts, smaller), _ = advised(cfg, large)
    assert parts.train.accumulate == 2
    assert smaller.global_batch_size == cfg.global_batch_size // 2
    assert smaller.optimizer.learning_rate == pytest.approx(0.002 / 2**0.5, rel=1e-2)


def test_several_devices_keep_equal_shares():
    ranks, machine = Ranks(0, 4), dataclasses.replace(SMALL_GPU, devices=4)
    cfg = config("experiment=moco_v2", "precision=float32", "global_batch_size=1024", "device=cpu")
    text = advise_smaller(cfg, machine, ranks)
    for way in text.removeprefix("set ").split(", or "):
        check_config(
            config(
                "experiment=moco_v2",
                "device=cpu",
                "global_batch_size=1024",
                *way.partition(" (")[0].split(),
            ),
            ranks,
        )


def test_without_a_way_a_smaller_model_is_advised():
    tiny = dataclasses.replace(SMALL_GPU, memory_bytes=10**9)
    assert advise_smaller(config(*COMMON), tiny, ALONE).startswith("use a smaller model.encoder")


def test_mechanisms_without_micro_batches_get_a_smaller_batch():
    cfg = config(*COMMON, "moco.mechanism=moco_v3", "moco.batch_norm_splits=1")
    assert "accumulate" not in advise_smaller(cfg, SMALL_GPU, ALONE)


def test_training_ends_with_one_line(tmp_path, monkeypatch, capsys):
    write_class_folders(tmp_path / "images")
    monkeypatch.setattr(Trainer, "take", lambda *_: (_ for _ in ()).throw(CUDA))
    sizes = ["global_batch_size=8", "moco.queue_size=32", "model.width=8", "device=cpu"]
    paths = [f"data.train={tmp_path / 'images'}", f"run_dir={tmp_path / 'run'}"]
    options = ["experiment=cifar10_cpu", "train.compile=never", "monitor.every_epochs=0"]
    assert cli.main(["train", *options, *sizes, *paths]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "fastmoco: out of memory (392.00 MiB more were asked for, the device has 15.77 GiB, 118.88 "
        "MiB of them free): a step holds 8 images of 32 pixels and resnet18 in float32 on cpu, in "
        "estimate 1.0 GB; set train.accumulate=2"
    )


def test_detection_is_told_a_batch_a_rate_and_steps():
    cfg = DetectConfig(global_batch_size=16)
    words = "set global_batch_size=8 optimizer.learning_rate=0.01 train.steps=48000"
    assert words in _explain_step(cfg, Ranks(0, 2))


def test_features_are_told_a_batch():
    said = features._explain_batch(256, 224, torch.device("cuda", 0))
    assert "256 images of 224 pixels at once on cuda:0" in said
    assert "global_batch_size=64" in said
