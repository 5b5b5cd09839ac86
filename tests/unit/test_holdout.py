"""Conversion with ``holdout``: what goes to which side, and that a kill changes nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmoco.data import convert as convert_module
from fastmoco.data import holdout
from fastmoco.data.beton import BetonFile
from fastmoco.data.beton_set import BetonSet
from fastmoco.data.convert import ConvertConfig, convert
from fastmoco.data.convert_summary import ConvertSummary
from fastmoco.data.holdout import choose_test
from tests.pictures import encoded, picture, write_class_folders


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
def test_every_image_is_on_one_side_with_its_copies_and_classes_give_their_share(
    share: float,
) -> None:
    random = np.random.default_rng(7)
    labels = np.sort(random.integers(-1, 6, 900))
    labels[0] = 9  # a class of one image
    groups = np.arange(900)
    for copies in np.split(random.permutation(np.arange(1, 900))[:240], 80):  # of several classes
        groups[copies] = copies.min()
    content = random.integers(0, 2**64, 900, dtype=np.uint64)
    is_test = choose_test(labels, groups, content, share)
    for group in np.unique(groups):
        assert len(set(is_test[groups == group])) == 1
    for label in np.unique(labels):
        count = int((labels == label).sum())
        given = int(is_test[labels == label].sum())
        assert given == (0 if count == 1 else min(max(1, round(share * count)), count - 1))


def test_the_choice_is_one_of_contents_not_of_order_or_of_group_size() -> None:
    random = np.random.default_rng(3)
    content = random.integers(0, 2**64, 4000, dtype=np.uint64)
    labels, groups = np.zeros(4000, np.int64), np.arange(4000)
    is_test, order = choose_test(labels, groups, content, 0.25), random.permutation(4000)
    assert np.array_equal(choose_test(labels, groups, content[order], 0.25), is_test[order])
    groups = np.arange(4000) // 2 * 2 * (np.arange(4000) < 2000) + groups * (
        np.arange(4000) >= 2000
    )
    grouped = choose_test(labels, groups, content, 0.25)
    assert abs(grouped[:2000].mean() - 0.25) < 0.05


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three classes of ten images, one of one, and a bad file."""
    root = tmp_path / "photos"
    write_class_folders(root, classes=3, per_class=10)
    write_class_folders(tmp_path / "one", classes=1, per_class=1)
    shutil.move(tmp_path / "one" / "class_0", root / "rare")
    (root / "rare" / "0.jpg").write_bytes(encoded(picture(77)))
    (root / "class_1" / "bad.jpg").write_bytes(b"no image")
    return root


def split(source: Path, target: Path, **options: object) -> ConvertSummary:
    return convert(str(source), target, ConvertConfig(holdout=0.2, workers=1, **options))  # type: ignore[arg-type]


def names(path: Path) -> list[str]:
    with BetonFile.open(path) as beton:
        return [beton.name(i) for i in range(len(beton))]


def test_two_files_are_made_and_said(source: Path, tmp_path: Path) -> None:
    pixels = picture(10, 32, 40)  # class_1/0.jpg, to be copied into another class
    copy = np.asarray(Image.fromarray(pixels).resize((80, 64), Image.Resampling.BICUBIC))
    (source / "class_2" / "copy.jpg").write_bytes(encoded(copy, quality=60))
    summary = split(source, tmp_path / "set.beton")
    train, test = tmp_path / "set-train.beton", tmp_path / "set-test.beton"
    assert (summary.path, summary.num_samples, summary.num_quarantined) == (train, 26, 1)
    held_out = summary.held_out
    assert held_out is not None
    assert (held_out.path, held_out.num_samples, held_out.num_copies) == (test, 6, 2)
    assert held_out.untested == ["rare"]
    everything = [str(path.relative_to(source)) for path in sorted(source.rglob("*.jpg"))]
    assert sorted([*names(train), *names(test), "class_1/bad.jpg"]) == everything
    copies = {"class_1/0.jpg", "class_2/copy.jpg"}
    assert sum(copies <= set(names(path)) for path in (train, test)) == 1
    with BetonFile.open(train) as one, BetonFile.open(test) as other:
        assert one.classes == other.classes == ["class_0", "class_1", "class_2", "rare"]
        assert np.bincount(other.labels).tolist() == [2, 2, 2]
        for beton in (one, other):  # each file's statistics are those of its own pixels
            levels = np.concatenate([beton.decode(i).reshape(-1, 3) for i in range(len(beton))])
            assert np.allclose(beton.facts["channel_mean"], levels.mean(0) / 255, atol=1e-5)
    table = dict(line.split("  ", 1) for line in summary.to_text().splitlines())
    assert table["test images"].strip() == "6"
    assert table["untested"].strip().startswith("1 classes")
    assert table["untested"].endswith("rare")
    assert table["next"].endswith(f"data.train={train} data.test={test}")
    facts = json.loads((tmp_path / "set-test.beton.json").read_text())
    assert (facts["part"], facts["options"]["holdout"]) == ("test", 0.2)
    assert json.loads(json.dumps(summary.to_json()))["held_out"]["num_samples"] == 6
    assert not list(tmp_path.glob("*.journal"))


def test_images_without_a_label_are_no_untested_class(source: Path, tmp_path: Path) -> None:
    (source / "loose.jpg").write_bytes(encoded(picture(78)))
    with pytest.warns(UserWarning, match="beside the class folders"):
        held_out = split(source, tmp_path / "set.beton").held_out
    assert held_out is not None
    assert held_out.untested == ["rare"]


def test_renamed_images_are_split_alike(source: Path, tmp_path: Path) -> None:
    split(source, tmp_path / "a.beton")
    for path in source.rglob("[0-9].jpg"):
        path.rename(path.with_stem(f"{9 - int(path.stem)}-renamed"))
    split(source, tmp_path / "b.beton")
    blobs = []
    for name in ("a", "b"):
        with BetonFile.open(tmp_path / f"{name}-test.beton") as beton:
            blobs.append({bytes(beton.blob(i)) for i in range(len(beton))})
    assert blobs[0] == blobs[1]


def test_shards_of_both_files(source: Path, tmp_path: Path) -> None:
    summary = split(source, tmp_path / "set.beton", shards=2)
    split(source, tmp_path / "single.beton")
    assert summary.path.name == "set-train-*.beton"
    for part in ("train", "test"):
        with BetonSet.open(tmp_path / f"set-{part}-*.beton") as shards:
            found = [shards.name(i) for i in range(len(shards))]
        assert sorted(found) == sorted(names(tmp_path / f"single-{part}.beton"))
    for number in range(2):
        split(source, tmp_path / "own.beton", shard=f"{number}/2")
    for path in tmp_path.glob("set-*.beton"):
        assert names(path) == names(path.with_name(path.name.replace("set", "own")))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a/0": 1, "b/0": 2}, "holdout=0.2 leaves no image to test on"),
        ({"a/0": 1, "a/1": 1}, "holdout=0.2 leaves no image to test on"),
        ({"a/0": None, "a/1": None}, "none of its 2 images is usable; the first is a/0.png"),
    ],
)
def test_what_cannot_be_split_is_refused(
    tmp_path: Path, files: dict[str, int | None], words: str
) -> None:
    for name, seed in files.items():
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"bad" if seed is None else encoded(picture(seed), "PNG"))
    with pytest.raises(ValueError, match=words):
        split(tmp_path / "photos", tmp_path / "set.beton")
    assert not list(tmp_path.glob("*.beton"))


def test_two_images_of_a_class_are_enough(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "photos", classes=1, per_class=2)
    summary = split(tmp_path / "photos", tmp_path / "set.beton")
    assert summary.held_out is not None
    assert (summary.num_samples, summary.held_out.num_samples) == (1, 1)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_out_of_range(share: float) -> None:
    with pytest.raises(ValueError, match=r"holdout must be (a finite number, )?in \[0, 1\)"):
        ConvertConfig(holdout=share)


@pytest.fixture
def expected(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of a conversion that nothing interrupts."""
    folder = tmp_path / "expected"
    split(source, folder / "set.beton")
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_stopped_while_hashing_it_resumes(
    source: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, plain, calls = tmp_path / "out" / "set.beton", holdout.hash_image, []

    def counted(loaded: object) -> object:
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return plain(loaded)  # type: ignore[arg-type]

    monkeypatch.setattr(holdout, "hash_image", counted)
    monkeypatch.setattr(holdout, "RECORD_SECONDS", 0.0)
    monkeypatch.setattr("fastmoco.data.workers.BATCH_SAMPLES", 8)
    with pytest.raises(KeyboardInterrupt, match="the same command resumes"):
        split(source, target)
    assert [path.name for path in target.parent.iterdir()] == ["set.beton.journal"]
    calls[:] = [1] * 20
    split(source, target)
    assert len(calls) - 20 == 32 - 16  # 31 images and the bad one; two batches were recorded
    assert contents(target.parent) == expected


def test_stopped_between_both_files_it_resumes(
    source: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, plain, made = tmp_path / "out" / "set.beton", convert_module.make_file, []

    def stopping(job: object) -> object:
        if made:
            raise KeyboardInterrupt
        made.append(plain(job))  # type: ignore[arg-type]
        return made[0]

    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "make_file", stopping)
        with pytest.raises(KeyboardInterrupt, match=r"set-test\.beton: interrupted"):
            split(source, target)
    monkeypatch.setattr(holdout, "hash_image", None)  # nothing is hashed again
    summary = split(source, target)
    assert summary.num_resumed == 26
    assert contents(target.parent) == expected
