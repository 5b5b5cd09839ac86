"""Linear and fine-tuned classifiers and their tables, through the command line."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fastmoco import cli, load_encoder
from fastmoco.evaluate.finetune import tuning
from fastmoco.evaluate.linear import steps
from fastmoco.runs.checkpoint import load_checkpoint
from tests.runs import write_colors, write_run

ALONE = "baselines=false"
FAST = ["global_batch_size=16", "train.epochs=4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    write_run(folder / "run")
    write_colors(folder / "train", seed=1, per_class=20)
    write_colors(folder / "test", seed=2, per_class=10)
    write_colors(folder / "other", seed=3, per_class=10)
    return folder


def command(capsys, place, name, *options, test="test"):
    data = [f"data.train={place / 'train'}", f"data.test={place / test}"]
    assert cli.main([name, str(place / "run"), *data, *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def curve(folder):
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def test_the_official_protocol_learns_beside_its_baselines(capsys, place, tmp_path):
    options = [*FAST, "optimizer.learning_rate=3", f"out={tmp_path}"]
    found = command(capsys, place, "linear", *options)
    assert (found["protocol"], found["views"]) == ("official", "augmented")
    assert found["learning_rate"] == 3
    assert (found["num_train"], found["num_test"]) == (60, 30)
    assert found["top1"] > 50  # 33 by chance
    assert found["top5"] == 100
    assert found["baselines"].keys() == {"untrained", "pixels"}
    assert found["baselines"]["pixels"]["features"] == "pixels"
    assert len(found["baselines"]["pixels"]["held_out_top1"]) == 6
    assert json.loads((tmp_path / "result.json").read_text()) == found
    rows = [row for row in curve(tmp_path) if "of" not in row]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["top1"] == found["top1"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_cached_features_learn_as_images_do(capsys, place, tmp_path):
    for views in ("cached", "central"):
        out = f"out={tmp_path / views}"
        command(capsys, place, "linear", "protocol=fast", *FAST, ALONE, f"views={views}", out)
    fast, full = curve(tmp_path / "cached"), curve(tmp_path / "central")
    for one, other in zip(fast, full, strict=True):
        assert one["loss_train"] == pytest.approx(other["loss_train"], rel=1e-3)
    assert abs(fast[-1]["top1"] - full[-1]["top1"]) <= 0.1


def test_of_a_grid_the_best_reports_as_if_alone_and_the_test_set_chooses_nothing(
    capsys, place, tmp_path
):
    options = ["protocol=fast", *FAST, ALONE]
    grid = "learning_rates=[0.001,0.1,3.0]"
    found = command(capsys, place, "linear", *options, grid, f"out={tmp_path / 'grid'}")
    held_out = found["held_out_top1"]
    assert len(held_out) == 3
    assert held_out[str(found["learning_rate"])] == max(held_out.values())
    alone = [f"learning_rates=[{found['learning_rate']}]", f"out={tmp_path / 'alone'}"]
    single = command(capsys, place, "linear", *options, *alone)
    assert single["held_out_top1"] == {}
    assert single["top1"] == found["top1"]
    for one, other in zip(curve(tmp_path / "grid"), curve(tmp_path / "alone"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    again = command(capsys, place, "linear", *options, grid, f"out={tmp_path}", test="other")
    assert again["held_out_top1"] == held_out
    assert again["learning_rate"] == found["learning_rate"]


def test_both_views_and_other_presets(capsys, place, tmp_path, monkeypatch):
    sizes = []
    plain = steps.encoded_steps

    def watched(*arguments):
        for vectors, ids in plain(*arguments):
            assert torch.equal(*ids.chunk(2))
            sizes.append(len(vectors))
            yield vectors, ids

    monkeypatch.setattr("fastmoco.evaluate.linear.classifier.encoded_steps", watched)
    found = command(
        capsys, place, "linear", "protocol=imagenette", "train.epochs=1", ALONE, f"out={tmp_path}"
    )
    assert sizes == [64]  # 32 images, twice
    assert (found["optimizer"], found["learning_rate"]) == ("adam", 0.001)


def test_an_encoder_that_moves_is_noticed(capsys, place, tmp_path, monkeypatch):
    plain = steps._encoded

    def careless(encoder, *rest):
        encoder.backbone.train()
        return plain(encoder, *rest)

    monkeypatch.setattr(steps, "_encoded", careless)
    with pytest.raises(RuntimeError, match="frozen weight or statistic of the encoder moved"):
        command(capsys, place, "linear", *FAST, ALONE, f"out={tmp_path}")


def test_labels_may_be_few_or_wrong(capsys, place, tmp_path):
    options = ["protocol=fast", "train.epochs=1", f"out={tmp_path}", "learning_rates=[1.0]", ALONE]
    found = command(capsys, place, "linear", *options, "label_share=0.1", "label_noise=1.0")
    assert (found["num_train"], found["label_noise_share"]) == (6, 1.0)


def test_finetune_trains_what_it_should(capsys, place, tmp_path):
    start = load_encoder(place / "run").backbone.state_dict()
    found = command(capsys, place, "finetune", *FAST, "trainable=layer4", f"out={tmp_path}")
    assert found["top1"] > 45
    assert found["baselines"]["random"]["init"] == "random"
    tuned = load_file(tmp_path / "weights.safetensors")
    moved = {name for name, value in start.items() if not torch.equal(value, tuned[name])}
    assert moved == {name for name in start if name.startswith("layer4.")}
    assert tuned["fc.weight"].shape == (3, 32)
    scratch = load_file(tmp_path / "random" / "weights.safetensors")
    assert not any(torch.equal(scratch[name], start[name]) for name in start if "conv" in name)


def test_finetune_of_the_head_alone_is_a_linear_classifier(capsys, place, tmp_path):
    start = load_encoder(place / "run").backbone.state_dict()
    command(capsys, place, "finetune", *FAST, ALONE, "trainable=head", f"out={tmp_path}")
    tuned = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(value, tuned[name]) for name, value in start.items())
    assert tuned["fc.weight"].abs().max() > 0.05


def test_finetune_goes_on_where_it_stopped(capsys, place, tmp_path, monkeypatch):
    whole = command(capsys, place, "finetune", *FAST, ALONE, f"out={tmp_path / 'whole'}")
    plain, calls = tuning.Tuning.step, []

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) == 8:  # 3 steps an epoch
            raise KeyboardInterrupt
        return plain(self, *arguments)

    def before_clipping(self):
        found = identity(self)
        del found["config"]["optimizer"]["clip_gradient_norm"]
        return found

    identity = tuning.Tuning._identity
    monkeypatch.setattr(tuning.Tuning, "step", failing)
    monkeypatch.setattr(tuning.Tuning, "_identity", before_clipping)  # as an older version saved
    data = [f"data.train={place / 'train'}", f"data.test={place / 'test'}"]
    arguments = ["finetune", str(place / "run"), *data, *FAST, ALONE, f"out={tmp_path / 'cut'}"]
    assert cli.main(arguments) == 130
    assert load_checkpoint(tmp_path / "cut").step == 2
    monkeypatch.setattr(tuning.Tuning, "step", plain)
    monkeypatch.setattr(tuning.Tuning, "_identity", identity)
    capsys.readouterr()
    steps_before = len(calls)
    monkeypatch.setattr(tuning.Tuning, "step", lambda *given: calls.append(1) or plain(*given))
    cut = command(capsys, place, "finetune", *FAST, ALONE, f"out={tmp_path / 'cut'}")
    assert len(calls) == steps_before + 6  # epochs 3 and 4
    assert cut["top1"] == whole["top1"]
    ours, theirs = (load_file(tmp_path / one / "weights.safetensors") for one in ("cut", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    # Another setting is another fine-tuning: it starts anew.
    other = command(capsys, place, "finetune", *FAST, ALONE, "seed=1", f"out={tmp_path / 'cut'}")
    assert other["seed"] == 1
    assert curve(tmp_path / "cut") != curve(tmp_path / "whole")


def test_one_command_gives_one_table(capsys, place):
    options = ["k=5", "linear_epochs=2", "finetune_epochs=1", "global_batch_size=16"]
    data = [f"data.train={place / 'train'}", f"data.test={place / 'test'}"]
    assert cli.main(["evaluate", str(place / "run"), *data, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["pretrained", "untrained", "raw", "pixels"]
    assert [line.split(",")[0].split()[0] for line in lines[1:4]] == ["knn", "linear", "finetune"]
    found = json.loads((place / "run/evaluation/evaluate.json").read_text())
    assert [len(row) for row in found["rows"].values()] == [3, 3, 3]
    assert found["rows"]["knn, k=5"][0] == found["results"]["knn"]["top1"]
    assert found["rows"]["finetune"] == [
        found["results"]["finetune"]["top1"],
        found["results"]["finetune"]["baselines"]["random"]["top1"],
        None,
    ]
    page = (place / "run/evaluation/evaluate.md").read_text().splitlines()
    assert page[0] == "| top-1 % | pretrained | untrained | raw pixels |"
    assert page[2].startswith("| knn, k=5 | ")


def test_a_table_of_noise(capsys, place):
    found = command(
        capsys, place, "noise-table", "noises=[0,1.0]", "methods=[linear,finetune]",
        "linear_epochs=30", "finetune_epochs=1", "global_batch_size=16",
    )  # fmt: skip
    assert found["columns"] == [
        "linear, pretrained",
        "linear, untrained",
        "finetune, pretrained",
        "finetune, supervised from scratch",
    ]
    right, wrong = found["rows"]["noise 0"], found["rows"]["noise 1.0"]
    assert right[0] > 50 > 25 > wrong[0]
    assert found["results"]["1.0"]["finetune"]["label_noise_share"] == 1.0
