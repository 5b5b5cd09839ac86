"""One number of one step is NaN, infinite or 1e38: no checkpoint has it, and the run resumes."""

import itertools
from pathlib import Path

import pytest

from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.runs.metrics_file import read_metrics
from tests.faults.failing_calls import Answer, Request, Server
from tests.faults.ledger import Ledger
from tests.faults.training import SPOILERS, run_options, saved
from tests.ranks import free_port

VALUES = ("nan", "inf", "1e38")
STEPS = {"other": 3, "saving": 4, "last": 6}
PRECISIONS = ("float32", "bf16", "fp16")
MORE = ["train.max_steps=6", "train.log_every_steps=2", "checkpoint.every_steps=2"]
CASES = list(itertools.product(SPOILERS, VALUES, STEPS))


def together(server: Server, ranks: int, action: str, arguments: list[object]) -> list[Answer]:
    """The answers of all ranks of a run."""
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    requests = [
        Request(
            action=f"tests.faults.training:{action}",
            arguments=arguments,
            environment=rendezvous | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    return server.do_together(requests)


@pytest.mark.full
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_numbers(
    ledger: Ledger, server: Server, tiny_set: Path, tmp_path: Path, precision: str, ranks: int
) -> None:
    campaign = ledger.campaign(
        f"numbers_{precision}_{ranks}",
        promise=f"A number that is not finite reaches no checkpoint ({precision}, {ranks} ranks).",
        how="a value of the loss, a gradient, a view, a running statistic, the optimizer's state "
        "or the queue becomes NaN, Inf or 1e38, on the last rank, in a saving step, the last or "
        "another; then the same command again",
    )
    more = [*MORE, f"precision={precision}"]
    reference = tmp_path / "reference"
    for part in campaign.parts(len(SPOILERS)):
        if not reference.exists():
            answers = together(server, ranks, "train", [run_options(tiny_set, reference, *more)])
            assert [answer.code for answer in answers] == [0] * ranks, answers
        cases = [CASES[4]] if part.quick else CASES[part.number * 9 : part.number * 9 + 9]
        for number, (what, value, step) in enumerate(cases):
            run = tmp_path / f"{part.number}-{number}"
            options = run_options(tiny_set, run, *more)
            spoiled = [options, what, value, STEPS[step]]
            answers = together(server, ranks, "train_spoiled", spoiled)
            outcome, why = judged(answers, run, reference, STEPS[step])
            if outcome in ("stopped", "skipped"):
                again = together(server, ranks, "train", [options])
                if any(answer.code for answer in again):
                    outcome, why = "silent", f"the run cannot resume: {again[0].error[-300:]}"
                elif outcome == "stopped" and saved(run) != saved(reference):
                    outcome, why = "silent", "the resumed run ends otherwise than the reference"
            seconds = max(answer.seconds for answer in answers)
            part.add(outcome, seconds, place=f"{what} {value}", example=f"{step}: {why}")
    campaign.check()


def judged(answers: list[Answer], run: Path, reference: Path, step: int) -> tuple[str, str]:
    """``stopped``: an error names it; ``skipped``: the row counts it; ``harmless``: no trace."""
    first = answers[0]
    if any(answer.is_hung for answer in answers):
        return "hung", ""
    if any(answer.has_traceback or answer.code is None for answer in answers):
        return "crashed", "".join(answer.error for answer in answers)[-300:]
    kept, expected = saved(run), saved(reference)
    if kept:
        load_checkpoint(run)  # raises where a value is not finite
    if first.code:
        bad = {at for at, digest in kept.items() if expected[at] != digest}
        # torchrun shows the errors of all ranks: the one that was spoiled names the fault.
        said = " ".join(answer.error for answer in answers)
        told = "finite" in said or "as large as at the start" in said
        if bad or not told:
            return "silent", f"saved otherwise: {bad}; {first.error[-200:]}"
        return "stopped", first.error
    if kept == expected:
        return "harmless", ""
    rows = read_metrics(run / "metrics.jsonl")
    if any(row["skipped_steps"] and row["step"] >= step for row in rows):
        return "skipped", ""
    return "silent", "exit code 0, other weights than the reference's"
