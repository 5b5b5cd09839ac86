"""`fastmoco embed` and `neighbors`, and every command on what was exported and imported."""

import csv
import json

import matplotlib.image
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import fastmoco
from fastmoco import cli
from fastmoco.data.dataset import open_dataset
from fastmoco.evaluate import embed
from fastmoco.moco.settings import Stem
from fastmoco.visualize.neighbors import nearest_others
from tests.encoders import MEAN, STD, write_run
from tests.pictures import write_class_folders


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed")
    write_class_folders(folder / "images", classes=3, per_class=7)
    assert cli.main(["convert", str(folder / "images"), str(folder / "set.beton")]) == 0
    return folder / "set.beton"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "narrow"
    return write_run(folder, stem=Stem.small, width=4, view_size=16)


@pytest.fixture(scope="module")
def expected(run, dataset):
    """Features by hand: one image at a time, cropped by another loader."""
    from fastmoco.evaluate.features import FeatureRequest, feature_batches

    request = FeatureRequest(features="backbone", batch_size=1, loader="torchvision")
    with open_dataset(dataset) as opened:
        return torch.cat(list(feature_batches(fastmoco.load_encoder(run), opened, request)))


def command(capsys, name, run, dataset, *options):
    capsys.readouterr()
    assert cli.main([name, str(run), f"data.test={dataset}", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("cache", ["true", "false"])
def test_parquet(run, dataset, expected, tmp_path, capsys, monkeypatch, cache):
    monkeypatch.setattr(embed, "ROW_GROUP_BYTES", 4 * 32 * 5)  # 21 rows: groups of 5, 5, 5, 5, 1
    out = tmp_path / "a b.parquet"
    options = [f"out={out}", f"cache={cache}", "global_batch_size=8"]
    summary = command(capsys, "embed", run, dataset, *options)
    assert (summary["num_rows"], summary["dim"], summary["ids"]) == (21, 32, None)
    file = pq.ParquetFile(out)
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [5, 5, 5, 5, 1]
    assert [str(column.type) for column in file.schema_arrow] == [
        "int64",
        "string",
        "int64",
        "fixed_size_list<element: float>[32]",
    ]
    table = file.read()
    with open_dataset(dataset) as opened:
        assert table["path"].to_pylist() == [opened.name(i) for i in range(21)]
        assert table["label"].to_pylist() == opened.labels.tolist()
    assert table["sample_id"].to_pylist() == list(range(21))
    vectors = torch.from_numpy(np.array(table["vector"].to_pylist(), np.float32))
    # The reference loader's crops differ by a level here and there; one image a batch also rounds
    # otherwise.
    torch.testing.assert_close(vectors, expected, atol=2e-2, rtol=2e-2)
    assert [path.name for path in tmp_path.iterdir()] == ["a b.parquet"]


def test_npy_has_the_same_rows(run, dataset, tmp_path, capsys):
    table, out = tmp_path / "x.parquet", tmp_path / "x.npy"
    for path in (table, out):
        options = [f"out={path}", "features=embedding"]
        summary = command(capsys, "embed", run, dataset, *options)
    assert summary["dim"] == 16
    rows = np.load(out)
    assert rows.dtype == np.float32
    assert rows.tolist() == pq.read_table(table)["vector"].to_pylist()
    with (tmp_path / "x.csv").open() as file:
        ids = list(csv.reader(file))
    assert ids[0] == ["sample_id", "path", "label"]
    assert ids[1:] == [
        [str(row["sample_id"]), row["path"], str(row["label"])]
        for row in pq.read_table(table, columns=["sample_id", "path", "label"]).to_pylist()
    ]


def test_rows_are_never_all_in_memory(tmp_path, monkeypatch):
    """2,000 rows in groups of 100: what is made is dropped before the next group is."""
    monkeypatch.setattr(embed, "ROW_GROUP_BYTES", 100 * 4 * 64)
    alive = []

    class Names:
        path, labels = "set", np.zeros(2000, np.int64)

        def __len__(self):
            return 2000

        def name(self, sample):
            return f"\udcff{sample}"  # a byte that is no UTF-8

    def rows():
        import weakref

        for start in range(0, 2000, 30):
            batch = torch.full((min(30, 2000 - start), 64), float(start))
            alive.append(weakref.ref(batch))
            assert sum(one() is not None for one in alive) <= 3
            yield batch

    out = tmp_path / "x.parquet"
    embed.write_parquet(out, rows(), Names(), 64, {})
    table = pq.read_table(out)
    assert table["path"][7].as_py() == "\ufffd7"
    assert [vector[0] for vector in table["vector"].to_pylist()] == [
        float(i // 30 * 30) for i in range(2000)
    ]


def test_an_error_leaves_the_old_file(run, dataset, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.parquet"
    out.write_text("old")

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embed, "_table", broken)
    assert cli.main(["embed", str(run), f"data.test={dataset}", f"out={out}"]) == 1
    assert "no space left" in capsys.readouterr().err.lower()
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_nearest_others_equal_a_full_sort():
    rows = torch.randn(50, 6)
    queries = [7, 49, 0]
    similarity, ids = nearest_others(iter(rows.split(8)), rows[queries], queries, 5)
    everything = F.normalize(rows, dim=1) @ F.normalize(rows, dim=1).T
    everything.fill_diagonal_(-2)
    values, places = everything[queries].sort(dim=1, descending=True)
    assert torch.equal(ids, places[:, :5])
    torch.testing.assert_close(similarity, values[:, :5])


@pytest.mark.full
def test_neighbors(run, dataset, expected, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    options = [f"out={out}", "queries=3,17", "k=4", "global_batch_size=8"]
    found = command(capsys, "neighbors", run, dataset, *options)
    assert [query["sample_id"] for query in found["queries"]] == [3, 17]
    bank = F.normalize(expected, dim=1)
    for query, row in zip(found["queries"], found["neighbors"], strict=True):
        ids = [one["sample_id"] for one in row]
        assert len(set(ids)) == 4
        assert query["sample_id"] not in ids
        similarity = [one["similarity"] for one in row]
        assert similarity == sorted(similarity, reverse=True)
        by_hand = (bank @ bank[query["sample_id"]])[ids]
        assert torch.allclose(by_hand, torch.tensor(similarity), atol=5e-3)
    few = matplotlib.image.imread(out)
    command(capsys, "neighbors", run, dataset, f"out={out}", "count=4", "k=4")
    assert matplotlib.image.imread(out).shape[0] > few.shape[0]
    every = command(capsys, "neighbors", run, dataset, f"out={out}", "count=64", "k=32")
    assert [len(row) for row in every["neighbors"]] == [20] * 21  # of 21 images


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("embed", [], "out is not set"),
        ("embed", ["out=x.csv"], "out=x.csv must end in .parquet or .npy"),
        ("embed", ["out=x.npy", "data.test=null"], "data.test is not set"),
        ("embed", ["out=x.npy", "data.test=none.beton"], "none.beton"),
        ("embed", ["out=x.npy", "featuers=backbone"], "did you mean features?"),
        ("neighbors", ["k=33"], "k must be 1 to 32, got 33"),
        ("neighbors", ["count=65"], "count must be 1 to 64, got 65"),
        ("neighbors", ["count=0"], "count must be 1 or more, got 0"),
        ("neighbors", ["queries=3,21"], "0 to 20, got 21"),
        ("neighbors", ["queries=a"], "queries"),
        ("neighbors", ["out=x.jpg"], "out=x.jpg must end in .png"),
    ],
)
def test_wrong_options_get_one_line(
    run, dataset, tmp_path, monkeypatch, capsys, name, options, words
):
    monkeypatch.chdir(tmp_path)
    assert cli.main([name, str(run), f"data.test={dataset}", *options]) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_what_was_exported_and_imported_is_a_run(run, dataset, tmp_path, capsys):
    """The same features, hence the same kNN accuracy, by all ways around."""

    batches = "global_batch_size=8"  # as in the tests above, whose features are kept in `run`
    knn = [f"data.train={dataset}", "leave_one_out=true", "baselines=false", "k=3", batches]

    def top1(path):
        return command(capsys, "knn", path, dataset, *knn)

    exported, foreign = tmp_path / "encoder.safetensors", tmp_path / "foreign.safetensors"
    assert cli.main(["export", str(run), f"out={exported}", "part=encoder"]) == 0
    state = fastmoco.load_encoder(run).backbone.state_dict()
    save_file({f"module.{name}": tensor.contiguous() for name, tensor in state.items()}, foreign)
    numbers = [f"mean={MEAN}", f"std={STD}", "view_size=16", "center_crop=0.875"]
    taken = tmp_path / "taken"
    assert cli.main(["import", str(foreign), f"out={taken}", *numbers]) == 0
    results = [top1(path) for path in (run, exported, taken)]
    assert len({(result["top1"], result["top5"]) for result in results}) == 1
    tables = []
    for number, path in enumerate((run, exported, taken)):
        out = tmp_path / f"{number}.npy"
        command(capsys, "embed", path, dataset, f"out={out}", batches)
        tables.append(np.load(out))
    assert np.array_equal(tables[0], tables[1])
    assert np.array_equal(tables[0], tables[2])
    arguments = [str(taken), f"data.test={dataset}", f"out={out}", "features=embedding"]
    assert cli.main(["embed", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no projection head; set features=backbone" in line
