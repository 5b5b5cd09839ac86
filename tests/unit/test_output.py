"""What a command prints reaches its reader in any locale, or ends quietly."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmoco.output import display_stream, lasting_output

ENCODINGS = ["ascii", "latin-1", "utf-8", "cp1252", "koi8-r", "gb18030"]


class Redirected:
    """Stdout as a file of an encoding."""

    def __init__(self, monkeypatch, encoding):
        self.bytes = io.BytesIO()
        monkeypatch.setattr(
            sys, "stdout", io.TextIOWrapper(self.bytes, encoding=encoding, newline="")
        )


def printed(text, encoding):
    """The bytes that a print within the block writes."""
    with pytest.MonkeyPatch.context() as patch:
        redirected = Redirected(patch, encoding)
        with lasting_output():
            print(text)  # noqa: T201
        return redirected.bytes.getvalue()


def test_what_the_locale_lacks_is_escaped():
    assert printed("Käse 日", "ascii") == b"K\\xe4se \\u65e5\n"
    assert printed("Käse 日", "latin-1") == b"K\xe4se \\u65e5\n"
    assert printed("Käse 日", "utf-8") == "Käse 日\n".encode()


def test_bytes_of_a_file_name_stay_as_they_are():
    name = os.fsdecode(b"K\xe4se")
    assert printed(name, "utf-8") == printed(name, "ascii") == b"K\xe4se\n"


HOSTILE = "\x1b]0;owned\x07 \x1b[2J\x08\x9b31m \u202egnp.exe \u2066x\u2028 line\rover\x7f"


def test_control_codes_of_names_are_escaped():
    shown = printed(f"a\tb\n{HOSTILE}", "utf-8").decode()
    assert shown.startswith("a\tb\n")
    assert shown.replace("\n", "").replace("\t", "").isprintable()
    assert r"\x1b]0;owned\x07" in shown
    assert not set("\x1b\x07\x08\x9b\u202e\u2066\u2028\r\x7f") & set(shown)


def test_a_display_may_move_the_cursor(monkeypatch):
    stream = Redirected(monkeypatch, "utf-8")
    with lasting_output():
        display_stream(sys.stdout).write("\x1b[2K")
        print("\x1b[2K")  # noqa: T201
    assert stream.bytes.getvalue() == b"\x1b[2K\\x1b[2K\n"


def test_bytes_that_a_terminal_may_take_for_control_codes(monkeypatch):
    stream = Redirected(monkeypatch, "utf-8")
    with lasting_output():
        monkeypatch.setattr(sys.stdout._stream, "isatty", lambda: True, raising=False)
        print(os.fsdecode(b"K\xe4se \x9b2J"))  # noqa: T201
    assert stream.bytes.getvalue() == b"K\xe4se \\udc9b2J\n"


def test_only_displays_write_past_the_escapes():
    """Each console of the product is on `display_stream`: without it, colors would be escaped."""
    for path in (Path(__file__).parents[2] / "fastmoco").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("Console(") == text.count("Console(file=display_stream("), path


@settings(max_examples=30)
@given(st.text(), st.sampled_from(ENCODINGS))
def test_no_text_is_an_error(text, encoding):
    assert printed(text, encoding).endswith(b"\n")


def closed_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="utf-8")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_pipe_is_no_error(monkeypatch, name):
    with closed_pipe() as pipe:
        monkeypatch.setattr(sys, name, pipe)
        with lasting_output():
            for _ in range(3):
                print("x" * 100_000, file=getattr(sys, name), flush=True)
        assert getattr(sys, name) is pipe


def test_a_full_disk_is_an_error(monkeypatch):
    full = open("/dev/full", "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(OSError, match="space") as caught, lasting_output():
        print("result", flush=True)  # noqa: T201
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="space"):
        full.close()


def test_a_closed_descriptor_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with lasting_output():
        print("lost", file=sys.stderr, flush=True)  # noqa: T201
        assert not sys.stderr.isatty()
    assert sys.stderr is None
