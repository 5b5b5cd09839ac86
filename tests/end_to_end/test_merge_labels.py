"""`fastmoco merge-labels`: labels change, images do not, and what does not fit is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastmoco import cli
from fastmoco.data.dataset import open_dataset
from fastmoco.data.verify import verify
from fastmoco.runs import checkpoint as checkpoint_module
from fastmoco.runs.checkpoint import load_checkpoint, save_checkpoint
from tests.runs import write_colors, write_run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A request of 6 of 12 images, two of the others labeled; and the same set, unlabeled."""
    folder = tmp_path_factory.mktemp("merge")
    write_run(folder / "run")
    write_colors(folder / "images", seed=0, per_class=4)
    names = sorted(str(one.relative_to(folder)) for one in folder.rglob("*.jpg"))
    labels = {"images/blue/0.jpg": "blue", "images/green/1.jpg": "green", names[-1]: "red"}
    rows = [f"{name},{labels.get(name, '')}" for name in names]
    (folder / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    assert cli.main(["convert", str(folder / "list.csv"), str(folder / "set.beton")]) == 0
    (folder / "bare.csv").write_text("\n".join(["path", *names]) + "\n")
    assert cli.main(["convert", str(folder / "bare.csv"), str(folder / "bare.beton")]) == 0
    for name in ("set", "bare"):
        options = [f"out={folder / name}", "count=6", "mode=random", "max_similarity=1"]
        data = f"data.train={folder / name}.beton"
        assert cli.main(["request", str(folder / "run"), data, *options]) == 0
    return folder


def requested(place, name="set"):
    """Ids, names and right classes of what was requested."""
    with open_dataset(place / f"{name}.beton") as dataset:
        table = pq.read_table(place / name / "request.parquet")
        ids = table["sample_id"].to_pylist()
        return [
            (sample, dataset.name(sample), dataset.name(sample).split("/")[1]) for sample in ids
        ]


def granted(tmp_path, lines):
    path = tmp_path / "granted.csv"
    path.write_text("\n".join(lines) + "\n")
    return f"labels={path}"


def merge(capsys, place, out, *options, name="set", words=""):
    capsys.readouterr()
    arguments = [f"data.train={place / name}.beton", f"out={out}", *options, "--json"]
    code = cli.main(["merge-labels", str(place / name), *arguments])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert words in printed.err
    return json.loads(printed.out)


@pytest.mark.parametrize("by", ["sample_id", "path", "both", "numbers", "parquet"])
def test_round_trip(place, tmp_path, capsys, by):
    asked = requested(place)
    number = {"blue": 0, "green": 1, "red": 2}
    if by == "parquet":
        path = tmp_path / "granted.parquet"
        table = {"label": [c for _, _, c in asked], "sample_id": [i for i, _, _ in asked]}
        pq.write_table(pa.table(table), path)
        labels = f"labels={path}"
    else:
        lines = {
            "sample_id": ["sample_id,label", *(f"{i},{c}" for i, _, c in asked)],
            "path": ["label,path,who", *(f"{c},{name},me" for _, name, c in asked)],
            "both": ["sample_id,path,label", *(f"{i},{name},{c}" for i, name, c in asked)],
            "numbers": ["sample_id,label", *(f"{i}.0,{number[c]}.0" for i, _, c in asked)],
        }[by]
        labels = granted(tmp_path, lines)
    out = tmp_path / "new/merged.beton"
    found = merge(capsys, place, out, labels)
    assert (found["num_granted"], found["num_labeled"], found["num_samples"]) == (6, 9, 12)
    assert verify(out).num_samples == 12
    with open_dataset(place / "set.beton") as old, open_dataset(out) as new:
        assert new.has_checksums
        assert new.classes == old.classes == ["blue", "green", "red"]
        assert new.fingerprint == found["fingerprint"] != old.fingerprint
        assert new.facts == old.facts
        expected = old.labels.copy()
        for sample, _, name in asked:
            expected[sample] = number[name]
        assert new.labels.tolist() == expected.tolist()
        for sample in range(12):
            assert new.blob(sample) == old.blob(sample)
            assert new.name(sample) == old.name(sample)
            assert np.array_equal(new.decode(sample), old.decode(sample))
        counts = np.bincount([number[c] for _, _, c in asked], minlength=3).tolist()
        assert list(found["granted_per_class"].values()) == counts
    facts = json.loads((tmp_path / "new/merged.beton.json").read_text())
    assert facts["fingerprint"] == found["fingerprint"]
    assert facts["num_unlabeled"] == 3


def test_a_folder_of_images(place, tmp_path, capsys):
    """Requested from, and merged into, as it is: its JPEGs are in the file, byte by byte."""
    images = tmp_path / "images"
    images.mkdir()
    for path in (place / "images").glob("*/*.jpg"):
        shutil.copy(path, images / f"{path.parent.name}{path.name}")
    options = [f"data.train={images}", f"out={tmp_path / 'asked'}", "count=4", "mode=random"]
    assert cli.main(["request", str(place / "run"), *options, "max_similarity=1"]) == 0
    asked = pq.read_table(tmp_path / "asked/request.parquet")["sample_id"].to_pylist()
    with open_dataset(images) as old:
        colors = {sample: old.name(sample).rstrip(".0123456789jpg") for sample in asked}
    labels = granted(tmp_path, ["sample_id,label", *(f"{i},{name}" for i, name in colors.items())])
    out, data = tmp_path / "merged.beton", f"data.train={images}"
    capsys.readouterr()
    code = cli.main(["merge-labels", str(tmp_path / "asked"), data, labels, f"out={out}"])
    assert code == 0, capsys.readouterr().err
    assert verify(out).num_samples == 12
    with open_dataset(out) as new:
        found = {i: new.classes[label] for i, label in enumerate(new.labels) if label >= 0}
        assert found == colors
        for sample in range(12):
            assert new.blob(sample) == (images / new.name(sample)).read_bytes()


def test_only_labeled_and_a_second_grant(place, tmp_path, capsys):
    """Some labels now, the rest into what came of it: by ids, as the images are the same."""
    asked = requested(place)
    first, out, all_of_it = (
        tmp_path / name for name in ("first.beton", "out.beton", "again.beton")
    )
    rows = [f"{sample},{name}" for sample, _, name in asked]
    merge(
        capsys, place, first, granted(tmp_path, ["sample_id,label", *rows[:2], f"{asked[2][0]},"])
    )
    labels = granted(tmp_path, ["sample_id,label", *rows[2:]])
    found = merge(capsys, place, out, labels, f"data.train={first}", "only_labeled=true")
    assert (found["num_granted"], found["num_samples"], found["num_labeled"]) == (4, 9, 9)
    with open_dataset(place / "set.beton") as old, open_dataset(out) as new:
        assert verify(out).num_samples == len(new) == 9
        assert [new.classes[label] for label in new.labels] == [
            new.name(sample).split("/")[1] for sample in range(9)
        ]
        names = [old.name(sample) for sample in range(12)]
        for sample in range(9):
            assert new.blob(sample) == old.blob(names.index(new.name(sample)))
        assert new.facts["channel_mean"] == old.facts["channel_mean"]
    # Where the images are others under these ids, ids are refused.
    arguments = [f"data.train={out}", f"out={all_of_it}", labels]
    assert cli.main(["merge-labels", str(place / "set"), *arguments]) == 2
    assert "is not the dataset of the request in" in capsys.readouterr().err
    assert not all_of_it.exists()


def test_classes_of_a_set_that_names_none(place, tmp_path, capsys):
    asked = requested(place, "bare")
    rows = [f"{sample},{name}" for sample, _, name in asked if name != "green"]
    labels = granted(tmp_path, ["sample_id,label", *rows])
    found = merge(capsys, place, tmp_path / "a.beton", labels, name="bare")
    assert list(found["granted_per_class"]) == ["blue", "red"]
    of = f"classes={place / 'set.beton'}"
    found = merge(capsys, place, tmp_path / "b.beton", labels, of, name="bare")
    assert list(found["granted_per_class"]) == ["blue", "green", "red"]
    with open_dataset(tmp_path / "b.beton") as new:
        assert {new.classes[label] for label in new.labels if label >= 0} == {"blue", "red"}


@pytest.mark.filterwarnings("always")
def test_another_checkpoint_is_told_of(place, tmp_path, capsys):
    asked = requested(place)
    labels = granted(tmp_path, ["sample_id,label", f"{asked[0][0]},{asked[0][2]}"])
    other = write_run(tmp_path / "other", "seed=7")
    merge(
        capsys, place, tmp_path / "a.beton", labels, f"run={other}", words="is not the checkpoint"
    )
    same = [f"run={place / 'run'}", "--json"]
    arguments = [f"data.train={place / 'set.beton'}", labels, f"out={tmp_path / 'b.beton'}", *same]
    assert cli.main(["merge-labels", str(place / "set"), *arguments]) == 0
    assert "checkpoint" not in capsys.readouterr().err


@pytest.mark.filterwarnings("always")
def test_a_checkpoint_that_the_run_removes_meanwhile(place, tmp_path, capsys, monkeypatch):
    """The run continues to train while labels are merged."""
    asked = requested(place)
    labels = granted(tmp_path, ["sample_id,label", f"{asked[0][0]},{asked[0][2]}"])
    run = write_run(tmp_path / "going_on", "seed=7")
    plain = checkpoint_module.file_sha256

    def removed_before_it_is_read(weights):
        monkeypatch.undo()
        old = load_checkpoint(run)
        save_checkpoint(weights.parent, replace(old, step=old.step + 1), keep=1)
        assert not weights.exists()
        return plain(weights)

    monkeypatch.setattr(checkpoint_module, "file_sha256", removed_before_it_is_read)
    words = "is not the checkpoint that made the request"
    merge(capsys, place, tmp_path / "a.beton", labels, f"run={run}", words=words)


ANY = "images/blue/0.jpg"  # labeled, so not requested


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        (["sample_id,label", "99,red"], [], "line 2 is about sample 99, which"),
        (["path,label", f"{ANY},red"], [], f"line 2 is about {ANY}, which"),
        (
            ["sample_id,label", "A,C", "A,C"],
            [],
            "line 3 labels sample A as C, line 2 labels it as C",
        ),
        (["sample_id,label", "A,geen"], [], "class geen, which is unknown; did you mean gr"),
        (["sample_id,label", "A,3"], [], "has the class 3, which is unknown"),
        (["sample_id,path,label", f"A,{ANY},red"], [], f"has sample A as {ANY}, but it is"),
        (["name,label", "A,red"], [], "has no column sample_id; its columns are name, label"),
        (["sample_id,class", "A,red"], [], "has no column label"),
        (["sample_id,label", "A,"], [], "grants no labels"),
        (["sample_id,label", "A,C"], ["labels=null"], "labels is not set"),
        (
            ["sample_id,label", "A,C"],
            ["out=x.bin"],
            "out must name the .beton file to write, got x.bin",
        ),
        (["sample_id,label", "A,C"], ["data.train=null"], "data.train is not set"),
        (["sample_id,label", "A,C"], ["run=nowhere"], "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused(place, tmp_path, monkeypatch, capsys, lines, options, words):
    monkeypatch.chdir(tmp_path)
    sample, _, name = requested(place)[0]

    def filled(text):
        return text.replace("A", str(sample)).replace("C", name)

    arguments = [f"data.train={place / 'set.beton'}", "out=new.beton"]
    labels = granted(tmp_path, [filled(line) if "," in line else line for line in lines])
    capsys.readouterr()
    command = ["merge-labels", str(place / "set"), *arguments, labels, *options]
    assert cli.main(command) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert filled(words) in line
    assert [path.name for path in tmp_path.iterdir()] == ["granted.csv"]


def test_a_label_that_is_there_is_not_lost_unasked(place, tmp_path, capsys):
    asked = requested(place)
    sample, _, name = asked[0]
    other = "red" if name != "red" else "blue"
    first = tmp_path / "first.beton"
    merge(capsys, place, first, granted(tmp_path, ["sample_id,label", f"{sample},{name}"]))
    labels = granted(tmp_path, ["sample_id,label", f"{sample},{other}"])
    arguments = [f"data.train={first}", f"out={first}", labels]
    assert cli.main(["merge-labels", str(place / "set"), *arguments]) == 2
    assert f"labeled {name} in {first}, now {other}; set overwrite=true" in capsys.readouterr().err
    merge(capsys, place, first, labels, f"data.train={first}", "overwrite=true")
    with open_dataset(first) as dataset:
        assert dataset.classes[dataset.labels[sample]] == other


def test_no_request(place, tmp_path, capsys):
    labels = granted(tmp_path, ["sample_id,label", "1,red"])
    arguments = [labels, f"data.train={place / 'set.beton'}", f"out={tmp_path / 'x.beton'}"]
    assert cli.main(["merge-labels", str(tmp_path), *arguments]) == 2
    assert "holds no finished request" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("request.json", lambda text: text[:99], "request.json is damaged ("),
        ("request.json", lambda text: f"[{text}]", "request.json is damaged (it holds no object)"),
        ("request.json", lambda text: text.replace('"step"', '"spet"'), "it lacks step"),
        ("request.csv", lambda text: text.replace("\n", "\nx", 1), "line 2 has the sample_id 'x"),
        (
            "request.csv",
            lambda text: text.replace("\n", "\n99,a.jpg,1\n", 1),
            "sample 99 is missing",
        ),
    ],
)
def test_a_damaged_request_gets_one_line(place, tmp_path, capsys, name, change, words):
    shutil.copytree(place / "set", tmp_path / "set")
    path = tmp_path / "set" / name
    path.write_text(change(path.read_text()))
    sample, _, color = requested(place)[0]
    labels = granted(tmp_path, ["sample_id,label", f"{sample},{color}"])
    data, out = f"data.train={place / 'set.beton'}", f"out={tmp_path / 'x.beton'}"
    capsys.readouterr()
    assert cli.main(["merge-labels", str(tmp_path / "set"), data, out, labels]) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert not (tmp_path / "x.beton").exists()
