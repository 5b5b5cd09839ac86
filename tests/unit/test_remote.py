"""Dataset files elsewhere: what is fetched, kept and said, whatever server and disk do."""

import errno
import fcntl
import os
import pickle
import shutil
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmoco.addresses import Address, as_path
from fastmoco.cli import main
from fastmoco.configuration import config_from_dict, config_to_dict, load_config
from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.data.convert import ConvertConfig, convert
from fastmoco.data.dataset import Dataset, open_dataset, open_files, survey
from fastmoco.data.remote import cache as cache_module
from fastmoco.data.remote import fetch, storage
from fastmoco.data.remote.cache import FOLDER_VARIABLE, LIMIT_VARIABLE, CachedSet, DataCache
from fastmoco.data.remote.storage import DeniedError, RemoteError, UnreachableError
from fastmoco.errors import UsageError
from fastmoco.train.settings import TrainConfig
from tests.disk_calls import disk_calls
from tests.object_server import SECRET, Served, served_files, serving
from tests.optional import require
from tests.pictures import write_class_folders

require("aiohttp")

MB = 1_000_000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one.beton, other.beton and three shards, each of about 4 MB."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name, per_class in (("one", 4), ("other", 5)):
        write_class_folders(folder / name, classes=2, per_class=per_class)
        options = ConvertConfig(page_bytes=1 << 21, workers=1)
        convert(str(folder / name), folder / f"{name}.beton", options)
    options = ConvertConfig(page_bytes=1 << 21, workers=1, shards=3)
    convert(str(folder / "one"), folder / "train.beton", options)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; failures are noticed and tried again at once, by small parts."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(fetch, "PART_BYTES", 1 << 18)
    monkeypatch.setattr(fetch, "PART_BYTES_RANGE", (1 << 16, 1 << 18))
    monkeypatch.setattr(storage, "TIMEOUT_SECONDS", 5.0)
    return tmp_path / "cache"


@pytest.fixture
def one(files: Path, cache: Path) -> Iterator[Served]:  # noqa: ARG001
    with serving(served_files(files / "one.beton")) as served:
        yield served


@pytest.fixture
def shards(files: Path, cache: Path) -> Iterator[Served]:  # noqa: ARG001
    with serving(served_files(*sorted(files.glob("train-*.beton")))) as served:
        yield served


def assert_same(found: Dataset, path: Path) -> None:
    with open_dataset(path) as wanted:
        assert found.fingerprint == wanted.fingerprint
        assert found.labels.tolist() == wanted.labels.tolist()
        for number in range(len(wanted)):
            assert np.array_equal(found.decode(number), wanted.decode(number))


def kept(cache: Path, pattern: str = "*.beton") -> list[Path]:
    return sorted(cache.glob(f"*/{pattern}"))


def test_a_file_is_fetched_once_and_is_the_file(one: Served, files: Path, cache: Path) -> None:
    with open_dataset(f"{one.address}one.beton") as found:
        assert_same(found, files / "one.beton")
        assert str(found.path) == f"{one.address}one.beton"
    assert [path.read_bytes() for path in kept(cache)] == [one.objects["one.beton"]]
    asked = len(one.gets())
    with open_files(Path(f"{one.address}one.beton")) as found:  # one of its slashes is lost
        assert_same(found, files / "one.beton")
    assert survey(f"{one.address}one.beton").images == 8
    assert len(one.gets()) == asked
    assert not kept(cache, "*.partial")


def test_commands_take_an_address(one: Served, capsys: pytest.CaptureFixture[str]) -> None:
    for command, answer in (("info", "8"), ("verify", "of 8 images")):
        assert main([command, f"{one.address}one.beton"]) == 0
        said = capsys.readouterr().out
        assert f"{one.address}one.beton" in said
        assert answer in said


def test_shards_by_a_listing_and_without(shards: Served, files: Path) -> None:
    with pytest.raises(UsageError, match=r"lists no such files.*train-\*-of-00008\.beton"):
        open_dataset(f"{shards.address}train-*.beton")
    with open_dataset(f"{shards.address}train-*-of-00003.beton") as found:
        assert_same(found, files / "train-*.beton")
    shards.has_listing = True
    with open_dataset(f"{shards.address}train-*.beton") as found:
        assert_same(found, files / "train-*.beton")
        assert str(found.path) == f"{shards.address}train-*.beton"
    assert len({where for where in shards.gets() if where.startswith("bytes=0-")}) == 1
    size = len(shards.objects["train-00000-of-00003.beton"])
    assert sum(where == f"bytes={size - 1}-{size - 1}" for where in shards.gets()) == 1
    del shards.objects["train-00001-of-00003.beton"]
    with pytest.raises(ValueError, match="1 of 3 shards are missing, such as train-00001"):
        open_dataset(f"{shards.address}train-*.beton")
    with pytest.raises(FileNotFoundError, match=r"train-00001-of-00003\.beton: no such file there"):
        open_dataset(f"{shards.address}train-*-of-00003.beton")


@pytest.mark.parametrize("lacks", ["has_ranges", "has_etags", "has_lengths"])
def test_plain_servers(one: Served, files: Path, lacks: str) -> None:
    setattr(one, lacks, False)
    one.drops = 2
    with open_dataset(f"{one.address}one.beton") as found:
        assert_same(found, files / "one.beton")


def test_a_dropped_connection_is_taken_up_where_it_broke(one: Served, files: Path) -> None:
    one.drops = 9
    with open_dataset(f"{one.address}one.beton") as found:
        assert_same(found, files / "one.beton")
    starts = [int(where[6:].split("-")[0]) for where in one.gets()]
    begun = [at for at in starts[1:] if at < 1 << 18]  # after the question whether parts are sent
    assert len(begun) < 20  # far fewer than if each failure began anew


@pytest.mark.parametrize("second", [b"c", ConnectionError("lost")])
def test_parts_behind_a_missing_one_are_left_out(
    monkeypatch: pytest.MonkeyPatch, second: Any
) -> None:
    server = storage.Storage("https")
    monkeypatch.setattr(server._files, "cat_ranges", lambda *_: [b"ab", second, b"ef"])
    spans = [(0, 2), (2, 4), (4, 6)]
    assert server.ranges(Address(as_path("https://host/one.beton")), spans) == [b"ab"]


def test_a_silent_server_is_asked_again(
    one: Served, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "TIMEOUT_SECONDS", 0.3)
    one.stalls = 3
    with open_dataset(f"{one.address}one.beton") as found:
        assert_same(found, files / "one.beton")


def test_what_was_fetched_is_kept_when_the_connection_is_lost(
    one: Served, files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = storage.Storage.ranges, []

    def lost(self: Any, *args: Any) -> list[bytes]:
        calls.append(args)
        if len(calls) > 2:
            one.status = 503
        return real(self, *args)

    monkeypatch.setattr(storage.Storage, "ranges", lost)
    with pytest.raises(UnreachableError, match=r"one\.beton: cannot be read \(HTTP 503\); .* same"):
        open_dataset(f"{one.address}one.beton")
    (partial,) = kept(cache, "*.partial")
    here = partial.stat().st_size
    assert 0 < here < len(one.objects["one.beton"])
    assert one.objects["one.beton"].startswith(partial.read_bytes())
    monkeypatch.setattr(storage.Storage, "ranges", real)
    one.status, before = 200, len(one.gets())
    with open_dataset(f"{one.address}one.beton") as found:
        assert_same(found, files / "one.beton")
    starts = [int(where[6:].split("-")[0]) for where in one.gets()[before:]]
    assert min(starts) == here


def test_an_answer_cut_short_ends_with_a_line(one: Served, cache: Path) -> None:
    one.shortened = 1
    for has_ranges, reason in (
        (True, r"got [\d,]+ bytes for"),
        (False, r"it ended after [\d,]+ of"),
    ):
        one.has_ranges = has_ranges
        with pytest.raises(UnreachableError, match=rf"cannot be read \({reason}"):
            open_dataset(f"{one.address}one.beton")
    assert not kept(cache)


def test_a_change_between_runs_keeps_both(one: Served, files: Path, cache: Path) -> None:
    open_dataset(f"{one.address}one.beton").close()
    one.objects["one.beton"] = (files / "other.beton").read_bytes()
    with pytest.warns(UserWarning, match="changed since it was fetched on .* stays in") as said:
        found = open_dataset(f"{one.address}one.beton")
    with found:
        assert_same(found, files / "other.beton")
    assert len(kept(cache)) == 2
    former = Path(str(said[0].message).split("stays in ")[1].split(" while")[0])
    with open_dataset(former / "one.beton") as found:
        assert_same(found, files / "one.beton")


@pytest.mark.parametrize("has_etags", [True, False])
def test_a_change_of_equal_length_is_noticed(
    one: Served, files: Path, cache: Path, has_etags: bool
) -> None:
    one.has_etags = has_etags
    open_dataset(f"{one.address}one.beton").close()
    one.objects["one.beton"] = bytes(len(one.objects["one.beton"]))
    with (
        pytest.warns(UserWarning, match="changed since"),
        pytest.raises(BetonError, match="is not"),
    ):
        open_dataset(f"{one.address}one.beton")
    (path,) = kept(cache)
    assert path.read_bytes() == (files / "one.beton").read_bytes()


def test_a_change_while_it_is_read_ends_with_a_line(one: Served, files: Path, cache: Path) -> None:
    one.replaces["one.beton"] = (files / "other.beton").read_bytes()
    with pytest.raises(RemoteError, match="changed while it was read; give the same command"):
        open_dataset(f"{one.address}one.beton")
    assert not kept(cache)
    with open_dataset(f"{one.address}one.beton") as found:
        assert_same(found, files / "other.beton")


def test_without_an_answer_what_is_here_is_used(shards: Served, files: Path) -> None:
    shards.status = 500
    with pytest.raises(UnreachableError, match=r"cannot be read \(HTTP 500\)"):
        open_dataset(f"{shards.address}train-*-of-00003.beton")
    shards.status, shards.has_listing = 200, True
    open_dataset(f"{shards.address}train-*.beton").close()
    open_dataset(f"{shards.address}train-00001-of-00003.beton").close()  # a part of them
    shards.status = 500
    for name in ("train-*.beton", "train-*-of-00003.beton"):
        with pytest.warns(UserWarning, match="no answer, so the files fetched on .* are used"):
            found = open_dataset(f"{shards.address}{name}")
        with found:
            assert_same(found, files / "train-*.beton")


def test_a_server_that_is_not_there_is_one_line(cache: Path) -> None:  # noqa: ARG001
    with serving({}) as served:
        pass
    with pytest.raises(
        UnreachableError, match=r"one\.beton: cannot be read \(connection refused\)"
    ):
        open_dataset(f"{served.address}one.beton")


def test_passwords_come_from_netrc(
    one: Served, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.has_password = True
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(DeniedError, match=r"access denied; .* ~/\.netrc"):
        open_dataset(f"{one.address}one.beton")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login anna password {SECRET}\n")
    with open_dataset(f"{one.address}one.beton") as found:
        assert_same(found, files / "one.beton")


def test_a_listing_that_is_denied_is_no_empty_one(
    shards: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards.has_password = shards.has_listing = True
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(DeniedError, match=r"access denied; .*netrc; .*train-\*-of-00008\.beton"):
        open_dataset(f"{shards.address}train-*.beton")


@pytest.mark.parametrize(
    "address",
    [
        f"https://anna:{SECRET}@host/one.beton",
        f"s3://{SECRET}@bucket/one.beton",
        f"https://host/one.beton?signature={SECRET}",
        f"https://host/one.beton#{SECRET}",
    ],
)
def test_secrets_in_an_address_are_refused_and_never_printed(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [
        ["info", address],
        ["train", f"data.train={address}"],
        ["train", f"data.trian={address}"],
        ["train", f"data.train='{address}"],
        ["train", address],
        ["knn", "no-run", f"data.train={address}"],
    ]
    for words in commands:
        assert main(words) == 2, words
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err, words
    with pytest.raises(UsageError, match=r"one\.beton: was given with a user, password or"):
        load_config(TrainConfig, [f'data.train="{address}"'])


def test_an_address_is_a_path_with_two_slashes() -> None:
    for text in ("https://host/a/train-*.beton", "s3://bucket/x.beton", "http://host:80/s/x.beton"):
        for given in (text, Path(text), as_path(text)):
            address = as_path(given)
            assert str(address) == f"{address}" == os.fspath(address) == text
            assert str(address.parent / address.name) == str(address.with_name("y")).replace(
                "/y", f"/{address.name}"
            )
            assert pickle.loads(pickle.dumps(address)) == address == as_path(text)
            assert not address.exists()
    assert type(as_path("a/b")) is type(Path("a/b"))


def test_a_configuration_keeps_both_slashes() -> None:
    address = "https://host/a/train-*.beton"
    cfg = load_config(TrainConfig, [f'data.train="{address}"'])
    assert str(cfg.data.train) == f"{cfg.data.train}" == address
    saved = config_to_dict(cfg)
    assert saved["data"]["train"] == address
    again = config_from_dict(TrainConfig, saved)
    assert str(again.data.train) == address
    assert again.data.train == cfg.data.train


@pytest.mark.parametrize(("scheme", "package"), [("https", "aiohttp"), ("s3", "s3fs")])
def test_a_missing_package_is_named(
    scheme: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        storage, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    for words in (["info", f"{scheme}://b/x.beton"], ["train", f"data.train={scheme}://b/x.beton"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said == f"fastmoco: {scheme}:// needs {package}; install it: pip install {package}\n"


@pytest.mark.parametrize("name", ["train.tar", "photos", "*/train.beton"])
def test_only_dataset_files_are_read_from_elsewhere(name: str) -> None:
    with pytest.raises(UsageError, match=r"names no dataset file; from elsewhere only \.beton"):
        open_dataset(f"https://host/{name}")


@pytest.mark.parametrize("sample", [0, 7])
def test_damage_is_found_before_a_file_appears(
    one: Served, files: Path, cache: Path, sample: int
) -> None:
    sound = one.objects["one.beton"]
    with BetonFile.open(files / "one.beton") as beton:
        assert len(beton) == 8
        place = int(beton.pointers[sample]) + 200
    one.objects["one.beton"] = sound[:place] + b"\0\0\0\0" + sound[place + 4 :]
    with pytest.raises(BetonError, match=rf"sample {sample} .*checksum.*; it is damaged") as caught:
        open_dataset(f"{one.address}one.beton")
    assert str(caught.value).startswith(f"{one.address}one.beton: ")
    assert not kept(cache)
    assert not kept(cache, "*.partial")
    one.objects["one.beton"] = b"<html>Please log in</html>" * 200
    with pytest.raises(BetonError, match=r"is not a \.beton file"):
        open_dataset(f"{one.address}one.beton")


def test_zeros_that_a_power_cut_left_are_fetched_again(
    one: Served, files: Path, cache: Path
) -> None:
    open_dataset(f"{one.address}one.beton").close()
    (path,) = kept(cache)
    path.with_name(f"{path.name}.partial").write_bytes(bytes(3 << 20))
    path.unlink()
    with open_dataset(f"{one.address}one.beton") as found:
        assert_same(found, files / "one.beton")


def test_a_file_that_the_disk_damaged_is_fetched_again(
    one: Served, files: Path, cache: Path
) -> None:
    open_dataset(f"{one.address}one.beton").close()
    (path,) = kept(cache)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(RemoteError, match="is damaged now, so it is removed from the cache; give"):
        open_dataset(f"{one.address}one.beton")
    with open_dataset(f"{one.address}one.beton") as found:
        assert_same(found, files / "one.beton")


def test_processes_at_once_fetch_once(one: Served, files: Path) -> None:
    address = f"{one.address}one.beton"
    with ThreadPoolExecutor(4) as pool:  # file locks know no threads, only open files
        for found in pool.map(lambda _: open_dataset(address), range(4)):
            with found:
                assert_same(found, files / "one.beton")
    spans = [where for where in one.gets() if where.startswith("bytes=0-")]
    assert len(spans) == 1


def test_the_limit_removes_what_was_unused_longest(
    shards: Served, files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards.objects |= served_files(files / "one.beton", files / "other.beton")
    sizes = {name: len(found) for name, found in shards.objects.items()}
    one, other = (f"{shards.address}{name}.beton" for name in ("one", "other"))
    room = sizes["one.beton"] + sizes["other.beton"]
    monkeypatch.setenv(LIMIT_VARIABLE, str((room + MB) / 1e9))
    with pytest.raises(RemoteError, match=r"are more than the limit .* set FASTMOCO_DATA_CACHE_GB"):
        open_dataset(f"{shards.address}train-*-of-00003.beton")
    for address in (one, other, one):  # one is used last
        open_dataset(address).close()
        for record in cache.glob("*/set.json"):
            os.utime(record, ns=(record.stat().st_mtime_ns - 10**9,) * 2)
    monkeypatch.setenv(LIMIT_VARIABLE, str(sizes["train-00000-of-00003.beton"] * 2.5 / 1e9))
    open_dataset(f"{shards.address}train-00000-of-00003.beton").close()
    assert {path.name for path in kept(cache)} == {"one.beton", "train-00000-of-00003.beton"}


def test_what_is_removed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets that nobody uses, own shards, and for who waits those of sets that are open."""
    monkeypatch.setattr(cache_module, "NUM_STREAMS", 2)
    few, many = (CachedSet(tmp_path / name, (None,) * n) for name, n in (("few", 1), ("many", 2)))
    assert (few.is_streamed, many.is_streamed) == (False, True)
    for one in (few, many):
        one.folder.mkdir()
        (one.folder / f"of-{one.folder.name}.beton").touch()
    gone: list[str] = []
    monkeypatch.setattr(DataCache, "_lacking", lambda *_: 1)  # it is never enough
    monkeypatch.setattr(DataCache, "_others", lambda *_: [few, many])
    monkeypatch.setattr(cache_module, "_remove_unused", lambda one: gone.append(one.folder.name))
    monkeypatch.setattr(cache_module, "remove_unheld", lambda path: gone.append(path.name))
    for of_all, last in ((False, []), (True, ["of-many.beton"])):
        gone.clear()
        cache = DataCache(tmp_path, 1)
        assert cache.make_room_in(few, 1, lambda: gone.append("own"), of_all=of_all) == 1
        assert gone == ["few", "many", "own", *last]


def test_room_is_that_of_the_limit_and_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 * MB))
    lacking = [DataCache(tmp_path, limit * MB)._lacking(7 * MB) for limit in (4, 6, 100)]
    assert lacking == [3 * MB, 2 * MB, 2 * MB]


def test_an_open_set_is_never_removed(
    one: Served, files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.objects |= served_files(files / "other.beton")
    monkeypatch.setenv(LIMIT_VARIABLE, str(6e-3))
    with open_dataset(f"{one.address}one.beton") as found:
        with pytest.raises(RemoteError, match=r"the cache is full, by sets that other processes"):
            open_dataset(f"{one.address}other.beton")
        assert_same(found, files / "one.beton")
    open_dataset(f"{one.address}other.beton").close()
    assert [path.name for path in kept(cache)] == ["other.beton"]


def test_an_open_set_with_a_damaged_record_is_never_removed(
    one: Served, files: Path, cache: Path
) -> None:
    one.objects |= served_files(files / "other.beton")
    with open_dataset(f"{one.address}one.beton"):
        (record,) = kept(cache, "set.json")
        record.write_bytes(bytes(10))
        with open_dataset(f"{one.address}other.beton"):
            assert [path.name for path in kept(cache)].count("one.beton") == 1
    one.objects["third.beton"] = one.objects["other.beton"]
    open_dataset(f"{one.address}third.beton").close()
    assert {path.name for path in kept(cache)} == {"other.beton", "third.beton"}  # it is unused


def test_a_damaged_record_is_written_again(one: Served, files: Path, cache: Path) -> None:
    open_dataset(f"{one.address}one.beton").close()
    (record,) = kept(cache, "set.json")
    record.write_bytes(bytes(10))
    open_dataset(f"{one.address}one.beton").close()
    one.status = 500
    with pytest.warns(UserWarning, match="no answer, so the files fetched on .* are used"):
        found = open_dataset(f"{one.address}one.beton")
    with found:
        assert_same(found, files / "one.beton")


def test_a_folder_of_somebody_else_is_left_alone(one: Served, cache: Path) -> None:
    theirs = cache / "paintings"
    theirs.mkdir(parents=True)
    for name in ("set.json", "picture.png"):
        (theirs / name).write_text("{}")
    open_dataset(f"{one.address}one.beton").close()
    assert {path.name for path in theirs.iterdir()} == {"set.json", "picture.png"}


def test_a_set_is_counted_until_its_last_file_is_removed(
    one: Served, files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in between would leave files of which no later command knew."""
    one.objects |= served_files(files / "other.beton")
    open_dataset(f"{one.address}one.beton").close()
    (record,) = kept(cache, "set.json")
    for number in range(20):
        (record.parent / f"{number}.beton.partial").touch()
    text = record.read_text()
    record.unlink()
    record.write_text(text)  # the newest file: some file systems list it first
    removed, real = [], os.unlink

    def noting(path: Any, **options: Any) -> None:
        removed.append(os.path.basename(path))
        real(path, **options)

    monkeypatch.setenv(LIMIT_VARIABLE, str(6e-3))
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", noting)
        open_dataset(f"{one.address}other.beton").close()
    gone = [name for name in removed if name in {"set.json", "one.beton"}]
    assert gone == ["one.beton", "set.json"]
    assert removed.index("set.json") > removed.index("19.beton.partial")
    assert not record.parent.exists()


def test_an_open_set_is_never_removed_on_a_network_file_system(
    one: Served, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS gives an exclusive lock on a file only to who may write to it (man 2 flock)."""
    one.objects |= served_files(files / "other.beton")
    monkeypatch.setenv(LIMIT_VARIABLE, str(6e-3))
    real = fcntl.flock

    def flock(descriptor: int, kind: int) -> None:
        may_write = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if kind & fcntl.LOCK_EX and is_file and not may_write:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    with open_dataset(f"{one.address}one.beton") as found:
        with pytest.raises(RemoteError, match=r"the cache is full, by sets that other processes"):
            open_dataset(f"{one.address}other.beton")
        assert_same(found, files / "one.beton")


def test_a_file_that_another_process_completes_meanwhile(
    one: Served, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beginning was there when room was made, and is renamed before its length is read."""
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: self.suffix == ".partial" or real(self))
    with open_dataset(f"{one.address}one.beton") as found:
        assert_same(found, files / "one.beton")


@pytest.mark.parametrize("answers", [True, False])
def test_a_set_that_is_removed_while_the_server_is_asked(
    one: Served, files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """By another process that needs room; asking may take half a minute."""
    open_dataset(f"{one.address}one.beton").close()
    one.objects["one.beton"] = (files / "other.beton").read_bytes()
    real = storage.Storage.look

    def look(self: Any, address: Any) -> Any:
        for record in kept(cache, "set.json"):
            shutil.rmtree(record.parent)
        if not answers:
            raise UnreachableError.of(address, "no answer")
        monkeypatch.setattr(storage.Storage, "look", real)
        return real(self, address)

    monkeypatch.setattr(storage.Storage, "look", look)
    if answers:
        with open_dataset(f"{one.address}one.beton") as found:
            assert_same(found, files / "other.beton")
        return
    with pytest.raises(UnreachableError, match=r"one\.beton: cannot be read \(no answer\)"):
        open_dataset(f"{one.address}one.beton")


@pytest.mark.parametrize("given", ["0", "-1", "inf", "nan", "much"])
def test_a_wrong_limit_is_refused(one: Served, given: str, monkeypatch: Any) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, given)
    with pytest.raises(UsageError, match=f"must be a number of GB above 0, got {given}"):
        open_dataset(f"{one.address}one.beton")


def test_a_full_disk_is_said_before_and_while_it_is_written(
    one: Served, files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(files)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=MB))
        with pytest.raises(RemoteError, match=r"the disk has 1\.0 MB free, and .* needs 4\.\d MB;"):
            open_dataset(f"{one.address}one.beton")
    real, left = os.write, [MB]

    def filling(descriptor: int, part: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, part[: left[0]])
        left[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(fetch.os, "write", filling)
        with pytest.raises(RemoteError, match="no space left on device; free some space, or set"):
            open_dataset(f"{one.address}one.beton")
    (partial,) = kept(cache, "*.partial")
    assert partial.stat().st_size == MB
    with open_dataset(f"{one.address}one.beton") as found:
        assert_same(found, files / "one.beton")


def test_writes_that_take_a_part_go_on(
    one: Served, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(fetch.os, "write", lambda file, part: real(file, part[:100_000]))
    with open_dataset(f"{one.address}one.beton") as found:
        assert_same(found, files / "one.beton")


def test_a_file_is_on_the_disk_before_it_takes_its_name(
    one: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_dataset(f"{one.address}one.beton"):
        (path,) = kept(cache)
    path.unlink()
    with disk_calls(monkeypatch) as calls:
        open_dataset(f"{one.address}one.beton").close()
    assert calls == ["sync file", "replace", "sync folder"]


def test_ctrl_c_keeps_what_was_fetched(
    one: Served, files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()  # the server's, of tests before, end by their own timeout
    with monkeypatch.context() as patch:
        real, calls = os.write, []

        def interrupted(descriptor: int, part: Any) -> int:
            calls.append(part)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return real(descriptor, part)

        patch.setattr(fetch.os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_dataset(f"{one.address}one.beton")
    assert kept(cache, "*.partial")[0].stat().st_size == 2 << 18
    with open_dataset(f"{one.address}one.beton") as found:
        assert_same(found, files / "one.beton")
    assert threading.active_count() < before + 30
