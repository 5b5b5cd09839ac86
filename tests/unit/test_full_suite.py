"""`make full`: which tests it runs, and what it keeps."""

import json

import pytest

from tests.full_suite import FullSuite, state_of_code


class Report:
    def __init__(self, nodeid, outcome="passed", when="call"):
        self.nodeid, self.outcome, self.when, self.duration = nodeid, outcome, when, 1.25
        self.passed = outcome == "passed"


def test_a_passed_test_is_not_run_again_until_the_code_changes(tmp_path):
    record = tmp_path / "record.json"
    suite = FullSuite(record, state="one")
    suite.pytest_runtest_logreport(Report("a", when="setup"))
    assert not record.exists()
    suite.pytest_runtest_logreport(Report("a"))
    suite.pytest_runtest_logreport(Report("b", outcome="failed"))
    suite.pytest_runtest_logreport(Report("c", outcome="failed", when="setup"))
    again = FullSuite(record, state="one")
    assert [again.passed(name) for name in "abcd"] == [True, False, False, False]
    assert not FullSuite(record, state="two").passed("a")
    rows = json.loads(record.read_text())["tests"]
    assert rows["a"].keys() == {"outcome", "seconds", "state", "torch", "processor"}
    assert rows["a"]["seconds"] == 1.2


def test_the_state_is_that_of_the_files():
    assert state_of_code() == state_of_code()
    assert len(state_of_code()) == 16


@pytest.mark.parametrize("full", [False, True])
def test_each_tier_leaves_out_the_other(full):
    from tests.conftest import _keep_tier

    class Item:
        def __init__(self, marked):
            self.marked = marked

        def get_closest_marker(self, name):
            assert name == "full"
            return object() if self.marked else None

    items = [quick, slow] = [Item(False), Item(True)]
    left_out = []
    hook = type(
        "Hook", (), {"pytest_deselected": staticmethod(lambda items: left_out.extend(items))}
    )
    _keep_tier(type("Config", (), {"hook": hook})(), items, full=full)
    assert (items, left_out) == (([slow], [quick]) if full else ([quick], [slow]))
