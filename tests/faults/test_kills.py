"""A run that is killed anywhere, on one rank or two, resumes and ends as the reference."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.faults.failing_calls import Answer, Request, Server
from tests.faults.ledger import Ledger, Part
from tests.faults.test_numbers import together
from tests.faults.training import reached, rows_of, run_options, saved
from tests.ranks import free_port

SEED = 2311
MORE = ["train.max_steps=12", "train.log_every_steps=2", "checkpoint.every_steps=3"]
PER_PART = 10


@pytest.mark.full
@pytest.mark.parametrize(("ranks", "kills"), [(1, 200), (2, 50)])
def test_kills(
    ledger: Ledger, server: Server, tiny_set: Path, tmp_path: Path, ranks: int, kills: int
) -> None:
    campaign = ledger.campaign(
        f"kills_{ranks}",
        promise=f"A run that is killed resumes and ends bit-equal ({ranks} ranks).",
        how="SIGKILL, alternately of all ranks after a drawn time and of the first rank at a drawn "
        f"call to the system below the run folder (seed {SEED}); then the same command again",
    )
    reference, calls, seconds = tmp_path / "reference", 0, 0.0
    for part in campaign.parts(kills // PER_PART):
        if not calls:
            answers = run(server, tiny_set, reference, ranks, number=10**9)
            assert [one.code for one in answers] == [0] * ranks, answers
            calls, seconds = answers[0].counted, answers[0].seconds
        part.facts["reference_sha256"] = saved(reference)[12]
        random = np.random.default_rng([SEED, ranks, part.number])
        for number in range(1 if part.quick else PER_PART):
            folder = tmp_path / f"{part.number}-{number}"
            if number % 2:
                given = {"kill_seconds": float(random.uniform(0.05, seconds))}
            else:
                given = {"number": int(random.integers(1, calls + 1))}
            killed = run(server, tiny_set, folder, ranks, **given)
            judge(part, killed, server, tiny_set, folder, reference, ranks, json.dumps(given))
    campaign.check()


def run(
    server: Server,
    tiny_set: Path,
    folder: Path,
    ranks: int,
    number: int = 0,
    kill_seconds: float = 0.0,
) -> list[Answer]:
    """Train, and kill."""
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    requests = [
        Request(
            action="tests.faults.training:train",
            arguments=[run_options(tiny_set, folder, *MORE)],
            folder=str(folder) if rank == 0 else "",
            number=number,
            kill_seconds=kill_seconds,
            environment=rendezvous | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    return server.do_together(requests)


def judge(
    part: Part,
    killed: list[Answer],
    server: Server,
    tiny_set: Path,
    folder: Path,
    reference: Path,
    ranks: int,
    given: str,
) -> None:
    """Count a kill, after the run was resumed."""
    place = reached(folder)
    others = [one for one in killed[1:] if one.is_hung or one.has_traceback]
    again = together(server, ranks, "train", [run_options(tiny_set, folder, *MORE)])
    kept, expected = saved(folder), saved(reference)
    if others or any(one.is_hung for one in again):
        outcome = "hung" if any(one.is_hung for one in (*others, *again)) else "crashed"
    elif any(one.code for one in again):
        outcome = "crashed"
    elif kept.items() <= expected.items() and 12 in kept and rows_of(folder) == rows_of(reference):
        outcome = "bit-equal"
    else:
        outcome = "silent"
    errors = " ".join(one.error[-200:] for one in (*others, *again))
    seconds = max(one.seconds for one in killed)
    part.add(outcome, seconds, place=place, example=f"{given}: {errors}")
