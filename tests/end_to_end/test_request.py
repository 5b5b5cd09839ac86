"""`fastmoco request`: ranked as a loop over images ranks them, and handed on in all its forms."""

import csv
import hashlib
import json
from collections import Counter

import matplotlib.image
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

import fastmoco
from fastmoco import cli
from fastmoco.data.dataset import open_dataset
from fastmoco.draws.host import draw_keys, random_resized_crop_boxes
from fastmoco.evaluate.features import FeatureRequest, extract_features
from fastmoco.labeling import pretext_scores
from fastmoco.labeling.pretext_scores import load_moco
from fastmoco.labeling.selection import shares
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.beton_loader import crop_and_resize
from fastmoco.runs.checkpoint import load_checkpoint
from tests.runs import write_colors, write_run

UNLABELED, LABELED = 21, 5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", "train.compile=never")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """26 images in three colors, 5 of them labeled; two that are copies, one of a labeled one."""
    folder = tmp_path_factory.mktemp("pool")
    write_colors(folder, seed=0, per_class=8)
    (folder / "blue/copy.jpg").write_bytes((folder / "green/3.jpg").read_bytes())
    (folder / "red/copy.jpg").write_bytes((folder / "blue/0.jpg").read_bytes())
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    labels = {"blue/0.jpg", "blue/1.jpg", "green/0.jpg", "red/0.jpg", "red/1.jpg"}
    rows = [f"{name},{name.split('/')[0] if name in labels else ''}" for name in names]
    (folder / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    path = folder / "set.beton"
    assert cli.main(["convert", str(folder / "list.csv"), str(path)]) == 0
    return path


def requested(capsys, run, dataset, out, *options, words=""):
    capsys.readouterr()
    arguments = ["request", str(run), f"data.train={dataset}", f"out={out}", *options, "--json"]
    code, printed = cli.main(arguments), capsys.readouterr()
    assert code == 0, printed.err
    assert words in printed.err
    return json.loads(printed.out)


def rows_of(out):
    with (out / "request.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def by_hand(run, dataset):
    """Loss and rank of each image by itself, pair of views by pair, against the queue."""
    checkpoint = load_checkpoint(run)
    model, cfg = load_moco(checkpoint, torch.device("cpu"))
    mean, std = (torch.tensor(checkpoint.facts[f"channel_{name}"]) for name in ("mean", "std"))
    found = {}
    with open_dataset(dataset) as opened:
        for sample in range(len(opened)):
            losses, ranks = [], []
            for pair in range(3):
                keys = draw_keys(5, pair, np.array([sample]))
                size = np.array([opened.heights[sample]]), np.array([opened.widths[sample]])
                shape = {"scale": cfg.policy.crop_scale, "ratio": cfg.policy.crop_ratio}
                boxes = random_resized_crop_boxes(keys, *size, num_views=2, **shape)
                crops = np.empty((2, 16, 16, 3), np.uint8)
                crop_and_resize(opened.decode(sample), boxes[0], crops)
                views = augment_views(
                    torch.from_numpy(crops)[None],
                    torch.from_numpy(keys),
                    cfg.policy,
                    mean,
                    std,
                    torch.float32,
                )
                query = F.normalize(model.query_encoder(views[0]), dim=1)[0]
                key = F.normalize(model.key_encoder(views[1]), dim=1)[0]
                positive = query @ key
                others = [query @ negative for negative in model.queue.keys]
                logits = torch.stack([positive, *others]) / cfg.moco.temperature
                losses.append(-float(logits.log_softmax(0)[0]))
                ranks.append(sum(float(one) > float(positive) for one in others))
            found[sample] = (np.mean(losses), np.mean(ranks))
    return found


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("batch", [4, 256])
def test_ranking_equals_a_loop(run, dataset, by_hand, tmp_path, capsys, batch):
    options = ["count=21", "views=3", "seed=5", "max_similarity=1", f"global_batch_size={batch}"]
    words = "only 19 of count=21"
    found = requested(capsys, run, dataset, tmp_path / "out", *options, "rank_by=loss", words=words)
    assert (found["num_candidates"], found["num_same_bytes"]) == (UNLABELED, 2)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == found["count"] == UNLABELED - 2
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    for row in rows:
        loss, rank = by_hand[int(row["sample_id"])]
        assert float(row["loss"]) == pytest.approx(loss, abs=2e-4)
        assert float(row["rank"]) == pytest.approx(rank, abs=0.34)  # a tie may fall either way
    with open_dataset(dataset) as opened:
        assert {opened.labels[int(row["sample_id"])] for row in rows} == {-1}
        assert [row["path"] for row in rows] == [opened.name(int(row["sample_id"])) for row in rows]
        names = {row["path"] for row in rows}
        assert "red/copy.jpg" not in names  # blue/0.jpg is labeled
        assert len(names & {"blue/copy.jpg", "green/3.jpg"}) == 1


def test_an_interrupted_ranking_goes_on(run, dataset, tmp_path, capsys, monkeypatch):
    options = ["count=6", "views=3", "seed=5", "global_batch_size=4"]
    requested(capsys, run, dataset, tmp_path / "whole", *options)
    plain, calls = pretext_scores.look_up, []

    def dying(*args):
        calls.append(1)
        if len(calls) == 9:  # in the second pair of views
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(pretext_scores, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(pretext_scores, "look_up", dying)
    out = tmp_path / "out"
    arguments = ["request", str(run), f"data.train={dataset}", f"out={out}", *options]
    assert cli.main(arguments) == 130
    assert not (out / "request.json").exists()
    calls.clear()
    monkeypatch.setattr(pretext_scores, "look_up", lambda *args: (calls.append(1), plain(*args))[1])
    requested(capsys, run, dataset, out, *options)
    assert len(calls) == 3 * 6 - 8
    assert (out / "request.csv").read_bytes() == (tmp_path / "whole/request.csv").read_bytes()
    assert not (out / "scores.npz").exists()


def test_what_is_written(run, dataset, tmp_path, capsys):
    out = tmp_path / "to label"
    prefix = "image_prefix='/data/local-files/?d=x/'"
    found = requested(capsys, run, dataset, out, "count=10", "sheet=9", prefix)
    assert json.loads((out / "request.json").read_text()) == found
    weights = run / "checkpoints/step-00000001.safetensors"
    assert found["checkpoint"] == str(weights)
    assert found["checkpoint_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    with open_dataset(dataset) as opened:
        assert found["dataset_fingerprint"] == opened.fingerprint
        rows = rows_of(out)
        table = pq.read_table(out / "request.parquet")
        for name in ("sample_id", "place", "loss", "rank", "score"):
            assert table[name].to_pylist() == [json.loads(row[name]) for row in rows]
        tasks = json.loads((out / "label_studio.json").read_text())
        for row, task in zip(rows, tasks, strict=True):
            sample = int(row["sample_id"])
            file = f"images/{sample:08d}.jpg"
            assert task["data"]["image"] == "/data/local-files/?d=x/" + file
            assert (task["data"]["sample_id"], task["data"]["path"]) == (sample, row["path"])
            assert (out / file).read_bytes() == opened.blob(sample)
    assert '<Choice value="green"/>' in (out / "label_studio.xml").read_text()
    assert matplotlib.image.imread(out / "contact_sheet.png").shape[2] == 4
    # The same command reads it; another one is refused; so is what is no request.
    assert requested(capsys, run, dataset, out, "count=10", "sheet=9", prefix) == found
    arguments = ["request", str(run), f"data.train={dataset}", "count=9"]
    assert cli.main([*arguments, f"out={out}"]) == 2
    assert "holds a request of another" in capsys.readouterr().err
    assert cli.main([*arguments, f"out={tmp_path}"]) == 2
    assert "holds no request; give a new" in capsys.readouterr().err


def test_keys_of_the_dataset_as_negatives(run, dataset, tmp_path, capsys, monkeypatch):
    """16 keys of 26 images: those that have a key of their own are told from 15."""
    seen = []
    plain = pretext_scores.look_up

    def watching(query, key, negatives, temperature, left_out):
        seen.append((negatives.shape, left_out.sum(1)))
        return plain(query, key, negatives, temperature, left_out)

    monkeypatch.setattr(pretext_scores, "look_up", watching)
    requested(capsys, run, dataset, tmp_path / "out", "count=9", "views=1", "negatives=dataset")
    ((shape, own),) = seen
    assert shape == (16, 8)
    assert set(own.tolist()) == {0, 1}


def test_diversity_and_balance(run, dataset, tmp_path, capsys):
    """As many of each cluster as there are; by k-center, no image is far from a chosen one."""
    options = ["count=6", "max_similarity=1", "views=2"]
    even = ["balance=clusters", "clusters=3"]
    for name, more in {"even": even, "both": [*even, "diversity=true", "pool=2"]}.items():
        found = requested(capsys, run, dataset, tmp_path / name, *options, *more)
        assert sum(found["cluster_sizes"]) == UNLABELED
        counts = Counter(int(row["cluster"]) for row in rows_of(tmp_path / name))
        assert [counts[cluster] for cluster in range(3)] == shares(found["cluster_sizes"], 6)
        places = [int(row["place"]) for row in rows_of(tmp_path / name)]
        assert places == sorted(places)
    requested(capsys, run, dataset, tmp_path / "plain", *options)
    assert [row["place"] for row in rows_of(tmp_path / "plain")] == list("123456")
    requested(capsys, run, dataset, tmp_path / "wide", *options, "diversity=true", "pool=4")
    ids = {
        name: [int(row["sample_id"]) for row in rows_of(tmp_path / name)]
        for name in ("plain", "wide")
    }
    with open_dataset(dataset) as opened:
        encoder = fastmoco.load_encoder(run)
        request = FeatureRequest(features="backbone", batch_size=8)
        rows = extract_features(encoder, opened, request).vectors
        labeled = np.flatnonzero(opened.labels >= 0).tolist()
    rows = F.normalize(rows - rows.mean(0), dim=1)
    nearest = {
        name: (rows @ rows[labeled + chosen].T).amax(1).min() for name, chosen in ids.items()
    }
    assert len(set(ids["wide"])) == 6
    assert nearest["wide"] > nearest["plain"] + 0.02


def test_random(run, dataset, tmp_path, capsys):
    ids = []
    for seed in (0, 1):
        options = ["count=8", "mode=random", f"seed={seed}", "max_similarity=1", "images=false"]
        requested(capsys, run, dataset, tmp_path / str(seed), *options)
        ids.append([row["sample_id"] for row in rows_of(tmp_path / str(seed))])
    assert len(set(ids[0])) == 8
    assert ids[0] != ids[1]
    assert not (tmp_path / "0/images").exists()
    task = json.loads((tmp_path / "0/label_studio.json").read_text())[0]["data"]
    assert task["image"] == task["path"]


@pytest.mark.full
def test_published_mode_goes_on_and_ranks_samples(run, dataset, tmp_path, capsys, monkeypatch):
    from fastmoco.labeling import sample_runs

    options = [
        "count=8",
        "mode=per_sample_runs",
        "samples=3",
        "sample_size=9",
        "epochs=2",
        "device=cpu",
    ]
    plain, trained = sample_runs.train, []

    def train(cfg):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(cfg)
        return plain(cfg)

    monkeypatch.setattr(sample_runs, "train", train)
    out = tmp_path / "out"
    arguments = ["request", str(run), f"data.train={dataset}", f"out={out}", *options]
    assert cli.main(arguments) == 130
    assert [path.name for path in sorted((out / "runs").glob("*.json"))] == [
        "sample-00.json",
        "sample-01.json",
        "sample-02.beton.json",
    ]
    monkeypatch.setattr(sample_runs, "train", lambda cfg: (trained.append(cfg), plain(cfg))[1])
    found = requested(capsys, run, dataset, out, *options)
    assert [cfg.name for cfg in trained] == ["sample-00", "sample-01", "sample-02"]
    assert {cfg.train.epochs for cfg in trained} == {2}
    assert list((out / "runs").glob("*.beton*")) == []
    assert list((out / "runs").glob("*/checkpoints")) == []
    outcomes = found["ranking"]["samples_worst_first"]
    with open_dataset(dataset) as opened:
        candidates = np.flatnonzero(opened.labels < 0)
    expected = []
    for outcome in outcomes:
        ids = sample_runs.sample_ids(candidates, outcome["sample"], 9, 0)
        assert len(set(ids.tolist())) == 9
        expected += [sample for sample in ids.tolist() if sample not in expected]
    rows = rows_of(out)
    places = [expected.index(int(row["sample_id"])) for row in rows]
    assert places == sorted(places)
    assert places[-1] < 12  # passed over are duplicates alone
    assert float(rows[0]["loss"]) == outcomes[0]["loss"]


def test_the_worst_sample_has_the_lowest_accuracy_and_the_highest_loss():
    from fastmoco.labeling.sample_runs import Outcome, worst_samples
    from fastmoco.labeling.settings import RankBy

    found = [Outcome(0, 30.0, 2.0), Outcome(1, 10.0, 4.0), Outcome(2, 20.0, 5.0)]
    assert worst_samples(found, RankBy.rank) == [1, 2, 0]
    assert worst_samples(found, RankBy.loss) == [2, 1, 0]
    assert worst_samples(found, RankBy.both) == [1, 2, 0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["data.train=null"], "data.train is not set"),
        (["count=22"], "count must be at most 21, the images that can be requested, got 22"),
        (["count=0"], "count must be 1 or more, got 0"),
        (["max_similarity=1.5"], "max_similarity must be in (0, 1], got 1.5"),
        (
            ["mode=trainde"],
            "mode must be one of trained, per_sample_runs, random, got trainde",
        ),
        (["coutn=3"], "unknown option coutn; did you mean count?"),
        (["count=3", "mode=per_sample_runs"], "sample_size must be from 8 (the run's"),
        (
            ["count=3", "mode=per_sample_runs", "sample_size=7"],
            "to 21 (the images to draw from), got 7",
        ),
    ],
)
def test_wrong_options_get_one_line(run, dataset, tmp_path, capsys, options, words):
    capsys.readouterr()
    arguments = ["request", str(run), f"data.train={dataset}", f"out={tmp_path / 'out'}", *options]
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_or_an_edit_left_in_the_folder(run, dataset, tmp_path, capsys):
    """A first file cut short is no obstacle; a request that cannot be read is told of."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".unfinished.json.partial").write_text('{"rec')
    options = ["count=3", "mode=random", "max_similarity=1", "images=false"]
    requested(capsys, run, dataset, out, *options)
    assert not (out / ".unfinished.json.partial").exists()
    text = (out / "request.json").read_text()
    arguments = ["request", str(run), f"data.train={dataset}", f"out={out}", *options]
    for damaged in (text[:99], "[]", text.replace('"recipe"', '"reicpe"')):
        (out / "request.json").write_text(damaged)
        assert cli.main(arguments) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{out / 'request.json'} is damaged (" in line
        assert line.endswith("remove the folder and make the request again")


def test_other_mechanisms_get_one_line(dataset, tmp_path, capsys):
    run = write_run(tmp_path / "run", "moco.mechanism=end_to_end", "moco.batch_norm_splits=1")
    arguments = ["request", str(run), f"data.train={dataset}", f"out={tmp_path / 'out'}", "count=3"]
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "has moco.mechanism=end_to_end; give a run of moco.mechanism=moco" in line


@pytest.mark.filterwarnings("always")
def test_a_set_that_is_labeled_throughout_is_a_trial(run, tmp_path, capsys):
    write_colors(tmp_path / "images", seed=2, per_class=3)
    path = tmp_path / "set.beton"
    assert cli.main(["convert", str(tmp_path / "images"), str(path)]) == 0
    words = "all images are labeled already"
    found = requested(capsys, run, path, tmp_path / "out", "count=3", "views=1", words=words)
    assert found["num_candidates"] == 9
