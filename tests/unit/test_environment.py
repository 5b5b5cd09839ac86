"""What the command line sets before torch is loaded, whose warnings it shows, what may lack."""

import sys
from types import SimpleNamespace

import pytest
import torch

from fastmoco import cli
from fastmoco.errors import UsageError
from fastmoco.train.compilation import compile_failure, resolve_compile
from fastmoco.train.settings import Compile


@pytest.fixture
def fresh(monkeypatch):
    """A process that has not loaded torch, with none of the variables."""
    environment = {}
    monkeypatch.setattr(cli, "sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(cli, "os", SimpleNamespace(environ=environment))
    monkeypatch.setattr(cli, "prepare_caches", lambda: None)  # test_caches.py
    return environment


def test_waiting_threads_sleep_and_torch_is_quiet(fresh):
    cli._prepare_environment()
    assert fresh == {
        "OMP_WAIT_POLICY": "passive",
        "TORCH_LOGS": "-all",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_the_user_decides(fresh, name):
    fresh[name] = "5"
    cli._prepare_environment()
    assert fresh[name] == "5"
    assert fresh.get("OMP_WAIT_POLICY") in (None, "5")


def test_a_program_that_has_loaded_torch_keeps_its_environment(fresh, monkeypatch):
    monkeypatch.setattr(cli, "sys", SimpleNamespace(modules={"torch": None}))
    cli._prepare_environment()
    assert fresh == {}


def test_warnings_of_other_packages_are_for_developers(capsys, monkeypatch):
    def shown(filename, category=UserWarning):
        cli._show_warning("careful", category, filename, 1)
        return capsys.readouterr().err

    monkeypatch.setattr(sys, "warnoptions", [])
    inside = "/usr/lib/python3/site-packages/torch/_inductor/utils.py"
    assert shown(inside) == shown(inside, FutureWarning) == ""
    assert shown(str(cli.PACKAGE / "files.py")) == "fastmoco: careful\n"
    assert "FutureWarning: careful" in shown("mine.py", FutureWarning)
    monkeypatch.setattr(cli, "PACKAGE", cli.Path("/usr/lib/python3/site-packages/fastmoco"))
    assert shown("/usr/lib/python3/site-packages/fastmoco/files.py") == "fastmoco: careful\n"
    monkeypatch.setattr(sys, "warnoptions", ["always"])
    assert shown(inside) == "fastmoco: careful\n"


@pytest.mark.parametrize(
    "text",
    ["backend='inductor' raised:\nNo working C++ compiler\n\nSet x", "No working C++ compiler"],
)
def test_why_nothing_compiles_is_said(monkeypatch, text):
    def refuse(_):
        raise RuntimeError(text)

    monkeypatch.setattr(torch, "compile", refuse)
    compile_failure.cache_clear()
    try:
        works, header = resolve_compile(Compile.auto, torch.device("cpu"))
        assert not works
        assert "torch.compile fails here (No working C++ compiler); a C++ compiler" in header
        with pytest.raises(UsageError, match=r"fails here: No working C\+\+ compiler; set"):
            resolve_compile(Compile.always, torch.device("cpu"))
    finally:
        compile_failure.cache_clear()
