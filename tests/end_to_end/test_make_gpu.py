"""`make gpu` at toy size on the CPU: its first run on a card is not its first run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.child import ChildResult
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import checks, runner, runs, speed
from benchmarks.gpu.job import TOY, Job, run_part
from benchmarks.report import Report
from benchmarks.step_contenders import Parts, step_builders
from benchmarks.step_subject import noise_batch
from fastmoco.moco.settings import ModelConfig, Precision
from tests.runs import write_colors

SLOW = ("kill -9", "gpu tests", "few epochs", "the notebook")
"""Parts that start processes or train; run by `make full`."""
AGAIN = ("precisions", "eager")
"""Parts that do what a part before does, with other names; run by `make full`."""
PARTS = [one for one in program.PARTS if not any(name in one.name for name in SLOW + AGAIN)]


@pytest.mark.parametrize("part", PARTS, ids=lambda one: one.name)
def test_a_part_gives_its_figures(part, tmp_path):
    found = run_part(part.target, part.name, TOY, None, str(tmp_path), 60.0)
    assert found["problem"] == "", "\n".join(found["lines"])
    assert found["rows"]
    reasons = [row["note"] for row in found["rows"] if row["value"] is None]
    assert all(reason.startswith("absent: ") for reason in reasons)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
def test_on_a_card_all_steps_are_there_that_parts_name(encoder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    parts = Parts(ModelConfig(encoder=encoder), 64, torch.device("cuda"))
    builders = step_builders(parts, noise_batch(8, 16, torch.device("cpu")), everything=True)
    assert {*speed.BESIDE, *speed.PRECISIONS, *speed.MODES} <= builders.keys()
    ours = builders[speed.OURS].keywords | {"precision": builders[speed.OURS].args[-1]}
    assert ours == {"precision": Precision.bf16, "compiled": True}
    assert builders[speed.OURS_PLAIN].keywords == {"compiled": False, "graphed": False}


def test_a_card_is_described(monkeypatch):
    card = SimpleNamespace(
        name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, total_memory=80e9
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    units, memory = checks._card_rows(torch.device("cuda"))
    assert (units.value.median, memory.value.median) == (132, 80)
    assert "NVIDIA H100, compute capability 9.0" in units.note
    assert "sm_80, sm_90" in units.note


def test_a_step_that_replays_other_numbers_is_noticed(tmp_path, monkeypatch):
    class Frozen(checks.HostRecording):
        def replay(self):
            return super().replay() * 1.0001

    monkeypatch.setattr(checks, "HostRecording", Frozen)
    job, report = Job(TOY, None, tmp_path, 60.0), Report("replay", TOY)
    with pytest.raises(AssertionError, match=r"replayed and launched steps differ: .*metrics 3"):
        checks.replay(job, report)


def test_gpu_tests_are_counted_as_pytest_prints_them(tmp_path, monkeypatch):
    alone = "tests/x.py::test_a PASSED [ 10%]\ntests/x.py::test_b[PASSED] FAILED [ 20%]\n"
    output = alone + "[gw1] [ 30%] ERROR tests/x.py::test_c \n\n===== 1 failed in 2 s =====\n"
    monkeypatch.setattr(checks, "_output_of", lambda *_: (output, False))
    report = Report("tests", TOY)
    with pytest.raises(AssertionError, match="1 failed in 2 s"):
        checks.gpu_tests(Job(TOY, None, tmp_path, 60.0), report)
    counts = {row.what: row.value.median for row in report.rows}
    assert counts["gpu tests failed"] == counts["gpu tests error"] == 1


def test_a_run_that_resumes_with_other_weights_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_started", lambda *_: None)
    monkeypatch.setattr(runs, "_finish", lambda _: None)
    monkeypatch.setattr(runs, "_kill", lambda *_: "step 3")
    monkeypatch.setattr(runs, "load_checkpoint", lambda run: run.name)
    monkeypatch.setattr(runs, "read_metrics", lambda _: [{"loss": 1.0}])
    monkeypatch.setattr(runs, "_differing", lambda *_: ["model.queue.keys"])
    job = Job(TOY, "data", tmp_path, 60.0)
    with pytest.raises(AssertionError, match=r"killed at step 3 .* \['model.queue.keys'\]"):
        runs.kill_and_resume(job, Report("resume", TOY))
    monkeypatch.setattr(runs, "_differing", lambda *_: [])
    runs.kill_and_resume(job, Report("resume", TOY))


@pytest.mark.full
def test_the_whole_at_toy_size(tmp_path, capsys, monkeypatch):
    """Parts that are quick but for their imports run here; the others as on a card, as children."""

    def call(target, arguments, *, timeout_seconds):
        if any(name in arguments["name"] for name in (*SLOW, "strict")):
            return in_child(target, arguments, timeout_seconds=timeout_seconds)
        return ChildResult(run_part(**arguments), 0)

    in_child = runner.call_in_child
    monkeypatch.setattr(runner, "call_in_child", call)
    data = write_colors(tmp_path / "data", seed=0, per_class=12)
    out = tmp_path / "out"
    status = program.main(["toy", f"--data={data}", f"--out={out}", "--budget=800"])
    text = capsys.readouterr().out
    assert status == 0, text
    assert text.count(" ok, ") == len(program.PARTS), text
    files = {path.name for path in out.iterdir()}
    assert files == {f"{one.file}.json" for one in program.PARTS} | {"summary.md"}
    assert all(json.loads(path.read_text()) for path in out.glob("*.json"))
    assert "kNN top-1" in text
    assert Path(out / "summary.md").read_text().count("| ok |") == len(program.PARTS)
