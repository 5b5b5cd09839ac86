"""Results of checks are kept by card, driver and versions; a damaged file counts as empty."""

import json

import pytest
import torch

from fastmoco import caches, kept_checks
from fastmoco.kept_checks import checked, keep, recall
from fastmoco.moco import loss_choice
from fastmoco.moco.settings import Loss
from fastmoco.ranks import ALONE
from fastmoco.train import acceleration
from fastmoco.train.settings import TrainConfig

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_checks, "kept_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))


def counted(fault, calls):
    def find_fault():
        calls.append(fault)
        return fault

    return find_fault


def test_what_passed_is_not_checked_again_and_what_failed_is(folder):
    calls = []
    assert [checked("a", CPU, counted("", calls)) for _ in range(3)] == ["", "", ""]
    assert [checked("b", CPU, counted("no", calls)) for _ in range(2)] == ["no", "no"]
    assert calls == ["", "no", "no"]
    assert list(json.loads((folder / "checks.json").read_text()).values()) == [{"a": ""}]


def test_a_fault_that_doctor_kept_is_believed_and_says_where_it_is_from(folder):
    assert folder.parent.exists()
    keep("a", "pixels differ", CPU)
    calls = []
    fault = checked("a", CPU, counted("", calls))
    assert fault == "pixels differ; found by an earlier check; fastmoco doctor checks again"
    assert calls == []
    keep("a", "", CPU)
    assert checked("a", CPU, counted("no", calls)) == ""


@pytest.mark.usefixtures("folder", "gpu")
def test_another_card_driver_version_or_compiler_is_another_subject(monkeypatch, tmp_path):
    keep("a", "", GPU)
    assert recall("a", GPU) == ""
    assert recall("a", CPU) is None
    driver = tmp_path / "version"
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5"
    driver.write_text(text)
    for place, name, value in (
        (torch.cuda, "get_device_name", lambda _: "NVIDIA L4"),
        (torch.cuda, "get_device_capability", lambda _: (8, 9)),
        (kept_checks, "DRIVER", driver),
        (kept_checks, "__version__", "9.9"),
        (torch, "__version__", "9.9"),
        (kept_checks, "_packages", lambda: "nvidia-dali-cuda130 9.9"),
        (kept_checks.shutil, "which", lambda _: None),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            assert recall("a", GPU) is None, name
    assert recall("a", GPU) == ""


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Rele", "580.65.06"),
        ("", ""),
    ],
)
def test_the_driver_is_read_from_its_own_line(monkeypatch, tmp_path, text, version):
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(kept_checks, "DRIVER", tmp_path / "version")
    assert kept_checks.driver_version() == version


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 3}', '{"a": {"b": null}}', "[" * 10_000])
def test_a_damaged_file_is_ignored_and_written_anew(folder, text):
    keep("a", "", CPU)
    (folder / "checks.json").write_text(text)
    assert recall("a", CPU) is None
    keep("b", "no", CPU)
    assert (recall("a", CPU), recall("b", CPU)) == (None, "no")


def test_a_folder_that_cannot_be_written_costs_a_check_only(folder):
    folder.write_text("a file in its place")
    calls = []
    assert [checked("a", CPU, counted("", calls)) for _ in range(2)] == ["", ""]
    assert calls == ["", ""]


def test_facts_are_kept_in_the_users_cache_or_else_in_the_private_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert caches.kept_folder() == tmp_path / "mine" / "fastmoco"
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr(caches.tempfile, "tempdir", str(tmp_path))
    assert caches.kept_folder() == caches.private_folder()


@pytest.mark.usefixtures("folder", "gpu")
def test_the_strict_check_of_the_loss_is_done_once(monkeypatch):
    calls = []
    monkeypatch.setattr(loss_choice, "fault_of_fused", lambda *_: counted("", calls)())
    for _ in range(2):
        assert loss_choice.resolve_loss(Loss.auto, GPU, 64) is Loss.fused
    assert loss_choice.resolve_loss(Loss.auto, GPU, 128) is Loss.fused
    assert calls == ["", ""]  # one for each C


@pytest.mark.usefixtures("folder", "gpu")
def test_a_loss_that_doctor_found_wrong_is_not_used():
    keep(loss_choice.check_name(64), "the rank of exact vectors differs", GPU)
    with pytest.warns(
        UserWarning, match="auto uses chunked, .*: the rank of exact .* differs; fou"
    ):
        assert loss_choice.resolve_loss(Loss.auto, GPU, 64) is Loss.chunked


@pytest.mark.usefixtures("folder", "gpu")
def test_a_graph_that_doctor_found_wrong_is_not_captured():
    cfg = TrainConfig()
    assert acceleration.resolve_cuda_graph(cfg, GPU, ALONE)[0]
    keep(kept_checks.CUDA_GRAPH, "loss differs", GPU)
    captured, words = acceleration.resolve_cuda_graph(cfg, GPU, ALONE)
    assert not captured
    assert "no CUDA graph (loss differs; found by an earlier check" in words
