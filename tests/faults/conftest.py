"""The ledger of faults and inputs."""

import pytest

from tests.faults.ledger import Ledger


@pytest.fixture
def ledger(request: pytest.FixtureRequest, full_faults: bool) -> Ledger:
    """Counts what became of each fault; writes it down with ``--full-faults``."""
    return Ledger(request.node.nodeid, full_faults)
