"""Nothing in a tar file is passed over unsaid, and names, links and ends are read as meant."""

import bz2
import io
import tarfile
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmoco.cli import main
from fastmoco.data.dataset import open_dataset
from fastmoco.data.jpeg_markers import ImageError
from fastmoco.data.source_set import SourceSet
from fastmoco.data.sources import SampleSet, SourceOptions, open_source
from fastmoco.data.sources.samples import BROKEN_LINK
from tests.faults import zoo_tars
from tests.pictures import encoded, picture
from tests.sample_sets import labels_by_name, opened

JPEG = encoded(picture(1))

Member = bytes | tuple[bytes, str]
"""Bytes of a file; or the type of another member, and what it links to."""


def write_tar(path: Path, *members: tuple[str, Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
            else:
                header.type, header.linkname = content
                archive.addfile(header)
    return path


def counts(samples: SampleSet) -> dict[str, tuple[int, str]]:
    rows = samples.passed_over.rows.values()
    return {row.reason: (row.count, row.first) for row in rows}


def test_the_last_dot_ends_a_key(tmp_path: Path) -> None:
    names = ("IMG_2021.05.03.jpg", "IMG_2021.06.jpg", "IMG_2021.jpg", "scan v1.2 (final).jpg")
    names += ("a.b.jpg", "leaf.jpg?w=3", "leaf.jpg.1", "0a1b2c3d", "scan v1.jpg")
    path = write_tar(tmp_path / "x.tar", *((name, JPEG) for name in names))
    assert opened(path).names == [f"x/{name}" for name in names]


def test_views_beside_an_image_are_no_samples_but_counted(tmp_path: Path) -> None:
    members = ("x.seg.png", "x.jpg", "x.png", "x.depth.left.png", "y.left.jpg", "y.right.jpg")
    path = write_tar(
        tmp_path / "t.tar", *((name, JPEG) for name in members), ("x.cls", b"3"), ("y.cls", b"1")
    )
    samples = opened(path)
    assert labels_by_name(samples) == {"t/x.jpg": "3", "t/y.left.jpg": "1", "t/y.right.jpg": "1"}
    assert counts(samples) == {"other images": (3, "x.png")}


def test_what_is_no_sample_is_counted(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "t.tar",
        ("a.jpg", JPEG),
        ("a.json", b'{"x": 1}'),
        ("._a.jpg", JPEG),
        ("a.txt", JPEG),
        ("b", b"text"),
        ("c.tar", b"x"),
        ("alone.cls", b"1"),
        ("d", (tarfile.DIRTYPE, "")),
        ("pipe.jpg", (tarfile.FIFOTYPE, "")),
    )
    (tmp_path / "readme.txt").write_text("")
    expected = {
        "hidden": (1, "._a.jpg"),
        "not images": (2, "a.txt"),
        "archives": (1, "c.tar"),
        "lone labels": (1, "alone.cls"),
        "not files": (1, "pipe.jpg"),
    }
    assert counts(opened(path)) == expected
    assert counts(opened(tmp_path)) == expected | {"not images": (3, "a.txt")}


def test_links_are_resolved_within_the_archive(tmp_path: Path) -> None:
    hard, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    path = write_tar(
        tmp_path / "t.tar",
        ("./a/0.jpg", JPEG),
        ("./a/0.cls", b"7"),
        ("a/1.jpg", (hard, "./a/0.jpg")),
        ("a/1.cls", (hard, "a/0.cls")),
        ("b/2.jpg", (soft, "../a/1.jpg")),
        ("b/3.jpg", (soft, "../../away/0.jpg")),
        ("b/4.jpg", (soft, "5.jpg")),
        ("b/5.jpg", (soft, "4.jpg")),
        ("all", (soft, "a")),
    )
    samples = opened(path)
    labels = {"t/a/0.jpg": "7", "t/a/1.jpg": "7"}
    broken = [f"t/b/{i}.jpg" for i in (3, 4, 5)]
    assert labels_by_name(samples) == labels | dict.fromkeys(["t/b/2.jpg", *broken])
    for name, key in zip(samples.names, samples.keys, strict=True):
        if name in broken:
            with pytest.raises(ImageError, match=BROKEN_LINK):
                samples.load(key)
        else:
            assert samples.load(key) == JPEG
    assert counts(samples) == {"folder links": (1, "all")}
    with pytest.warns(UserWarning, match=rf"3 of 6 .*first t/b/3\.jpg: {BROKEN_LINK}"):
        dataset = open_dataset(path)
    assert isinstance(dataset, SourceSet)
    assert [name for name, _ in dataset.left_out] == broken
    write_tar(path, ("a.jpg", JPEG), ("a.cls", (soft, "gone.cls")))
    with pytest.raises(ValueError, match=rf"t\.tar: a\.cls {BROKEN_LINK}"):
        open_source(str(path), SourceOptions())


def test_archives_joined_by_cat_are_read_to_their_end(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{i}.tar", (f"{i}.jpg", JPEG)).read_bytes() for i in range(3)]
    path = tmp_path / "x" / "all.tar"
    path.parent.mkdir()
    path.write_bytes(b"".join(parts))
    samples = opened(path)
    assert samples.names == ["all/0.jpg", "all/1.jpg", "all/2.jpg"]
    assert all(samples.load(key) == JPEG for key in samples.keys)
    path.write_bytes(parts[0] + b"more" * 500)
    with pytest.raises(ValueError, match=rf"is cut or damaged at byte {len(parts[0])}"):
        open_source(str(path), SourceOptions())


def test_a_cut_archive_is_never_short(tmp_path: Path) -> None:
    """At no length of the file are fewer images read without an error."""
    path = write_tar(tmp_path / "x.tar", ("0.jpg", JPEG), ("1.jpg", JPEG), ("2.jpg", JPEG))
    data = path.read_bytes()
    content = len(data.rstrip(b"\0"))
    for size in range(0, content, 97):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="is cut or"):
            open_source(str(path), SourceOptions())


def test_a_folder_with_compressed_shards_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also beside plain ones, which would be read as if they were all."""
    data = write_tar(tmp_path / "in" / "0.tar", ("0.jpg", JPEG)).read_bytes()
    packed = tmp_path / "in" / "1.tar.bz2"
    packed.write_bytes(bz2.compress(data))
    assert main(["convert", str(packed.parent), str(tmp_path / "x.beton")]) == 1
    assert f"is compressed; unpack it first: bunzip2 {packed}" in capsys.readouterr().err


def test_pictures_beside_tar_files_are_taken_and_the_tar_files_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "0.tar", ("0.jpg", JPEG))
    (tmp_path / "in" / "cat").mkdir()
    (tmp_path / "in" / "cat" / "0.jpg").write_bytes(JPEG)
    samples = opened(tmp_path / "in")
    assert samples.names == ["cat/0.jpg"]
    assert counts(samples) == {"archives": (1, "0.tar")}


SUFFIXES = (".jpg", ".seg.png", ".cls", ".txt", "", ".tar", ".heic")
CONTENTS: tuple[Member, ...] = (
    JPEG,
    b"1",
    (tarfile.LNKTYPE, "sure.jpg"),
    (tarfile.SYMTYPE, "gone"),
    (tarfile.FIFOTYPE, ""),
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["a", "b.c", ".d", "e/f", "1.2"]), st.sampled_from(SUFFIXES)),
        st.sampled_from(range(len(CONTENTS))),
        max_size=10,
    )
)
def test_every_member_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[tuple[str, str], int]
) -> None:
    members = {"sure.jpg": JPEG} | {
        stem + suffix: b"1" if suffix == ".cls" else CONTENTS[kind]
        for (stem, suffix), kind in tree.items()
    }
    path = write_tar(tmp_path_factory.mktemp("tar") / "t.tar", *members.items())
    samples = open_source(str(path), SourceOptions())
    names = [name.removeprefix("t/") for name in samples.names]
    labels = [stem for stem, suffix in tree if suffix == ".cls" and stem != ".d"]
    used = sum(any(f"{name}.".startswith(f"{stem}.") for name in names) for stem in labels)
    assert len(names) + used + samples.passed_over.total == len(members)
    assert "lone labels" in counts(samples) or used == len(labels)
    for name, key in zip(names, samples.keys, strict=True):
        if members[name] in (JPEG, CONTENTS[2]):
            assert samples.load(key) == JPEG


HOSTILE = list(zoo_tars.cases())


@pytest.mark.parametrize(("data", "word"), [c[1:] for c in HOSTILE], ids=[c[0] for c in HOSTILE])
def test_hostile_archives_are_listed_or_refused_in_one_line(
    tmp_path: Path, data: bytes, word: str
) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(data)
    if word:
        with pytest.raises(ValueError, match=word) as caught:
            opened(path)
        assert str(path) in str(caught.value) or str(tmp_path) in str(caught.value)
        assert len(str(caught.value)) < 500
        return
    samples = opened(path)
    for key in samples.keys:
        with suppress(ImageError):
            assert samples.load(key) == zoo_tars.IMAGE


def test_no_header_asks_for_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    tracemalloc.start()
    for name, data, _ in HOSTILE:
        if "GB" in name or "byte" in name:
            path.write_bytes(data)
            with suppress(ValueError):
                opened(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20
