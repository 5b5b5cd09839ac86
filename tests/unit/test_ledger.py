"""The count of faults: what is kept, what is run again, and the page that is made of it."""

import json

import pytest

from tests.faults.document import PAGE, document, read_results
from tests.faults.ledger import Campaign, observe


def make(tmp_path, **more):
    about = {"promise": "It holds.", "how": "by hand", "unit": "faults", "test": "x::y"}
    settings = {"full": True, "state": "a", **about, **more}
    return Campaign(name="one", results=tmp_path, **settings)


def fill(campaign, outcome="refused"):
    numbers = []
    for part in campaign.parts(3):
        part.add(outcome, 0.5, place="here", example="byte 7")
        numbers.append(part.number)
    return numbers


def test_a_campaign_resumes_and_merges(tmp_path):
    for part in make(tmp_path).parts(3):
        if part.number == 1:
            break  # stopped
        part.add("refused", 0.5)
    again = make(tmp_path)
    assert fill(again) == [1, 2]
    again.check()
    assert again.seen == {"refused": 3}
    assert fill(make(tmp_path)) == []
    assert fill(make(tmp_path, state="b")) == [0, 1, 2]
    kept = json.loads((tmp_path / "one.json").read_text())
    assert {part["state"] for part in kept["parts"].values()} == {"b"}


def test_a_broken_promise_fails_unless_it_is_a_known_gap(tmp_path):
    for outcome in ("silent", "crashed", "hung"):
        fill(broken := make(tmp_path, state=outcome), outcome)
        with pytest.raises(AssertionError, match="byte 7"):
            broken.check()
    fill(known := make(tmp_path, gap="no checksum", state="c"), "silent")
    known.check()
    fill(kept := make(tmp_path, gap="no checksum", state="d"))
    with pytest.raises(AssertionError, match="no checksum"):
        kept.check()


def test_nothing_is_written_of_a_quick_run(tmp_path):
    quick = make(tmp_path, full=False)
    assert fill(quick) == [0]
    quick.check()
    assert not list(tmp_path.iterdir())


def test_what_an_action_did():
    def fail(error):
        raise error

    assert observe(lambda: 3).outcome == "done"
    assert observe(lambda: fail(ValueError("too large"))).outcome == "refused"
    assert observe(lambda: fail(ValueError("two\nlines"))).outcome == "crashed"
    assert observe(lambda: fail(KeyError("x"))).outcome == "crashed"


def test_a_hang_is_ended(monkeypatch):
    monkeypatch.setattr("tests.faults.ledger.LIMIT_SECONDS", 0.05)
    seen = observe(lambda: [None for _ in iter(int, 1)])
    assert seen.outcome == "hung"


def test_rows_that_are_not_kept_stay(tmp_path):
    fill(make(tmp_path))
    text = document(read_results(tmp_path))
    assert "**3 faults injected, 3 survived; 0 inputs tried. Silent 0, crashed 0, hung 0.**" in text
    assert "| It holds. | by hand | 3 faults | refused 3 | 0.5 s | `x::y` (`one`) |" in text
    assert "NOT kept" not in text
    fill(make(tmp_path, state="b"), "silent")
    text = document(read_results(tmp_path))
    assert "3 faults injected, 0 survived" in text
    assert "| **NOT kept.** It holds." in text
    assert "here: silent: byte 7" in text


def test_the_page_is_that_of_the_committed_results():
    assert PAGE.read_text() == document(read_results()), "run python -m tests.faults.document"
