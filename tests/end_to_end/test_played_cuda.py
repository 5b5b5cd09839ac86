"""Code for a GPU on a played one: see tests/played_cuda."""

from tests.played_cuda.played import play

CASES = {
    "as it comes": [],
    "float32": ["precision=float32"],
}


def test_a_step_stays_on_its_device_and_reads_nothing() -> None:
    found = play("tests.played_cuda.step:run_cases", CASES)
    assert {name: case["faults"] for name, case in found.items() if case["faults"]} == {}
