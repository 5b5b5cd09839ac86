import csv
import json

import pytest

from fastmoco.errors import UsageError
from fastmoco.reproduce.definition import load_definition
from fastmoco.reproduce.figures import Group, RunFigures, add_growth, collect
from fastmoco.reproduce.orderings import Verdict, judge
from fastmoco.reproduce.record import RunRecord, Status
from fastmoco.reproduce.settings import Scale, SweepTableConfig
from fastmoco.reproduce.table import write_table
from tests.sweeps import write_definition, write_run, write_state


@pytest.fixture
def sweep(tmp_path):
    """Two seeds of two runs, of a third one diverged and one missing."""
    folder = tmp_path / "runs"
    write_state(folder, [0, 1])
    write_run(folder, "0.90,linear", 0, 50.0)
    write_run(folder, "0.90,linear", 1, 52.0)
    write_run(folder, "0.90,mlp", 0, 60.0)
    write_run(folder, "0.90,mlp", 1, 60.0, deviation=0.01)
    write_run(folder, "0,linear", 0, 0.0, Status.diverged, "the loss is no finite number")
    return folder


def table_config(folder, out):
    return SweepTableConfig(scale=Scale.full, folder=folder, out=out)


def test_a_table_is_made_of_run_folders_alone(tmp_path, sweep):
    path, out = write_definition(tmp_path), tmp_path / "out"
    text = write_table(str(path), table_config(sweep, out))
    assert (out / "table.md").read_text() == text
    lines = text.splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| 0")}
    cells = [cell.strip() for cell in rows["0.90,linear"].split("|")[1:-1]]
    # name, n, kNN, linear, loss, chance, pretext, deviation, seconds, parameters, published
    assert cells[1:5] == ["2", "41.00 ± 1.41", "51.00 ± 1.41", "3.000 ± 0.000"]
    assert cells[5:] == ["5.55", "20.0 ± 0.0", "0.90 ± 0.00", "10 ± 0", "1.00", ""]
    assert rows["0.90,mlp"].endswith("| 60.10 |")
    assert "| 0,linear | 0 of 2 | failed: the loss is no finite number |" in rows["0,linear"]
    assert rows["0,linear"].endswith("| fails |")
    assert "- 0,linear: not run with seed 1" in lines
    assert any(line.startswith("- 0.90,mlp, seed 1 collapsed") for line in lines)
    assert "Data: train.beton, 100 images; tested on test.beton, 1000" in text
    assert "seeds 0,1" in text
    assert "resnet18, width 4" in text


def test_csv_holds_every_mean_and_deviation(tmp_path, sweep):
    write_table(str(write_definition(tmp_path)), table_config(sweep, tmp_path / "out"))
    with (tmp_path / "out/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    linear = next(row for row in rows if (row["momentum"], row["head"]) == ("0.90", "linear"))
    assert float(linear["linear_top1_mean"]) == 51
    assert float(linear["linear_top1_sd"]) == pytest.approx(2**0.5, abs=1e-4)
    assert [(row["finished"], row["failed"], row["missing"]) for row in rows] == [
        ("0", "1", "1"),
        ("2", "0", "0"),
        ("2", "0", "0"),
    ]


def test_plots_are_equal_byte_for_byte(tmp_path, sweep):
    path, found = write_definition(tmp_path), []
    for number in range(2):
        out = tmp_path / f"out{number}"
        text = write_table(str(path), table_config(sweep, out))
        found.append({plot.name: plot.read_bytes() for plot in out.glob("*.svg")})
        assert all(f"]({name})" in text for name in found[-1])
    assert len(found[0]) == 5
    assert found[0] == found[1]
    assert not any(b"<dc:date>" in plot for plot in found[0].values())


def test_curves_are_read_of_training_and_of_the_linear_classifier(tmp_path, sweep):
    definition = load_definition(str(write_definition(tmp_path))).at(Scale.full)
    diverged, linear, mlp = collect(definition, sweep, [0])
    assert mlp.runs[0].curve("accuracy_top1") == ([1.0, 2.0], [10.0, 20.0])
    assert mlp.runs[0].curve("linear.top1") == ([2], [60.0])
    assert linear.runs[0].curve("linear.loss_train") == ([1, 2], [2.0, 1.0])
    assert diverged.runs[0].curve("linear.top1") == ([], [])


def group(name, *values, failed=0, collapsed=False):
    """Runs of some values, of which the last collapsed, or runs that failed."""
    runs = [
        RunFigures(RunRecord(points={}, seed=i, status=Status.finished), {"knn_top1": value}, [])
        for i, value in enumerate(values)
    ]
    if collapsed:
        runs[-1].values["feature_deviation"] = 0.01
    for seed in range(failed):
        runs.append(RunFigures(RunRecord(points={}, seed=seed, status=Status.failed), {}, []))
    return Group(name, {}, runs)


@pytest.mark.parametrize(
    ("better", "worse", "tested", "verdict"),
    [
        (group("A", 60, 61, 62), group("B", 50, 51, 52), 2000, Verdict.shows),
        (group("A", 50, 51, 52), group("B", 60, 61, 62), 2000, Verdict.opposite),
        (group("A", 60, 61, 62), group("B", 50, 51), 2000, Verdict.few_seeds),
        (group("A", 60), group("B", 50), 2000, Verdict.one_seed),
        (group("A", 60, 61, 62, collapsed=True), group("B", 1, 2, 3), 2000, Verdict.collapsed),
        (group("A", 60, 61, 62), group("B", 1, 2, 3, collapsed=True), 2000, Verdict.collapsed),
        (group("A", 60, 50), group("B", 55, 45), 2000, Verdict.unresolved),  # seeds overlap
        (group("A", 60.0), group("B", 58.0), 2000, Verdict.unresolved),  # 3.1 points are 2 errors
        (group("A", *[60.0] * 3), group("B", *[56.5] * 3), 2000, Verdict.shows),
        (group("A", *[60.0] * 3), group("B", *[58.0] * 3), 10000, Verdict.shows),
        (group("A", *[60.0] * 3), group("B", failed=3), 2000, Verdict.shows),
        (group("A", failed=3), group("B", *[60.0] * 3), 2000, Verdict.opposite),
        (group("A", 60.0), group("B", failed=1), 2000, Verdict.one_seed),
        (group("A", 60.0), group("B"), 2000, Verdict.missing),
    ],
)
def test_claims(better, worse, tested, verdict):
    groups = {"A": better, "B": worse}
    (found,) = judge(["A > B"], groups, "knn_top1", tested)
    assert found.verdict is verdict
    (named,) = judge(["knn_top1: A > B"], groups, "loss", tested)
    assert named.verdict is verdict


def test_memory_is_compared_by_its_growth_with_the_batch():
    """The smallest batch of the same mechanism and seed is the mark; it has no growth itself."""
    groups = []
    for name, batch, peak in (("a", 64, 1.0), ("a", 164, 1.3), ("b", 64, 5.0), ("b", 264, 5.1)):
        run = RunFigures(RunRecord(points={}, seed=0, status=Status.finished), {}, [])
        run.values.update(peak_gb=peak, global_batch_size=batch)
        groups.append(Group(f"{name},{batch}", {"mechanism": name, "batch": str(batch)}, [run]))
    add_growth(groups[::-1])
    found = [one.runs[0].values.get("mb_per_image") for one in groups]
    assert found == [None, pytest.approx(3.0), None, pytest.approx(0.5)]


def test_a_table_without_runs_says_how_to_start(tmp_path):
    path = str(write_definition(tmp_path))
    with pytest.raises(UsageError, match=r"holds no sweep; start: fastmoco sweep"):
        write_table(path, table_config(tmp_path / "none", None))
    write_state(tmp_path / "empty", [0])
    with pytest.raises(UsageError, match=r"holds no run that ended"):
        write_table(path, table_config(tmp_path / "empty", None))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("sweep.json", '{"na', "is damaged (Unterminated string"),
        ("sweep.json", "[]", "is damaged (it holds no object); remove it"),
        ("sweep.json", '{"name": "x", "scale": "full"}', "is damaged (it lacks seeds)"),
        ("0.90,mlp,seed=0/metrics.jsonl", '{"step": 1}\n{"st\n{}\n', "line 2 is damaged"),
        ("0.90,mlp,seed=0/metrics.jsonl", "5\n", "line 1 is damaged"),
        ("0.90,mlp,seed=0/sweep.json", "{}", "is damaged; remove it"),
    ],
)
def test_damaged_files_get_one_line(tmp_path, sweep, name, text, words):
    (sweep / name).write_text(text)
    with pytest.raises(ValueError, match="damaged") as caught:
        write_table(str(write_definition(tmp_path)), table_config(sweep, tmp_path / "out"))
    assert str(sweep / name) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_run_that_has_not_ended_is_missing(tmp_path, sweep):
    record = json.loads((sweep / "0.90,mlp,seed=1/sweep.json").read_text())
    (sweep / "0.90,mlp,seed=1/sweep.json").write_text(json.dumps({**record, "status": "started"}))
    from fastmoco.reproduce.definition import load_definition

    definition = load_definition(str(write_definition(tmp_path))).at(Scale.full)
    groups = {group.name: group for group in collect(definition, sweep, [0, 1])}
    assert groups["0.90,mlp"].missing == [1]


def write_trials(place, init, ap50, trials=2, task="boxes"):
    names = ("ap", "ap50", "ap75", "voc07_ap", "voc07_ap50", "voc07_ap75")
    values = [{"mean": ap50 - 10 * n, "std": 1.0} for n in range(len(names))]
    result = {
        "summary": dict(zip(names, values, strict=True)),
        "protocol": {
            "task": task,
            "arch": "c4",
            "init": init,
            "run": "runs/first",
            "seeds": list(range(trials)),
            "steps": 240,
            "global_batch_size": 4,
            "num_train": 400,
            "num_test": 200,
            "test": "VOC07 test",
            "batch_norm": "synchronized",
        },
    }
    place.mkdir(parents=True)
    (place / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize("supervised", ["torchvision-resnet50", "file"])
def test_voc_gaps_are_those_of_the_same_detector(tmp_path, supervised):
    for init, ap50 in (("pretrained", 90.0), ("random", 70.0), (supervised, 85.0)):
        write_trials(tmp_path / f"runs/first/detect/boxes-c4-{init}", init, ap50)
    write_trials(tmp_path / "runs/first/detect/segment", "random", 1.0, task="segment")
    cfg = SweepTableConfig(runs=[str(tmp_path / "runs")], out=tmp_path / "out")
    text = write_table("voc", cfg)
    # voc07: AP is 30 below, AP50 40, AP75 50
    assert (
        "| MoCo (first) | 2 | 50.0 ± 1.0 / 60.0 ± 1.0 / 40.0 ± 1.0 | +5.0 / +5.0 / +5.0 "
        "| +20.0 / +20.0 / +20.0 | here |"
    ) in text
    assert (
        "| MoCo v1, ImageNet | 5 | 81.5 / 55.9 / 62.6 | +0.2 / +2.4 / +3.8 "
        "| +21.3 / +22.1 / +29.5 | arXiv:1911.05722 |"
    ) in text
    assert len((tmp_path / "out/table.csv").read_text().splitlines()) == 1 + 3 + 11
    with pytest.raises(UsageError, match="no results of fastmoco detect"):
        write_table("voc", SweepTableConfig(runs=[str(tmp_path / "out")]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:50], "is damaged ("),
        (lambda text: f"[{text}]", "it holds no object"),
        (lambda text: text.replace('"arch"', '"crach"'), "no 'arch'"),
        (lambda text: text.replace('"summary"', '"sumary"'), "no 'summary'"),
        (lambda text: text.replace('ap50"', 'ap5"'), "no 'ap50'"),
    ],
)
def test_a_damaged_result_of_detection_gets_one_line(tmp_path, change, words):
    write_trials(tmp_path / "run", "random", 70.0)
    path = tmp_path / "run/result.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match="is damaged") as caught:
        write_table("voc", SweepTableConfig(runs=[str(tmp_path)], out=tmp_path / "out"))
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
