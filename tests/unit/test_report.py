"""`fastmoco report` and `runs`: what is in a run folder is the page, escaped."""

import json
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from fastmoco import cli
from fastmoco.configuration import load_config
from fastmoco.errors import UsageError
from fastmoco.evaluate.baselines import Baselines, write_baselines
from fastmoco.report import report as module
from fastmoco.report.charts import MOST_POINTS, _draw_runs, _thinned
from fastmoco.report.gallery import principal_components
from fastmoco.report.page import run_page
from fastmoco.report.recorded import read_run
from fastmoco.report.report import write_at_end, write_report
from fastmoco.report.runs_list import list_runs
from fastmoco.report.settings import ReportConfig, RunsConfig
from fastmoco.runs.checkpoint import Checkpoint, save_checkpoint
from fastmoco.runs.run_folder import RunFolder, RunIdentity
from fastmoco.train.settings import FREE_KEYS, TrainConfig
from tests.runs import OPTIONS, write_colors, write_run

EVIL = '<script>alert("x")</script>&'
ROW = {
    "loss": 2.0,
    "loss_floor_ln_k1": 2.83,
    "accuracy_top1": 40.0,
    "accuracy_top5": 80.0,
    "positive_similarity": 0.7,
    "negative_similarity": 0.1,
    "feature_deviation": 0.8,
    "skipped_steps": 0,
    "images_per_second": 120.0,
    "data_wait_fraction": 0.02,
    "knn_top1": 60.0,
}


def make_run(folder, *overrides, rows=4):
    """A run folder as `train` leaves it, with a hostile name in each of its files."""
    run = RunFolder(write_run(folder, *overrides))
    cfg = load_config(TrainConfig, [*OPTIONS, *overrides])
    cfg.advice = ["15 images: too few", f"moco.queue_size=16: {EVIL}"]
    run.config.write_text(RunIdentity(cfg, FREE_KEYS).to_yaml())
    lines = [json.dumps({"step": n + 1, "epoch": (n + 1) / 2, **ROW}) for n in range(rows)]
    run.metrics.write_text("".join(line + "\n" for line in lines))
    write_baselines(run.baselines, Baselines(31.0, 20.0, 500, "images of data.test"))
    figures = {"loss": 2.0, "knn_top1": 60.0, "knn_top1_pixels": 31.0}
    verdict = {"outcome": "learned", "step": rows, "reasons": [EVIL], "advice": [EVIL]}
    run.verdict.write_text(json.dumps({**verdict, "figures": figures, "next": EVIL}))
    time = "2026-01-02 03:04:05,678 "
    log = [f"{time}run       old", f"{time}run       runs/x, seed 0", f"{time}data      {EVIL}"]
    run.log.write_text("\n".join(log))
    run.quarantine.write_text(f'path,reason\n"{EVIL.replace(chr(34), chr(34) * 2)}",it is empty\n')
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_colors(folder / "images", seed=0, per_class=5, names="blue <b> red")
    assert cli.main(["convert", str(folder / "images"), str(folder / "set.beton")]) == 0
    make_run(folder / "first", f"data.train={folder / 'set.beton'}")
    return folder


def test_all_of_a_run_is_on_one_page(place, capsys):
    assert cli.main(["report", str(place / "first"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    text = (place / "first/report.html").read_text()
    assert (found["missing"], found["num_bytes"]) == ("", len(text.encode()))
    for part in (
        "60",
        "31",
        "15 of 15 images",
        "chance, ",
        "runs/x, seed 0",
    ):
        assert part in text, part
    assert text.count("<circle") == 15
    assert text.count("<tr><td>blue") == text.count("<tr><td>red") == 1
    assert "it is empty" in text
    assert "Highest contrastive loss" in text
    assert "<td><code></code></td><td>15 images: too few</td>" in text
    assert "<td><code>moco.queue_size=16</code></td>" in text
    assert "old" not in re.search(r'id="machine".*?</table>', text, re.DOTALL)[0]


def test_nothing_of_a_file_becomes_markup(place):
    write_report([place / "first"], ReportConfig())
    text = (place / "first/report.html").read_text()
    assert "alert" in text
    assert EVIL not in text
    assert "<td>&lt;b&gt;" in text
    assert "<b>" not in text
    escaped = "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;&amp;"
    assert text.count(escaped) >= 6  # advice, reason, verdict's advice, next, log, image left out


def test_a_page_asks_for_nothing(place):
    write_report([place / "first"], ReportConfig())
    text = (place / "first/report.html").read_text()
    assert "default-src 'none'" in text
    loaded = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')>\s]+)', text)
    assert loaded
    assert [one for one in loaded if not one.startswith(("data:image/", "#"))] == []


def test_what_is_missing_is_said(tmp_path, capsys):
    bare = make_run(tmp_path / "bare", "data.train=nowhere.beton", "moco.mechanism=moco", rows=0)
    for name in ("verdict.json", "train.log", "baselines.json", "quarantine.csv"):
        (bare / name).unlink()
    assert cli.main(["report", str(bare)]) == 0
    assert "without images: " in capsys.readouterr().out
    text = (bare / "report.html").read_text()
    assert "No verdict yet." in text
    assert "nowhere.beton" in text
    assert "No row of metrics" in text
    assert cli.main(["report", str(bare), "data.test=nowhere.beton"]) == 2
    assert "nowhere.beton" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "has no config.yaml" in capsys.readouterr().err
    assert cli.main(["report", str(bare), f"out={tmp_path / 'r.png'}"]) == 2
    assert "must end in .html" in capsys.readouterr().err


def test_damaged_files_of_a_run_are_left_out(tmp_path):
    run = make_run(tmp_path / "run", "data.train=nowhere.beton")
    for name in ("verdict.json", "baselines.json", "quarantine.csv", "metrics.jsonl"):
        (run / name).write_bytes(b'{"outcome": \xff\n')
    (run / "evaluation").mkdir()
    (run / "evaluation/knn.json").write_text('{"top1": "<b>"}')
    found = read_run(run)
    parts = (found.verdict, found.baselines, found.left_out, found.knn, found.rows)
    assert parts == (None, None, None, None, [])
    (run / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.5, "loss": 2.0}\n')
    assert read_run(run).rows == []
    assert "No verdict yet." in run_page(found, None)


def test_an_encoder_without_a_queue_has_no_hardest_images(place, tmp_path):
    data = f"data.train={place / 'set.beton'}"
    run = make_run(tmp_path / "run", "moco.mechanism=end_to_end", "moco.batch_norm_splits=1", data)
    write_report([run], ReportConfig())
    text = (run / "report.html").read_text()
    assert "Not computed: the checkpoint has no key encoder and queue of images." in text
    assert text.count("<circle") == 15


def test_a_single_measurement_is_seen_in_a_comparison(tmp_path):
    runs = [read_run(make_run(tmp_path / str(rows), rows=rows)) for rows in (1, 40)]
    axes = Figure().add_subplot()
    _draw_runs(axes, runs, "knn_top1")
    assert [line.get_marker() for line in axes.lines] == ["o", "None"]


def test_several_runs_are_compared(place, tmp_path):
    other = make_run(tmp_path / "second", f"data.train={place / 'set.beton'}", "seed=3")
    out = tmp_path / "both.html"
    assert cli.main(["report", str(place / "first"), str(other), f"out={out}"]) == 0
    text = out.read_text()
    assert "2 runs compared" in text
    rows = re.findall(r"<tr><td><code>([a-z_.]+)</code></td><td>(.*?)</td><td>(.*?)</td>", text)
    assert rows == [("seed", "0", "3")]
    assert text.count(">learned<") == 2
    assert EVIL not in text


def test_the_map_is_that_of_the_principal_components():
    random = np.random.default_rng(0)
    spread = random.normal(size=(40, 6)) * np.array([0.3, 0.1, 0.01, 0.01, 0.01, 0.01])
    vectors = torch.tensor(spread + np.array([0, 0, 5, 0, 0, 0]), dtype=torch.float32)
    places, explained = principal_components(vectors)
    first = np.array([x for x, _ in places])
    assert abs(np.corrcoef(first, spread[:, 0])[0, 1]) > 0.99
    assert explained > 95
    assert np.ptp(places, axis=0) == pytest.approx([1, 1])
    same, none = principal_components(torch.ones(5, 3))
    assert none == pytest.approx(0, abs=1e-6)
    assert all(0 <= value <= 1 for pair in same for value in pair)


def test_long_runs_have_short_curves():
    rows = [{"step": n, "knn_top1": 1.0 if n == 777 else None} for n in range(100_001)]
    thin = _thinned(rows)
    assert len(thin) < MOST_POINTS + 3
    assert {rows[0]["step"], 777, 100_000} <= {row["step"] for row in thin}


def test_at_the_end_it_is_written_once_and_never_raises(place, capsys, monkeypatch):
    run = place / "first"
    (run / "report.html").unlink(missing_ok=True)
    write_at_end(run, "cpu")
    assert capsys.readouterr().out == f"report    {run / 'report.html'}\n"
    write_at_end(run, "cpu")
    assert capsys.readouterr().out == ""
    (run / "report.html").unlink()
    monkeypatch.setattr(module, "write_report", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="cannot be written: division by zero"):
        write_at_end(run, "cpu")


def test_runs_are_listed_and_old_checkpoints_removed(tmp_path, capsys):
    folder = tmp_path / "runs"
    for name in ("a", "b"):
        run = make_run(folder / name, "data.train=x.beton", "train.epochs=2")
        for step in (2, 3):
            save = Checkpoint(step=step, tensors={"x": torch.zeros(1000)}, facts={"config": {}})
            save_checkpoint(run / "checkpoints", save, keep=9)
    (folder / "b/verdict.json").unlink()
    (folder / "a/evaluation/finetune-pretrained/checkpoints").mkdir(parents=True)
    assert cli.main(["runs", f"folder={folder}"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"a  finished  3 of 4   60\.0 +0 MB  learned", text)
    assert re.search(r"b  stopped   3 of 4   60\.0", text)
    assert len(text.splitlines()) == 3  # the result of finetune is no run
    (folder / "official/checkpoints").mkdir(parents=True)
    assert cli.main(["runs", f"folder={folder}"]) == 0
    said = f"not listed: {folder / 'official'} has no config.yaml"
    assert said in capsys.readouterr().out.splitlines()
    paths = [folder / "a", folder / "b"]
    found = list_runs(paths, RunsConfig(keep=1))
    assert [run.num_checkpoints for run in found.runs] == [1, 1]
    assert found.freed_bytes > 8000
    assert list_runs(paths, RunsConfig(keep=1)).freed_bytes == 0
    assert cli.main(["runs", f"folder={tmp_path / 'none'}"]) == 0
    assert "no runs here" in capsys.readouterr().out


def test_a_run_that_max_steps_stopped_is_not_finished(tmp_path):
    run = make_run(tmp_path / "a", "data.train=x.beton", "train.epochs=9", "train.max_steps=4")
    save = Checkpoint(step=4, tensors={"x": torch.zeros(1)}, facts={"config": {}})
    save_checkpoint(run / "checkpoints", save, keep=1)
    assert "  stopped   4 of 18 " in list_runs([run], RunsConfig()).to_text()


@pytest.mark.parametrize("epoch", [0, None, "1", 1e-320])
def test_a_row_of_another_program_does_not_keep_runs_from_being_listed(tmp_path, epoch):
    """Some count epochs from 0."""
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "epoch": epoch, **ROW}) + "\n")
    (listed,) = list_runs([run], RunsConfig()).runs
    assert (listed.total_steps, listed.state) == (None, "finished")


def test_a_run_in_training_and_a_damaged_one_keep_their_checkpoints(tmp_path):
    from fastmoco.files import locked

    run = make_run(tmp_path / "a", "data.train=x.beton")
    (run / ".lock").touch()
    with locked(run / ".lock"):
        found = list_runs([run], RunsConfig(keep=1))
    assert [one.state for one in found.runs] == ["training"]
    save = Checkpoint(step=2, tensors={"x": torch.zeros(10)}, facts={"config": {}})
    record = save_checkpoint(run / "checkpoints", save, keep=9)
    record.write_text("{")
    found = list_runs([run], RunsConfig(keep=1))
    assert found.runs[0].num_checkpoints == 2
    assert "nothing removed" in found.notes[0]
    assert list_runs([tmp_path], RunsConfig()).notes


@pytest.mark.parametrize(("cfg", "words"), [("images=-1", "images"), ("images=9999", "2000")])
def test_numbers_out_of_range(cfg, words):
    with pytest.raises(UsageError, match=words):
        load_config(ReportConfig, [cfg])
