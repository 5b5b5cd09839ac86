"""Ctrl-C and SIGTERM are answered at once, and with the right exit code."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastmoco import forced_end
from fastmoco.errors import Interrupted
from fastmoco.runs.stop_signals import NOTHING, SAVE, WaitStopped, stop_signals


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)


def test_the_first_signal_is_answered_at_once(capfd):
    with stop_signals() as stop:
        send()
        said = capfd.readouterr().err
        assert stop.signal_number == signal.SIGINT
    assert said == (
        "fastmoco: stopping after this step, then saving; Ctrl-C again quits without saving\n"
    )


def send_to_a_block(*numbers, nothing_to_save=False):
    with stop_signals() as stop:
        stop.nothing_to_save = nothing_to_save
        for number in numbers:
            send(number)
        pytest.fail("the block went on")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_quits(number, monkeypatch):
    monkeypatch.setattr(forced_end, "DOUBLED_SECONDS", 0.0)
    with pytest.raises(Interrupted, match="nothing more was saved") as caught:
        send_to_a_block(number, number)
    assert caught.value.signal_number == number


def test_before_anything_is_computed_one_signal_quits():
    words = "nothing new was computed; the same command resumes"
    with pytest.raises(Interrupted, match=words):
        send_to_a_block(signal.SIGTERM, nothing_to_save=True)


def test_a_signal_that_comes_twice_at_once_is_one():
    with stop_signals() as stop:  # from torchrun and the terminal, or from `timeout`
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM


def test_a_request_to_save_is_answered_once_and_stopping_comes_first():
    with stop_signals(saves=True) as stop:
        assert stop.take() == NOTHING
        send(signal.SIGUSR1)
        assert (stop.take(), stop.take()) == (SAVE, NOTHING)
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        assert stop.take() == SAVE + signal.SIGTERM


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            send(signal.SIGHUP)
            assert stop.signal_number == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("alone", [True, False])
def test_a_signal_ends_a_wait_for_data_unless_other_ranks_wait_too(alone):
    with stop_signals() as stop:
        try:
            with stop.ending_wait(alone=alone):
                send(signal.SIGTERM)
            ended = False
        except WaitStopped:
            ended = True
        assert (ended, stop.signal_number) == (alone, signal.SIGTERM)


def test_an_interrupt_of_another_origin_stays_one():
    with pytest.raises(KeyboardInterrupt), stop_signals():
        raise KeyboardInterrupt


def test_a_thread_that_cannot_handle_signals_runs_its_block():
    def block():
        with stop_signals() as stop:
            return stop.signal_number, signal.getsignal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(block).result() == (0, before)


def test_a_closed_pipe_stops_no_answer(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(os, "write", lambda _, text, real=os.write: real(writing, text))
    with stop_signals() as stop:
        send()
        assert stop.signal_number == signal.SIGINT
    os.close(writing)
