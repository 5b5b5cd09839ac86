"""What a command says while it waits: a clock on a terminal, a line elsewhere."""

import io
import re
import signal
import sys
import threading
import time

import pytest

from fastmoco import waiting as module
from fastmoco.waiting import waiting
from tests.limits import HANG_SECONDS


class Terminal(io.StringIO):
    """A stderr that says that it is a terminal."""

    def isatty(self):
        return True


def test_a_quick_block_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.05)
    with waiting("loading"):
        pass
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_slow_block_says_one_line(capsys, monkeypatch):
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.01)
    with waiting("loading"):
        time.sleep(0.1)
    assert capsys.readouterr().err == "fastmoco: loading ...\n"


def test_a_long_block_says_so_again_until_it_ends_also_by_ctrl_c(capsys, monkeypatch):
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.01)
    monkeypatch.setattr(module, "REPEAT_SECONDS", 0.05)
    threads = threading.active_count()

    def compile_until_ctrl_c():
        with waiting("compiling"):
            time.sleep(0.3)
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            compile_until_ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)
    end = time.monotonic() + HANG_SECONDS
    while threading.active_count() > threads and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == threads
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "fastmoco: compiling ..."
    assert others
    assert all(re.fullmatch(r"fastmoco: compiling \.\.\. \d+ s", line) for line in others)
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_clock_at_once_and_no_line_remains(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with waiting("loading"):
        shown = terminal.getvalue()
    assert "loading" in shown
    assert "0:00:00" in shown
    assert terminal.getvalue().endswith("\x1b[2K")  # erased


def test_other_ranks_are_silent(capsys, monkeypatch):
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.01)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with waiting("loading"):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
