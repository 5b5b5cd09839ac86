"""A rank that hangs is named after the limit, with what it last did; one that works is not."""

import os
import signal
import subprocess
import sys

import pytest

from fastmoco.errors import Interrupted
from fastmoco.ranks import Ranks
from fastmoco.train import heartbeat
from fastmoco.train.heartbeat import Activity, Phase, Watch
from tests.limits import HANG_SECONDS
from tests.ranks import free_port

BEATS = round(heartbeat.HANG_SECONDS / heartbeat.BEAT_SECONDS)


class DictStore:
    """A store that another thread could use, as torch's."""

    def __init__(self):
        self.values = {}

    def set(self, key, value):
        self.values[key] = value.encode()

    def get(self, key):
        return self.values[key]

    def check(self, keys):
        return all(key in self.values for key in keys)


class LostStore(DictStore):
    def set(self, *_):
        raise RuntimeError("Broken pipe")


@pytest.fixture
def pair():
    """Two ranks in step 7, which computes, after the first step of the run."""
    store, activities = DictStore(), [Activity(6), Activity(6)]
    for activity in activities:
        activity.reach(6, Phase.computing)
        activity.step_done()
        activity.reach(7, Phase.computing)
    return activities, [Watch(one, Ranks(i, 2), store) for i, one in enumerate(activities)]


def beat(watches, times=BEATS):
    return [watch.beat() for _ in range(times) for watch in watches]


def test_the_limit_is_two_minutes():
    assert heartbeat.HANG_SECONDS == 120


def test_a_stopped_process_is_named_by_the_other(pair):
    activities, watches = pair
    activities[1].reach(7, Phase.reading)
    beat(watches, 1)
    assert set(beat(watches[:1], BEATS)) == {""}
    found = watches[0].beat()
    assert found == "rank 1 has not moved for 120 s; it last did: step 7, reading data"
    assert watches[1].beat() == found  # if it wakes up


def test_a_stopped_first_rank_is_named(pair):
    beat(pair[1], 1)
    assert "rank 0 has not moved for 120 s" in beat(pair[1][1:])[-1]


def test_the_rank_that_others_wait_for_is_named(pair):
    activities, watches = pair
    activities[0].reach(8, Phase.computing)
    found = [text for text in beat(watches, BEATS + 2) if text]
    assert found[0].startswith("rank 1 has not moved for 120 s; it last did: step 7, computing")


@pytest.mark.parametrize("phase", [Phase.reading, Phase.measuring, Phase.saving])
def test_what_has_no_limit_is_waited_for(pair, phase):
    activities, watches = pair
    activities[0].reach(7, phase)  # and beats; reading has a limit of its own
    activities[1].reach(8, Phase.computing)
    said = set()
    for _ in range(3 * BEATS):
        assert beat(watches, 1) == ["", ""]
        said.add(watches[0].still_doing())
    words = f"step 7, {heartbeat.WORDS[phase]}, for "
    assert said == {"", f"{words}120 s by now", f"{words}240 s by now"}


def test_a_thread_is_silent_while_rank_0_saves(pair):
    activities, watches = pair
    activities[0].reach(7, Phase.saving)
    beat(watches, 1)
    assert set(beat(watches[1:], 3 * BEATS)) == {""}


def test_the_first_step_may_compile_and_others_may_be_slow(pair):
    activities, watches = pair
    activities[0].fastest_seconds = None
    assert set(beat(watches, BEATS + 2)) == {""}
    activities[0].fastest_seconds = 20.0
    assert set(beat(watches, BEATS // 2)) == {""}  # a step may take 200 s
    assert beat(watches)[-1]


def test_a_rank_that_has_left_is_not_missed(pair):
    activities, watches = pair
    beat(watches, 1)
    watches[1].leave()
    activities[0].reach(7, Phase.saving)
    assert set(beat(watches[:1], 3 * BEATS)) == {""}


@pytest.mark.parametrize(
    ("error", "has_left"), [(Interrupted(15, "stopped"), True), (ValueError("damaged"), False)]
)
def test_a_rank_that_fails_is_missed_by_the_others(monkeypatch, tmp_path, error, has_left):
    store = DictStore()
    monkeypatch.setattr(heartbeat, "own_store", lambda *_: store)
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    with (
        pytest.raises(type(error)),
        heartbeat.watched(Activity(6), Ranks(1, 2), tmp_path / "stacks"),
    ):
        raise error
    last = store.values.get("1", b"").decode()
    assert (f" {heartbeat.AT_END.step} " in last) == has_left


def test_a_store_that_does_not_answer_is_a_hang(pair):
    watch = Watch(pair[0][0], Ranks(1, 2), LostStore())
    assert beat([watch], BEATS - 1) == [""] * (BEATS - 1)
    assert "connects the ranks has not answered for 120 s" in watch.beat()


RANK = """
import os, signal, sys, time
from pathlib import Path
import torch
from fastmoco.ranks import environment_ranks
from fastmoco.runs.distributed import largest, process_group
from fastmoco.train import heartbeat

heartbeat.HANG_SECONDS, heartbeat.BEAT_SECONDS = 1.0, 0.1
ranks, activity = environment_ranks(), heartbeat.Activity(6)
with (
    process_group(ranks, torch.device("cpu")),
    heartbeat.watched(activity, ranks, Path(sys.argv[1])),
):
    largest(0, ranks)
    activity.step_done()
    activity.reach(7, heartbeat.Phase.reading)
    time.sleep(1.5)  # longer than the limit, but it beats
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    activity.reach(7, heartbeat.Phase.computing)
    largest(0, ranks)
"""


@pytest.mark.full
def test_a_rank_that_is_stopped_ends_the_other(tmp_path):
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    stacks = tmp_path / "stacks.txt"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(stacks)],
            env={**os.environ, **address, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        _, said = processes[0].communicate(timeout=HANG_SECONDS)
    finally:
        processes[1].send_signal(signal.SIGKILL)
        processes[1].communicate()
    assert processes[0].returncode == 1, said
    assert (
        "fastmoco: rank 0: rank 1 has not moved for 1 s; it last did: step 7, reading data" in said
    )
    assert "in largest" in stacks.read_text()  # the main thread, in the collective
