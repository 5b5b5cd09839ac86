"""All ranks answer alike, whatever each of them asks, and as late as the device allows."""

import signal

import pytest
import torch

from fastmoco.forced_end import ENDING
from fastmoco.ranks import ALONE, Ranks
from fastmoco.runs.stop_signals import LATE, NOTHING, SAVE
from fastmoco.train.agreement import LAG, REQUESTS, Agreement

CPU = torch.device("cpu")
STOP = SAVE + signal.SIGTERM


def answers(*asked, lag):
    """Answers in each step of ranks that ask ``asked[rank][step]``; equal on all ranks."""
    ranks = [
        Agreement(iter(requests).__next__, Ranks(number, len(asked)), CPU, lag=lag)
        for number, requests in enumerate(asked)
    ]
    found = []
    for _ in asked[0]:
        carried = [rank.carried()[0] for rank in ranks]
        mean = torch.stack(carried).mean(0)
        for tensor in carried:
            tensor.copy_(mean)  # as `average_over_ranks` does
        (answer,) = {rank.answer() for rank in ranks}
        found.append(answer)
    return found


@pytest.mark.parametrize("lag", [0, LAG])
def test_the_largest_request_of_any_rank_is_answered_on_all(lag):
    first = [NOTHING, SAVE, NOTHING, LATE, NOTHING, *[STOP] * 3]
    second = [NOTHING, NOTHING, SAVE + signal.SIGINT, SAVE, NOTHING, NOTHING, NOTHING, NOTHING]
    expected = [NOTHING, SAVE, SAVE + signal.SIGINT, SAVE, NOTHING, *[STOP] * 3]
    found = answers(first, second, lag=lag)
    assert found == [NOTHING] * lag + expected[: len(expected) - lag]


def test_a_late_checkpoint_is_asked_for_once_until_it_is_answered():
    late = [LATE] * 3 + [NOTHING] * 3  # saved after the answer, and no longer late
    assert answers(late, [NOTHING] * 6, lag=2) == [NOTHING] * 2 + [LATE] + [NOTHING] * 3
    again = answers([LATE] * 9, [NOTHING] * 9, lag=2)
    assert again == [NOTHING, NOTHING, LATE] * 3


def test_one_of_many_ranks_is_heard():
    asked = [[NOTHING]] * 511 + [[STOP]]
    assert answers(*asked, lag=0) == [STOP]


def test_one_rank_alone_answers_at_once_and_sends_nothing():
    alone = Agreement(iter([SAVE]).__next__, ALONE, CPU)
    assert alone.carried() == []
    assert alone.answer() == SAVE


def test_every_signal_that_ends_has_a_request():
    assert set(REQUESTS) == {LATE, SAVE, *(SAVE + number for number in ENDING)}
    assert list(REQUESTS) == sorted(REQUESTS)
