"""Seeds for every test, and the `gpu` marker's reason where there is no CUDA device."""

import random
import signal
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmoco import kept_checks
from tests.full_suite import FullSuite


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-faults",
        action="store_true",
        help="try all faults (thousands of damaged files, every instant of a kill), not a few",
    )
    parser.addoption(
        "--full-curves",
        action="store_true",
        help="compare loss curves with three seeds, not one",
    )
    parser.addoption(
        "--full",
        action="store_true",
        help="the slow tests, and only those that have not passed on this state of the code",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Under nohup it would be ignored, here and in every process that a test starts.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if config.getoption("--full"):
        config.pluginmanager.register(FullSuite())


@pytest.fixture(scope="session")
def full_curves(request: pytest.FixtureRequest) -> bool:
    """Whether three seeds are trained; else one."""
    return bool(request.config.getoption("--full-curves"))


@pytest.fixture(scope="session")
def full_faults(request: pytest.FixtureRequest) -> bool:
    """Whether all faults are tried; else a quick subset."""
    return bool(request.config.getoption("--full-faults"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not (config.getoption("--full-curves") or config.getoption("--full-faults")):
        _keep_tier(config, items, full=bool(config.getoption("--full")))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def _keep_tier(config: pytest.Config, items: list[pytest.Item], *, full: bool) -> None:
    """Deselect the tests marked `full`, or with `full` all others."""
    kept, other = [], []
    for item in items:
        in_tier = (item.get_closest_marker("full") is not None) == full
        (kept if in_tier else other).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=other)


@pytest.fixture
def compile_without_inductor(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes `torch.compile` capture and partition as always, but run torch's own operations.

    That is what decides what is computed, in a tenth of the time.
    """

    def patch() -> None:
        eager = partial(torch.compile, backend="aot_eager_decomp_partition")
        with warnings.catch_warnings():
            # Torch 2.11 warns of its own old parts while it loads the compiler.
            warnings.simplefilter("ignore")
            eager(lambda x: x + 1)(torch.ones(8, requires_grad=True))
        torch.compiler.reset()
        monkeypatch.setattr(torch, "compile", eager)

    return patch


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds the generators of Python, NumPy and torch; returns the seed."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(autouse=True)
def no_kept_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of checks of this machine are neither read nor kept."""
    monkeypatch.setattr(kept_checks, "kept_folder", lambda: None)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler, also where a shell started the tests in the background: ignoring."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def pickles_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files of `torch.save` are read in this process, where importing PyTorch costs nothing."""
    from fastmoco.torch_files import child, unpickle

    def run(path: Path, folder: Path, form: str) -> None:
        try:
            unpickle.convert(str(path), str(folder), form)
        except Exception as error:
            known = isinstance(error, unpickle.Refused)
            reason = str(error) if known else unpickle._reason(error)
            raise child.RefusedFileError(reason) from error

    monkeypatch.setattr(child, "run_child", run)
    yield
    torch.serialization.clear_safe_globals()
