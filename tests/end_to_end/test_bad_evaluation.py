"""What a user gets for bad input of the evaluating commands: one line that says what to do."""

import json

import pytest

from fastmoco import cli
from fastmoco.configuration import load_config
from fastmoco.evaluate.labeled_task import open_task
from fastmoco.evaluate.settings import FinetuneConfig, LinearConfig
from fastmoco.runs.record import record_text, sealed
from tests.pictures import encoded, picture
from tests.runs import write_colors, write_run

COMMANDS = ["knn", "linear", "finetune", "evaluate", "noise-table"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    write_run(folder / "run")
    write_colors(folder / "good", seed=1, per_class=2)
    write_colors(folder / "other", seed=2, per_class=2)
    write_colors(folder / "two classes", seed=1, per_class=2, names="blue green")
    write_colors(folder / "other names", seed=1, per_class=2, names="blue green violet")
    write_colors(folder / "one class", seed=1, per_class=3, names="red")
    (folder / "unlabeled").mkdir()
    for number in range(3):
        (folder / "unlabeled" / f"{number}.jpg").write_bytes(encoded(picture(number)))
    return folder


def refused(capsys, arguments, *words):
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert str(word) in lines[0]


def data(place, train="good", test="other"):
    return [f"data.train={place / train}", f"data.test={place / test}"]


@pytest.mark.parametrize("command", COMMANDS)
def test_sets_that_cannot_serve(capsys, place, command):
    run = place / "run"
    for train, test, words in (
        (
            "good",
            "good",
            "good, so the answers would be known; use fastmoco knn with leave_one_out",
        ),
        ("unlabeled", "good", "data.train has images without a label"),
        ("good", "unlabeled", "data.test has images without a label"),
        ("good", "other names", "class violet of data.test has no image in data.train"),
        ("two classes", "good", "class red of data.test has no image in data.train"),
        ("none", "good", place / "none"),
    ):
        refused(capsys, [command, run, *data(place, train, test)], words)
    refused(capsys, [command, run, f"data.test={place / 'good'}"], "data.train is not set")
    without = [command, run, f"data.train={place / 'good'}"]
    refused(capsys, without, "data.test is not set", "holdout=0.2", "leave_one_out=true")


def test_a_class_that_is_missing_in_training(capsys, place, tmp_path):
    for name, numbers in (("train", [0, 0, 1]), ("test", [0, 1, 2])):
        rows = [f"{name}{row}.jpg,{number}" for row, number in enumerate(numbers)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *rows]) + "\n")
        for row in range(3):
            (tmp_path / f"{name}{row}.jpg").write_bytes(encoded(picture(row)))
        arguments = ["convert", tmp_path / f"{name}.csv", tmp_path / f"{name}.beton"]
        assert cli.main([str(argument) for argument in arguments]) == 0
    sets = [f"data.{name}={tmp_path / name}.beton" for name in ("train", "test")]
    for command in ("knn", "linear", "finetune"):
        refused(capsys, [command, place / "run", *sets], "class 2 of data.test has no image in")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_of_another_architecture(capsys, place, tmp_path, command):
    run = write_run(tmp_path / "run")
    (record,) = (run / "checkpoints").glob("*.json")
    facts = json.loads(record.read_text())
    del facts["manifest"]
    facts["facts"]["config"]["model"]["width"] = 8
    record.write_text(record_text(sealed(facts)))
    refused(capsys, [command, run, *data(place)], "is of another model: backbone.conv1.weight")
    refused(capsys, [command, tmp_path, *data(place)], "contains no checkpoint")


@pytest.mark.parametrize(
    ("command", "option", "words"),
    [
        ("knn", "k=0", "k must be 1 or more, got 0"),
        ("knn", "temperature=0", "temperature must be above 0, got 0.0"),
        ("knn", "vote=all", "vote"),
        ("knn", "pipeline.name=fast", "fast is unknown"),
        ("knn", "pipeline.eval_size=-1", "pipeline.eval_size must be 0 or more, got -1"),
        ("linear", "pipeline.center_crop=2", "pipeline.center_crop must be in (0, 1], got 2.0"),
        ("linear", "protocol=offical", "did you mean official?"),
        ("linear", "label_share=0", "label_share must be in (0, 1], got 0.0"),
        (
            "linear",
            "label_noise=2",
            "label_noise must be a rate in [0, 1] or a column of a table, got 2;",
        ),
        ("linear", "train.epochs=0", "train.epochs must be 1 or more, got 0"),
        ("linear", "learning_rates=[1,-1]", "learning_rates must be above 0, got [1.0, -1.0]"),
        ("linear", "global_batch_size=0", "global_batch_size must be 1 or more, got 0"),
        (
            "linear",
            "optimizer.name=lamb",
            "optimizer.name must be one of sgd, adam, adamw, lars, got",
        ),
        (
            "linear",
            "optimizer.schedule=steps",
            "optimizer.schedule must be one of cosine, cosine_per_epoch, cosine_from_1, multistep, "
            "constant, got",
        ),
        ("finetune", "weights=frist", "weights=frist does not exist; give a run folder"),
        ("finetune", "trainable=layer5", "trainable"),
        ("evaluate", "linear_protocol=slow", "unknown protocol=slow"),
        ("evaluate", "methods=[]", "methods must be some of [knn,linear,finetune], got []"),
        ("noise-table", "methods=[knn]", "methods must be some of [linear,finetune], got [knn]"),
        (
            "noise-table",
            "noises=[many]",
            "label_noise must be a rate in [0, 1] or a column of a table, got many",
        ),
    ],
)
def test_settings_that_do_not_fit(capsys, place, tmp_path, command, option, words):
    more = ["linear_epochs=1", "methods=[linear]"] if "noises" in option else []
    out = [f"out={tmp_path}"] if command in ("linear", "finetune") else []
    refused(capsys, [command, place / "run", *data(place), *more, *out, option], words)


def test_weights_of_another_architecture(capsys, place, tmp_path):
    wide = write_run(tmp_path / "wide", "model.width=8")
    options = [f"weights={wide}", f"out={tmp_path / 'out'}"]
    words = ["another architecture", "width 8) than RUN", "a RUN of theirs"]
    refused(capsys, ["finetune", place / "run", *data(place), *options], *words)


def test_one_class_is_no_task(capsys, place, tmp_path):
    sets = [*data(place, "one class", "one class"), "allow_overlap=true"]
    refused(capsys, ["linear", place / "run", *sets, f"out={tmp_path}"], "has one class only")


@pytest.mark.filterwarnings("always")
def test_a_class_without_test_images_keeps_the_others_by_name(capsys, place, tmp_path):
    """Blue, green and red are learned; "red" is the second class of the test set alone."""
    test = write_colors(tmp_path / "test", seed=4, per_class=2, names="blue red")
    sets = data(place, test=test)
    capsys.readouterr()
    arguments = ["knn", str(place / "run"), *sets, "k=1", "baselines=false", "--json"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert "no image of 1 of 3 classes (green); the accuracy is over the others" in printed.err
    rows = json.loads(printed.out)["classes"]
    assert {row["name"]: row["images"] for row in rows} == {"blue": 2, "green": 0, "red": 2}
    for config in (LinearConfig, FinetuneConfig):
        with open_task(load_config(config, sets)) as task:
            assert task.test.labels.tolist() == [0, 0, 2, 2]
