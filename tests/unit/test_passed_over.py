"""Nothing in a folder is passed over unsaid: taken, listed as bad, or counted with a reason."""

import errno
import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastmoco.cli import main
from fastmoco.data.convert import ConvertConfig, OnError, convert
from fastmoco.data.convert_summary import ConvertSummary
from fastmoco.data.dataset import open_dataset
from fastmoco.data.source_set import SourceSet
from fastmoco.data.sources import SourceOptions, open_source
from fastmoco.data.sources.listing import list_images
from fastmoco.data.sources.recognition import HEAD_BYTES, named_like_image, starts_like_image
from tests.pictures import encoded, picture

JPEG = encoded(picture(1))
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)
HTML = b"<html>404</html>"


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def converted(source: Path, **options: Any) -> tuple[ConvertSummary, dict[str, str]]:
    """The summary, and the reason of each bad image."""
    target = source.parent / "x.beton"
    summary = convert(str(source), target, ConvertConfig(**{"max_bad_fraction": 1.0} | options))
    assert summary.quarantine_path
    lines = summary.quarantine_path.read_text().splitlines()[1:]
    return summary, dict(line.split(",", 1) for line in lines)


def counts(source: Path) -> dict[str, tuple[int, str]]:
    rows = open_source(str(source), SourceOptions()).passed_over.rows.values()
    return {row.reason: (row.count, row.first) for row in rows}


@pytest.mark.parametrize(
    "name",
    [
        *("leaf.jpg?w=300&h=200", "leaf.jpg?u=http:a.b.php", "leaf.jpg.1", "leaf.jpg~"),
        *("leaf.JPG.part", "leaf.jpg_original", "leaf.jpg (1)", "leaf.jpeg:large"),
        *("0a1b2c3d", "leaf.dat", "a.b.c"),
    ],
)
def test_a_picture_is_taken_whatever_its_name(tmp_path: Path, name: str) -> None:
    samples = open_source(str(write(tmp_path / "in", {name: JPEG})), SourceOptions())
    assert samples.names == [name]
    assert samples.load(samples.keys[0]) == JPEG


def test_what_is_named_like_a_picture_but_is_none_is_listed(tmp_path: Path) -> None:
    names = ("leaf.jpg?w=3", "leaf.jpg.1", "scan.jxl", "raw.CR2")
    source = write(tmp_path / "in", {"a.jpg": JPEG, **dict.fromkeys(names, HTML)})
    write(source, {"leaf.jpg.json": b"{}", "leaf.jpg.txt": JPEG, "leaf": HTML})
    summary, bad = converted(source)
    assert set(bad) == set(names)
    assert counts(source) == {"not images": (3, "leaf")}
    assert "4 of 5 images (80%) are left out" in summary.to_text().splitlines()[-1]
    assert "not images  3 files, by name or first bytes (first leaf)" in summary.to_text()
    assert summary.to_json()["passed_over"] == [
        {"reason": "not images", "count": 3, "first": "leaf"}
    ]


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM"])
def test_first_bytes_tell_images_from_other_files(image_format: str) -> None:
    assert starts_like_image(encoded(picture(1), image_format)[:HEAD_BYTES])
    assert starts_like_image(HEIC)
    for other in (b"", HTML, b"P5 is a text", b"BM is one, too" * 9, b"RIFFxxxxAVI ", bytes(32)):
        assert not starts_like_image(other[:HEAD_BYTES])


def test_no_file_is_opened_whose_name_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of a million images, or of as many captions, is listed without opening them."""
    source = write(tmp_path / "in", dict.fromkeys(("a.jpg", "a.txt", "a.zip", ".x", "b"), b""))
    opened, real = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *a: opened.append(path) or real(path, *a))
    assert open_source(str(source), SourceOptions()).names == ["a.jpg"]
    assert opened == [str(source / "b")]


def test_avif_is_read_and_heic_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    avif = encoded(picture(2), "AVIF", quality=95)
    source = write(tmp_path / "in", {"a.avif": avif, "b.HEIC": HEIC, "c": HEIC})
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    summary, bad = converted(source)
    assert summary.num_samples == 1
    assert {reason.split(";")[0].strip('"') for reason in bad.values()} == {"is HEIC"}
    assert "pip install pillow-heif" in bad["b.HEIC"]
    with pytest.raises(ValueError, match=r"b\.HEIC: is HEIC"):
        converted(source, on_error=OnError.fail)


def test_a_picture_that_begins_with_a_thumbnail_is_refused(tmp_path: Path) -> None:
    """So do the raw files of cameras: its small first picture would be taken for it."""
    file = io.BytesIO()
    Image.fromarray(picture(1)).save(file, "TIFF", tiffinfo={254: 1})
    source = write(tmp_path / "in", {"a.nef": file.getvalue(), "b.jpg": JPEG})
    _, bad = converted(source)
    assert bad["a.nef"].startswith("is a camera's raw file")


@pytest.fixture
def links(tmp_path: Path) -> Path:
    """A class whose images are links to a disk that is not there, and links in circles."""
    source = write(tmp_path / "in", {"cat/0.jpg": JPEG, "cat/1.jpg": JPEG, "cat/2.jpg": JPEG})
    (source / "dog").mkdir()
    (source / "dog" / "0.jpg").symlink_to("/not/mounted/0.jpg")
    (source / "dog" / "1").symlink_to("1")
    (source / "dog" / "notes.txt").symlink_to("/not/mounted/notes.txt")
    (source / "dog" / "up").symlink_to(source)
    os.mkfifo(source / "dog" / "pipe.jpg")
    os.mkfifo(source / "dog" / "pipe")
    return source


LINKS = {
    "dog/0.jpg": "is a link to a file that does not exist",
    "dog/1": "Too many levels of symbolic links",
}
PASSED = {
    "not images": (1, "dog/notes.txt"),
    "not files": (2, "dog/pipe"),
    "folder links": (1, "dog/up/"),
}


def test_broken_links_are_listed_and_circles_counted(links: Path) -> None:
    summary, bad = converted(links)
    assert bad == LINKS
    assert summary.classes == ["cat", "dog"]
    assert counts(links) == PASSED
    with pytest.raises(ValueError, match=r"dog/0\.jpg: is a link to a file that does not exist"):
        converted(links, on_error=OnError.fail)


def test_an_unconverted_folder_says_the_same(links: Path) -> None:
    with pytest.warns(UserWarning, match=r"2 of 5 images .*first dog/0\.jpg: is a link"):
        dataset = open_dataset(links)
    assert isinstance(dataset, SourceSet)
    assert dict(dataset.left_out) == LINKS
    assert dataset.passed_over.total == sum(count for count, _ in PASSED.values())


def test_a_folder_that_may_not_be_read_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played, since the user of a test may be root, who may read everything."""
    source = write(tmp_path / "in", {"cat/0.jpg": JPEG, "dog/0.jpg": JPEG})
    denied = {str(source / "dog"), f"{source}/dog/"}

    def forbidding(real: Any) -> Any:
        def call(path: Any, *arguments: Any) -> Any:
            if str(path) in denied:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return real(path, *arguments)

        return call

    for name in ("scandir", "open"):
        monkeypatch.setattr(os, name, forbidding(getattr(os, name)))
    summary, bad = converted(source)
    assert bad == {"dog/": "Permission denied"}
    assert summary.classes == ["cat", "dog"]
    with pytest.warns(UserWarning, match=r"first dog/: Permission denied"):
        assert len(open_dataset(source)) == 1
    denied.add(str(source))
    with pytest.raises(PermissionError):
        open_source(str(source), SourceOptions())


def test_what_fastmoco_writes_into_a_data_folder_is_not_learned(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"cat/0.jpg": JPEG, "zebra/0.jpg": JPEG})
    before = open_dataset(source).fingerprint
    write(source / "runs" / "first", {"config.yaml": b"", ".lock": b"", "views.png": JPEG})
    write(source / "runs" / "copy", {"config.yaml": b"", "metrics.jsonl": b"", "views.png": JPEG})
    write(source / "wanted", {"request.json": b"", "request.csv": b"", "images/0.jpg": JPEG})
    write(source / "many", {"sweep.json": b"", "logs/x": b"", "plot.png": JPEG})
    samples = open_source(str(source), SourceOptions())
    assert samples.classes == ["cat", "zebra"]
    assert counts(source) == {"own folders": (4, "many/")}
    assert open_dataset(source).fingerprint == before  # so the run in it can be resumed
    write(source, {"config.yaml": b"", ".lock": b""})  # a folder that is asked for is read
    assert open_source(str(source), SourceOptions()).classes == ["cat", "zebra"]


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    ("bad", "limit", "stops"), [(5, 0.5, False), (6, 0.5, True), (1, 0.0, True)]
)
def test_a_set_of_mostly_bad_images_ends_in_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: int, limit: float, stops: bool
) -> None:
    files = {f"{i}.jpg": JPEG if i >= bad else HTML for i in range(10)}
    source = write(tmp_path / "in", files)
    argv = ["convert", str(source), str(tmp_path / "x.beton"), f"max_bad_fraction={limit}"]
    assert main(argv) == int(stops)
    printed = capsys.readouterr()
    if stops:
        assert f"{bad} of its 10 images are bad so far" in printed.err
        assert (
            f"max_bad_fraction={limit:g}; the last is {bad - 1}.jpg: is not an image" in printed.err
        )
        assert os.listdir(tmp_path) == ["in"]
    else:
        note = "5 of 10 images (50%) are left out"
        assert note in printed.err.splitlines()[-1]
        assert note in printed.out.splitlines()[-1]


KINDS = ("jpg", "html.jpg", "txt", "noname", "hidden", "broken", "pipe", "zip", "circle")


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.lists(st.text("abcé .?#\n\udcff", min_size=1, max_size=4), min_size=1, max_size=3).map(
            tuple
        ),
        st.sampled_from(KINDS),
        max_size=8,
    )
)
def test_every_file_of_a_tree_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[tuple[str, ...], str]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    write(root / "in", {"top/sure.jpg": JPEG})
    made = Counter({"taken": 1})
    for number, (parts, kind) in enumerate(tree.items()):
        # Letters before each part keep names apart from hidden ones and from "..".
        path = root.joinpath("in", "top", *(f"d{part}" for part in parts[:-1]))
        path.mkdir(parents=True, exist_ok=True)
        _make(path, f"{number}{parts[-1]}", kind, made)
    samples = open_source(str(root / "in"), SourceOptions())
    loaded = Counter(_loads(samples, key) for key in samples.keys)
    assert loaded == Counter(taken=made["taken"], bad=made["bad"]) - Counter()
    assert samples.passed_over.total == made["passed"]
    assert sum(loaded.values()) + samples.passed_over.total == made.total()


def _make(folder: Path, stem: str, kind: str, made: Counter[str]) -> None:
    """Makes a file or link of a kind, and counts what must become of it."""
    if kind == "jpg":
        (folder / f"{stem}.jpg").write_bytes(JPEG)
    elif kind == "html.jpg":
        (folder / f"{stem}.jpg").write_bytes(b"")
    elif kind in ("txt", "zip"):
        (folder / f"{stem}.{kind}").write_bytes(JPEG)
    elif kind == "noname":
        (folder / f"{stem}_").write_bytes(JPEG)
    elif kind == "hidden":
        (folder / f".{stem}.jpg").write_bytes(JPEG)
    elif kind == "broken":
        (folder / f"{stem}.jpg").symlink_to("nothing")
    elif kind == "pipe":
        os.mkfifo(folder / f"{stem}.jpg")
    else:
        (folder / f"{stem}_").symlink_to(folder)
    fates = {"jpg": "taken", "noname": "taken", "html.jpg": "bad", "broken": "bad"}
    made[fates.get(kind, "passed")] += 1


def _loads(samples: Any, key: Any) -> str:
    try:
        samples.load(key)
    except (OSError, ValueError):
        return "bad"
    return "taken"


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy", ".npz", ".pt", ".tar", ".tar.gz"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, suffix: str) -> None:
    """By its own name, by a pattern, and as a shard in a folder."""
    path = tmp_path / "in" / f"pipe{suffix}"
    path.parent.mkdir()
    os.mkfifo(path)
    sources = [path] + [path.parent, path.parent / "*"] * (".tar" in suffix)
    for source in sources:
        with pytest.raises(ValueError, match=rf"{path}: is a pipe, socket, device or folder"):
            open_source(str(source), SourceOptions())
    with pytest.raises(ValueError, match="not a regular file" if suffix != ".tar" else "is a pipe"):
        open_dataset(path)


def test_names_of_sidecars_are_not_those_of_images() -> None:
    for name in ("a.jpg.json", "a.jpg.xml", "a.jpg_x.json", "jpg", "a.jpgs", "ajpg", "a.jpg.gz"):
        assert not named_like_image(name)


def test_folders_that_all_link_to_each_other_are_searched_a_few_times(tmp_path: Path) -> None:
    """By all paths these ten would be searched 10 million times."""
    folders = [tmp_path / str(number) for number in range(10)]
    for folder in folders:
        write(folder, {"1.jpg": JPEG})
        for other in folders:
            (folder / f"to{other.name}").symlink_to(other, target_is_directory=True)
    listing = list_images(tmp_path)
    assert {f"{folder.name}/1.jpg" for folder in folders} <= set(listing.names)
    assert len(listing.names) <= 10 + 10 * 16
    assert listing.passed_over.rows["folder links"].count > 100


def test_a_link_to_itself_is_a_bad_image_and_deep_folders_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a", {"1.jpg": JPEG})
    (tmp_path / "a" / "2.jpg").symlink_to("2.jpg")
    (tmp_path / "a" / "self").symlink_to("self")
    inner = tmp_path / "b"
    for _ in range(150):
        inner /= "b"
    write(inner, {"1.jpg": JPEG})
    listing = list_images(tmp_path)
    assert listing.names == ["a/1.jpg", "a/2.jpg", "a/self"]
    assert listing.stamps[1:].tolist() == [[-1, -1]] * 2
    assert listing.passed_over.rows["deep folders"].count == 1
