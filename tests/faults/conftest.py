"""The ledger of faults and inputs, and the process whose calls to the system fail."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.failing_calls import Server, compiler, serving
from tests.faults.ledger import Ledger
from tests.faults.training import run_options, write_dataset


@pytest.fixture
def ledger(request: pytest.FixtureRequest, full_faults: bool) -> Ledger:
    """Counts what became of each fault; writes it down with ``--full-faults``."""
    return Ledger(request.node.nodeid, full_faults)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A process for commands whose calls fail, or that are killed."""
    if compiler() is None:
        pytest.skip("needs a C compiler, for a library that makes calls fail")
    with serving(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(scope="session")
def tiny_set(server: Server, tmp_path_factory: pytest.TempPathFactory, full_faults: bool) -> Path:
    """A dataset for runs of the server, which has compiled what they need."""
    folder = tmp_path_factory.mktemp("tiny")
    path = write_dataset(folder)
    if full_faults:
        options = run_options(path, folder / "warm", "train.max_steps=2")
        server.warm("tests.faults.training:train", [options])
    return path
