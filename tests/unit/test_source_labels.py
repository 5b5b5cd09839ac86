"""What is no class never becomes one: labels in texts, arrays, lists, tables and folder names."""

import io
import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fastmoco.data.sources import SourceOptions, open_source
from fastmoco.data.sources.labels import MISSING, labels_of_array, labels_of_texts
from fastmoco.data.sources.split_names import split_folders
from fastmoco.data.sources.table_paths import rows_of_images
from fastmoco.data.sources.tables import Table
from tests.sample_sets import labels_by_name, opened

FAST = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def write_files(root: Path, *names: str) -> None:
    """Files that a source lists as images: it does not read them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def refused(source: object, message: str, **options: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        open_source(str(source), SourceOptions(**options))
    assert "\n" not in str(caught.value)


# The same five labels as different programs write them: 11, 11, missing, missing, 3.
CELLS = ["11", "11.0", "nan", "", "3"]


def source_of_cells(folder: Path, kind: str) -> Path:
    """A source whose five images have these labels."""
    write_files(folder, *(f"{n}.jpg" for n in range(5)))
    numbers = [11.0, 11.0, float("nan"), None, 3.0]
    path = folder / f"set.{kind}"
    if kind == "csv":
        rows = [f"{n}.jpg,{cell}" for n, cell in enumerate(CELLS)]
        path.write_text("\n".join(["path,label", *rows]))
    elif kind == "parquet":
        rows = {"path": [f"{n}.jpg" for n in range(5)], "label": numbers}
        parquet.write_table(pa.table(rows), path)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for n, number in enumerate(numbers):
                for name, data in ((f"{n}.jpg", b"x"), (f"{n}.json", _json(number))):
                    header = tarfile.TarInfo(name)
                    header.size = len(data)
                    archive.addfile(header, io.BytesIO(data))
    else:
        labels = np.array([11, 11, np.nan, np.nan, 3])
        np.savez(path, images=np.zeros((5, 8, 9, 3), np.uint8), labels=labels)
    return path


def _json(label: float | None) -> bytes:
    return json.dumps({"label": label}).encode()


@pytest.mark.filterwarnings("ignore:.*count as missing")
@pytest.mark.parametrize("kind", ["csv", "parquet", "tar", "npz"])
def test_whole_floats_and_missing_labels_are_alike_in_all_sources(
    tmp_path: Path, kind: str
) -> None:
    samples = opened(source_of_cells(tmp_path, kind))
    assert samples.labels.tolist() == [11, 11, -1, -1, 3]
    assert samples.classes == [str(number) for number in range(12)]


def test_a_text_file_of_labels_has_the_same_rules(tmp_path: Path) -> None:
    write_files(tmp_path / "in", *(f"{n}.jpg" for n in range(5)))
    (tmp_path / "labels.txt").write_text("\n".join(CELLS))
    with pytest.warns(UserWarning, match=r"labels\.txt: 1 labels \(nan\) count as missing"):
        samples = opened(tmp_path / "in", labels=str(tmp_path / "labels.txt"))
    assert samples.labels.tolist() == [11, 11, -1, -1, 3]


def test_words_for_missing_are_no_classes_and_are_said() -> None:
    with pytest.warns(UserWarning, match=r"x: 3 labels \(NA, None, nan\) count as missing"):
        labels, classes = labels_of_texts(["nan", "cat", "None", "", " NA"], "x", str)
    assert (labels.tolist(), classes) == ([-1, 0, -1, -1, -1], ["cat"])
    labels, classes = labels_of_texts(["none", "mild", "severe"], "x", str)
    assert classes == ["mild", "none", "severe"]


def test_what_is_no_class_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x: 1 has the label 1\.5; a class is a whole number"):
        labels_of_texts(["3", "1.5"], "x", str)
    with pytest.raises(ValueError, match=r"a label is 1\.5; a class is a whole number"):
        labels_of_array(np.array([0, 1.5, np.nan]), "x")
    with pytest.raises(ValueError, match=r"label inf is not in -1\.\."):
        labels_of_array(np.array([np.inf]), "x")
    with pytest.raises(ValueError, match=r"of shape \(3, 3\); .*argmax\(1\) of one-hot rows"):
        labels_of_array(np.eye(3), "x")
    with pytest.raises(ValueError, match="label 100000000000000000000 is not in"):
        labels_of_texts(["1" + "0" * 20], "x", str)
    assert labels_of_texts(["0000000000001"], "x", str)[0].tolist() == [1]
    assert labels_of_array(np.array([[2], [0]], np.uint8), "x")[0].tolist() == [2, 0]
    assert labels_of_array(np.array([True, False]), "x")[1] == ["0", "1"]


_NAMES = st.text("abcxyz é", min_size=1, max_size=6).filter(str.strip)
_BLANKS = st.sampled_from(["", " ", "\t"])


@FAST
@given(
    st.lists(st.one_of(st.integers(0, 50), st.none()), min_size=1, max_size=20),
    st.lists(st.sampled_from(["{}", "{}.0", "{}.", " {} ", "0{}", "+{}"]), min_size=20),
    st.sampled_from(sorted(MISSING)),
)
def test_spellings_of_a_number_are_one_class(
    numbers: list[int | None], spellings: list[str], missing: str
) -> None:
    cells = [
        missing if number is None else spelling.format(number)
        for number, spelling in zip(numbers, spellings, strict=False)
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        labels, classes = labels_of_texts(cells, "x", str)
    assert labels.tolist() == [-1 if number is None else number for number in numbers]
    assert classes == [str(number) for number in range(labels.max() + 1)]
    assert bool(caught) == (None in numbers)


@FAST
@given(st.lists(st.one_of(_NAMES, st.just("")), min_size=1, max_size=20), _BLANKS)
def test_every_image_gets_the_class_of_its_cell(names: list[str], blank: str) -> None:
    labels, classes = labels_of_texts([f"{blank}{name}{blank}" for name in names], "x", str)
    found = [([*classes, ""])[label] for label in labels]
    assert found == [name.strip() for name in names]
    assert classes == sorted(set(found) - {""})


IMAGES = ("cat/1.jpg", "cat/2.JPG", "dog 3/1.jpg")
WANTED = {"cat/1.jpg": "a", "cat/2.JPG": "b", "dog 3/1.jpg": "a"}


@pytest.mark.parametrize(
    "text",
    [
        "cat/1.jpg a\ncat/2.JPG b\ndog 3/1.jpg a\n",
        "dog 3/1.jpg\ta\r\n\r\ncat/2.JPG\tb\r\ncat/1.jpg\ta\r\n",
        "set\\cat\\1.jpg,a\nset\\cat\\2.JPG,b\nset\\dog 3\\1.jpg,a\n",
        "./cat/1.jpg; a\n/elsewhere/data/set/cat/2.JPG ;b\n{dir}/data/set/dog 3/1.jpg; a\n",
        "C:\\data\\set\\cat\\1.jpg a\ndata/set/cat/2.JPG b\nset/dog 3/1.jpg a\nset/dog 3/9.jpg q\n",
        "\ufeffcat/1.jpg a\ncat/2.JPG b\ncat/2.JPG b\ndog 3/1.jpg a",
    ],
)
def test_a_list_of_paths_and_labels_is_read_by_path(tmp_path: Path, text: str) -> None:
    write_files(tmp_path / "data" / "set", *IMAGES)
    (tmp_path / "list.txt").write_text(text.format(dir=tmp_path))
    samples = opened(tmp_path / "data" / "set", labels=str(tmp_path / "list.txt"))
    assert labels_by_name(samples) == WANTED
    assert samples.classes == ["a", "b"]


def test_a_list_of_names_without_extensions_is_read_by_path(tmp_path: Path) -> None:
    write_files(tmp_path / "set", "2007_01.jpg", "2007_02.jpg")
    (tmp_path / "list.txt").write_text("2007_02 0\n2007_01 1\n2007_03 1\n")
    samples = opened(tmp_path / "set", labels=str(tmp_path / "list.txt"))
    assert labels_by_name(samples) == {"2007_01.jpg": "1", "2007_02.jpg": "0"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.jpg cat\n2.jpg dog black\n1.jpg dog", r"line 1 labels 1\.jpg 'cat', line 3 labels it"),
        ("1.jpg cat\n3.jpg dog\n", r"has no row for set/2\.jpg or for 2\.jpg; its first path is"),
        ("/x/old/set/1.jpg a\nold/set/2.jpg b\n", r"no row for set/1\.jpg or for 1\.jpg"),
        ("1.jpg\n2.jpg\n", r"line 1 is no path and one label: 1\.jpg;"),
        ("name label\n1.jpg cat\n2.jpg dog\n", "line 1 is no path and one label: name label;"),
        ("1.jpg 0 1\n2.jpg 1 1\n", r"line 1 is no path and one label: 1\.jpg 0 1;"),
        ("0 1 0\n0 1 0\n", "line 1 has several fields: 0 1 0; write one label"),
        ("x_1 cat\nx_2 dog\n", "line 1 has several fields: x_1 cat; write one label"),
        ("0\n1\n2\n", "3 labels for 2 images"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    write_files(tmp_path / "set", "1.jpg", "2.jpg")
    (tmp_path / "list.txt").write_text(text)
    refused(tmp_path / "set", message, labels=str(tmp_path / "list.txt"))


def test_class_names_may_have_blanks(tmp_path: Path) -> None:
    write_files(tmp_path / "set", "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "names.txt").write_text("golden retriever\ntench, Tinca tinca\ngolden retriever\n")
    samples = opened(tmp_path / "set", labels=str(tmp_path / "names.txt"))
    assert samples.classes == ["golden retriever", "tench, Tinca tinca"]
    assert samples.labels.tolist() == [0, 1, 0]


def test_an_array_takes_no_labels_by_path(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 9, 3), np.uint8))
    (tmp_path / "list.txt").write_text("1.jpg cat\n2.jpg dog\n")
    refused(tmp_path / "x.npy", "line 1 has several fields", labels=str(tmp_path / "list.txt"))
    (tmp_path / "list.csv").write_text("path,label\n1.jpg,cat\n")
    refused(
        tmp_path / "x.npy",
        r"line 2 has several fields: 1\.jpg,cat",
        labels=str(tmp_path / "list.csv"),
    )


def test_a_table_keeps_the_names_of_the_folders_classes(tmp_path: Path) -> None:
    write_files(tmp_path / "set", "None/1.jpg", "1.0/2.jpg", "007/3.jpg")
    table = tmp_path / "set.csv"
    table.write_text("path,label\nNone/1.jpg,007\n1.0/2.jpg,None\n007/3.jpg,1.0\n")
    samples = opened(tmp_path / "set", labels=str(table))
    assert samples.classes == ["007", "1.0", "None"]
    expected = {"None/1.jpg": "007", "1.0/2.jpg": "None", "007/3.jpg": "1.0"}
    assert labels_by_name(samples) == expected


def test_a_row_that_fits_two_images_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path / "set", "a.jpg", "a.png")
    (tmp_path / "set.csv").write_text("path,label\na,1\n")
    message = r"line 2 fits a\.jpg and a\.png; write the path of each"
    refused(tmp_path / "set", message, labels=str(tmp_path / "set.csv"))


_PARTS = st.text("ab1. _", min_size=1, max_size=4).filter(lambda part: part.strip(". ") == part)
_PATHS = st.lists(_PARTS, min_size=1, max_size=3).map(lambda parts: "/".join(parts) + ".jpg")


@FAST
@given(st.data())
def test_rows_are_found_however_their_paths_are_spelled(data: st.DataObject) -> None:
    names = data.draw(st.lists(_PATHS, min_size=1, max_size=6, unique=True))
    styles = st.sampled_from(["", "./", "set/", "d/set/", "/home/d/set/", "C:/d/set/", "/d/set/"])
    paths, texts = [], []
    for number, name in enumerate(names):
        path = data.draw(styles) + name
        path = path.removesuffix(".jpg") if data.draw(st.booleans()) else path
        paths.append(path.replace("/", "\\") if data.draw(st.booleans()) else path)
        texts.append(str(number))
    order = data.draw(st.permutations(range(len(names))))
    paths, texts = [[column[row] for row in order] for column in (paths, texts)]
    table = Table(path=Path("t.csv"), header=[], columns={"path": paths}, places=order)
    rows = rows_of_images(table, texts, names, Path("/d/set"))
    assert [texts[row] for row in rows] == [str(number) for number in range(len(names))]


def test_a_table_of_windows_is_read(tmp_path: Path) -> None:
    names = ("train/cat/0.jpg", "train/dog/1.jpg")
    write_files(tmp_path, *names)
    rows = "path,label\r\ntrain\\cat\\0.jpg,cat\r\ntrain\\dog\\1.jpg,dog\r\n"
    table = tmp_path / "set.csv"
    for text in (rows, rows.replace(",", ";"), rows.replace(",", " , "), rows.replace("\\", "/")):
        table.write_text(text, "utf-8-sig")
        assert labels_by_name(opened(table)) == dict(zip(names, ("cat", "dog"), strict=True))
    table.write_text(rows, "utf-16")
    assert opened(table).names == list(names)
    write_files(tmp_path, "train\\cat\\0.jpg")  # such a file may exist here
    assert opened(table).names == ["train\\cat\\0.jpg", "train/dog/1.jpg"]


def test_tables_have_paths_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_files(tmp_path / "home", "a.jpg")
    (tmp_path / "set.csv").write_text("path\n~/a.jpg\n")
    samples = opened(tmp_path / "set.csv")
    assert samples.load(samples.keys[0]) == b"x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nhttps://x.org/a.jpg,cat\n", r"line 2 names https://x\.org/a\.jpg, which is"),
        ("path,label\na.jpg,cat\nC:\\d\\a.jpg,dog\n", r"line 3 names C:\\d\\a\.jpg, which is no"),
        ("path,label\na.jpg,cat\n./a.jpg,dog\n", r"line 3 repeats \./a\.jpg of line 2"),
        ("path,label\na.jpg,cat\n{dir}/a.jpg,dog\n", r"line 3 repeats .*a\.jpg of line 2"),
        ("path,label\na.jpg,cat, black\n", "line 2 has 3 cells for 2 columns; .* double quotes"),
        ("path,label,label\na.jpg,1,2\n", "has two columns label; rename one"),
        ("path,label\nb.jpg,1\nc.jpg,2\n", r"none of its 2 files exists; the first is b\.jpg"),
        ("a.jpg,cat\n", r"has no column path; its columns are a\.jpg, cat; call one of them path"),
    ],
)
def test_tables_that_would_give_wrong_labels_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    write_files(tmp_path, "a.jpg")
    (tmp_path / "set.csv").write_text(text.format(dir=tmp_path))
    refused(tmp_path / "set.csv", rf"set\.csv: {message}")


def test_columns_in_another_case_and_empty_rows_are_understood(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "set.csv").write_text("Path,LABEL\n\na.jpg,cat,,\n   \nb.jpg,dog\n,\n")
    assert labels_by_name(opened(tmp_path / "set.csv")) == {"a.jpg": "cat", "b.jpg": "dog"}


def test_cells_of_several_values_are_no_classes(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg")
    rows = {"path": ["a.jpg"], "label": [[1, 3]]}
    parquet.write_table(pa.table(rows), tmp_path / "set.parquet")
    refused(tmp_path / "set.parquet", r"a cell holds several values, \[1, 3\]; give one an image")
    rows = {"image": [{"bytes": b"x", "path": "a.jpg"}], "label": [1]}
    parquet.write_table(pa.table(rows), tmp_path / "set.parquet")
    refused(tmp_path / "set.parquet", "has no column path; .*images inside a table are not read")


SPLITS = ["Training Testing", "train val samples", "seg_train seg_test seg_pred", "TRAIN Valid"]
SPLITS += ["train2017 val2017", "TrainSet TestSet", "01_train 02_test", "train", "test trainval"]


@pytest.mark.parametrize("names", SPLITS)
def test_splits_are_no_classes(tmp_path: Path, names: str) -> None:
    folders = names.split()
    write_files(tmp_path, *(f"{folder}/cat/{n}.jpg" for n, folder in enumerate(folders)))
    splits = [one for one in folders if one not in ("samples", "seg_pred")]
    message = rf"holds the splits {', '.join(sorted(splits))}, not classes; convert each of them"
    refused(tmp_path, message)
    write_files(tmp_path, "cover.jpg")
    refused(tmp_path, message)


@pytest.mark.parametrize(
    "names", ["bus car train", "test_tube flask", "bullet_train freight_train", "Trainer val_a"]
)
def test_classes_may_be_named_like_one_split(names: str) -> None:
    assert split_folders(names.split()) == []


_WORDS = ("train", "training", "val", "valid", "validation", "test", "testing")


@FAST
@given(st.data())
def test_splits_are_known_by_any_case_prefix_and_number(data: st.DataObject) -> None:
    first, second = data.draw(st.sampled_from([("train", "test"), ("training", "val")]))
    case = data.draw(st.sampled_from([str.lower, str.upper, str.title]))
    form = data.draw(st.sampled_from(["{}", "seg_{}", "{}-images", "{}2017", "my {} set", "{}_1"]))
    others = data.draw(st.lists(st.sampled_from(["samples", "cat", "extra"]), unique=True))
    splits = [form.format(case(word)) for word in (first, second)]
    assert sorted(split_folders([*others, *splits])) == sorted(splits)


_FOLDERS = st.sampled_from(["", "cat/", "dog/", "dog/deep/", "train/", "None/", "1.0/"])


@FAST
@given(st.dictionaries(_FOLDERS, st.integers(1, 3), min_size=1))
def test_every_image_of_a_tree_has_its_folder_as_class_or_is_said(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, int]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    names = [f"{folder}{n}.jpg" for folder, count in tree.items() for n in range(count)]
    write_files(root, *names)
    firsts = {name: name.partition("/")[0] if "/" in name else None for name in names}
    if {*firsts.values()} - {None} == {"train"}:
        refused(root, "holds the splits train")
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples = opened(root)
    assert labels_by_name(samples) == firsts
    beside = tree.get("", 0)
    if beside and beside < len(names):
        (warning,) = caught
        expected = f"{beside} of {len(names)} images are beside the class folders"
        assert expected in str(warning.message)
        assert "(first 0.jpg)" in str(warning.message)
    else:
        assert not caught


def test_arrays_of_a_split_keep_their_labels(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 9), np.uint8)
    med = {"train_images": images, "train_labels": np.array([[0], [1], [2], [0]], np.uint8)}
    med |= {"test_images": images[:2], "test_labels": np.array([[1], [1]], np.uint8)}
    np.savez(tmp_path / "med.npz", **med)
    assert opened(tmp_path / "med.npz").labels.tolist() == [0, 1, 2, 0]
    assert opened(tmp_path / "med.npz", split="test").labels.tolist() == [1, 1]
    refused(tmp_path / "med.npz", "has no images_val for split=val; it holds test_im", split="val")
    np.savez(tmp_path / "one.npz", images=images, labels=np.arange(4))
    refused(tmp_path / "one.npz", "has no images_test for split=test", split="test")
    np.save(tmp_path / "one.npy", images)
    refused(tmp_path / "one.npy", "has no split=test; it holds one set", split="test")
    np.savez(tmp_path / "odd.npz", x_train=images, y=np.arange(4))
    refused(tmp_path / "odd.npz", "the labels y are not of the split of the images x_train")
