"""The device of a run and its algorithms; the GPUs are played."""

import os
import warnings
from types import SimpleNamespace

import pytest
import torch

from fastmoco.device import algorithms, describe_float32, resolve_device

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")


@pytest.fixture
def current(monkeypatch):
    """The numbers of the GPUs that were made the current one, of four."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize(
    ("name", "number"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:3", 3)]
)
def test_a_gpu_becomes_the_current_one(current, name, number):
    assert resolve_device(name).type == "cuda"
    assert current == [number]


def test_a_cpu_changes_no_gpu(current):
    assert resolve_device("cpu") == CPU
    assert current == []


@pytest.mark.parametrize(("device", "measured"), [(CPU, False), (GPU, True)])
def test_cudnn_measures_its_algorithms_on_a_gpu(device, measured):
    with algorithms(device, reproducible=False):
        assert torch.backends.cudnn.benchmark is measured
        assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark


def test_reproducible_algorithms_are_deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is restored
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with algorithms(GPU, reproducible=True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()


def test_tf32_is_named(monkeypatch):
    assert describe_float32(CPU) == "float32"
    monkeypatch.setattr(torch.backends.cudnn, "conv", SimpleNamespace(fp32_precision="tf32"))
    assert describe_float32(GPU) == "float32, TF32 in convolutions"
    monkeypatch.setattr(torch.backends.cudnn, "conv", SimpleNamespace(fp32_precision="ieee"))
    assert describe_float32(GPU) == "float32"


TF32 = "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled."


def test_only_torchs_proposal_of_tf32_is_no_error():
    """Torch 2.11 warns of it while it compiles for a GPU; all other warnings fail a test."""
    warnings.warn_explicit(TF32, UserWarning, "x.py", 1, module="torch._inductor.compile_fx")
    for text, module in ((TF32, "fastmoco.train.step"), ("Another", "torch._inductor.compile_fx")):
        with pytest.raises(UserWarning):
            warnings.warn_explicit(text, UserWarning, "x.py", 1, module=module)
