"""The line of a running training: what is in it, when it is shown, that it fits."""

import io
import logging
from datetime import timedelta

import pytest
import torch

from fastmoco.runs import reporter
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.runs.reporter import Reporter, StepsLeft, progress_line, run_logger
from fastmoco.runs.run_folder import RunFolder

ROW = {
    "step": 40,
    "epoch": 1.5,
    "loss": 6.1234,
    "accuracy_top1": 12.34,
    "images_per_second": 1234.5,
    "data_wait_fraction": 0.02,
    "knn_top1": None,
}


class FakeClock:
    """Stands in for `time`."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = FakeClock()
    monkeypatch.setattr(reporter, "time", found)
    return found


def test_a_name_cannot_forge_a_line_of_the_log(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    with run_logger(RunFolder(tmp_path)) as logger:
        logger.info("data      %s", "a\n2026 saved \x1b[2J \x9b1m \u202egpj.exe\tb")
    expected = r"data      a\n2026 saved \x1b[2J \x9b1m \u202egpj.exe" + "\tb\n"
    assert screen.getvalue() == expected
    assert (tmp_path / "train.log").read_text().endswith(f" {expected}")


@pytest.fixture
def opened(tmp_path, clock):  # noqa: ARG001
    lines = io.StringIO()
    logger = logging.Logger("test", logging.INFO)
    logger.addHandler(logging.StreamHandler(lines))
    cpu = torch.device("cpu")
    found = Reporter(RunFolder(tmp_path), logger, cpu, resume_step=0, total_steps=400)
    yield found, lines
    found.close()


def test_the_log_has_names_that_are_not_utf_8(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with run_logger(RunFolder(tmp_path)) as logger:
        logger.info("data      %s", "Mu\udcf1oz")
    assert (tmp_path / "train.log").read_bytes().endswith(b"data      Mu\xf1oz\n")


def test_the_line_says_what_it_shows():
    line = progress_line(ROW, timedelta(seconds=3725), 3_200_000_000, 80)
    assert line == "loss 6.123  look-up 12.3%  ETA 1:02:05  1,234 images/s  3.2 GB"
    on_gpu = progress_line(ROW, None, 3_200_000_000, 80, 4_100_000_000)
    assert on_gpu.endswith("3.2 of 4.1 GB")
    waits = progress_line({**ROW, "data_wait_fraction": 0.35}, timedelta(0), 10**9, 80)
    assert "waits 35%" in waits
    first = progress_line({**ROW, "images_per_second": None}, None, 10**9, 80)
    assert first == "loss 6.123  look-up 12.3%  1.0 GB"


def test_the_line_fits_80_columns(opened):
    found, lines = opened
    huge = {"images_per_second": 1.2e6, "data_wait_fraction": 0.99, "accuracy_top1": 100.0}
    found.show({**ROW, **huge, "step": 12_345_678})
    (line,) = lines.getvalue().splitlines()
    assert line.startswith("step 12345678/400  loss 6.123  look-up 100.0%")
    assert len(line) <= 80
    assert len(progress_line({**ROW, **huge}, timedelta(days=400), 10**12, 60)) <= 60


def test_a_line_is_due_at_once_and_then_by_time(opened, clock):
    found, _ = opened
    assert found.line_is_due  # the first step is shown
    found.show(ROW)
    assert not found.line_is_due
    clock.now += reporter.SCREEN_SECONDS
    assert found.line_is_due
    found.row(ROW)  # a row is a line too
    assert not found.line_is_due


def test_lines_by_time_are_not_rows(opened, tmp_path):
    found, lines = opened
    found.show({**ROW, "step": 1})
    found.row(ROW)
    found.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [40]
    assert len(lines.getvalue().splitlines()) == 2


def test_the_time_left_is_by_the_steps_after_the_first(clock):
    left = StepsLeft(total=101)
    left.count(1)  # compiled for however long
    assert left.left() is None
    clock.now += 20
    left.count(11)
    assert left.left() == timedelta(seconds=180)


def test_the_screen_is_stderr_as_it_is_then(tmp_path, capsys):
    """A progress line replaces stderr while it is there."""
    with run_logger(RunFolder(tmp_path)) as logger:
        logger.info("before")
        capsys.readouterr()
        logger.info("after")
    assert capsys.readouterr().err == "after\n"
    assert len((tmp_path / "train.log").read_text().splitlines()) == 2
