"""A folder that is whole or not there; disks that cannot sync folders or lock files."""

import errno
import fcntl
import os
import stat

import pytest

from fastmoco.data.beton_writer import _open_alone
from fastmoco.data.journal import Journal
from fastmoco.errors import UsageError
from fastmoco.files import atomic_folder, atomic_write_text, locked


def test_a_folder_appears_when_all_of_it_is_written(tmp_path):
    target = tmp_path / "a" / "folder"
    leftover = target.with_name(".folder.partial")
    leftover.mkdir(parents=True)
    (leftover / "old").write_text("of a kill")
    with atomic_folder(target) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("new")
        assert not target.exists()
    assert [str(path.relative_to(target)) for path in target.rglob("*")] == ["inner", "inner/file"]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("there", [True, False])
def test_an_error_leaves_nothing(tmp_path, there):
    target = tmp_path / "folder"
    if there:
        target.mkdir()

    def write():
        with atomic_folder(target) as temporary:
            (temporary / "file").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write()
    assert list(tmp_path.rglob("*")) == ([target] if there else [])


def test_a_folder_that_holds_something_is_not_replaced(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "thesis.txt").write_text("precious")
    with pytest.raises(OSError, match="not empty"), atomic_folder(target) as temporary:
        (temporary / "file").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "thesis.txt"]


def fail_to_sync(monkeypatch, number, is_failing):
    """Make `os.fsync` fail where the file's mode is one of these."""
    real = os.fsync

    def fsync(descriptor):
        if is_failing(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def write_both(folder):
    atomic_write_text(folder / "file", "text")
    with atomic_folder(folder / "made") as made:
        (made / "inner").mkdir()
        (made / "inner" / "file").write_text("text")


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF"])
def test_a_disk_that_syncs_no_folders_is_used(tmp_path, monkeypatch, name):
    fail_to_sync(monkeypatch, getattr(errno, name), stat.S_ISDIR)
    write_both(tmp_path)
    assert (tmp_path / "file").read_text() == (tmp_path / "made/inner/file").read_text() == "text"


@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EDQUOT"])
def test_a_failing_or_full_disk_is_an_error(tmp_path, monkeypatch, name):
    fail_to_sync(monkeypatch, getattr(errno, name), stat.S_ISDIR)
    with pytest.raises(OSError, match="file") as caught:
        atomic_write_text(tmp_path / "file", "text")
    assert caught.value.errno == getattr(errno, name)


@pytest.mark.parametrize("name", ["EINVAL", "EIO", "ENOSPC"])
def test_a_file_that_is_not_synced_is_an_error(tmp_path, monkeypatch, name):
    fail_to_sync(monkeypatch, getattr(errno, name), stat.S_ISREG)
    with pytest.raises(OSError, match="file"):
        atomic_write_text(tmp_path / "file", "text")
    assert list(tmp_path.iterdir()) == []


def refuse_locks(monkeypatch, name):
    def flock(descriptor, operation):
        del descriptor, operation
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("in_use", [None, "busy"])
@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL", "EBADF"])
def test_a_disk_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, name, in_use):
    refuse_locks(monkeypatch, name)
    with (
        pytest.warns(UserWarning, match=r"lock: cannot be locked, .* no other process"),
        locked(tmp_path / "lock", in_use=in_use),
    ):
        done = True
    assert done


@pytest.mark.parametrize("name", ["EIO", "ENOSPC"])
def test_a_disk_that_fails_to_lock_is_an_error(tmp_path, monkeypatch, name):
    refuse_locks(monkeypatch, name)
    with pytest.raises(OSError, match=os.strerror(getattr(errno, name))), locked(tmp_path / "lock"):
        pytest.fail("the block ran")


def test_a_lock_that_is_held_is_an_error(tmp_path):
    path = tmp_path / "lock"
    with locked(path), pytest.raises(UsageError, match="busy"), locked(path, in_use="busy"):
        pytest.fail("both have it")


@pytest.fixture
def planted(tmp_path):
    """A file that a link in another folder leads to, and a function that makes such links."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "shared"
    folder.mkdir()

    def plant(name):
        (folder / name).symlink_to(victim)
        return folder

    yield plant
    assert victim.read_text() == "precious"


def test_a_planted_link_is_replaced_by_the_temporary_file(planted):
    folder = planted(".file.partial")
    atomic_write_text(folder / "file", "text")
    assert (folder / "file").read_text() == "text"
    assert not (folder / "file").is_symlink()
    assert [path.name for path in folder.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "open_it",
    [
        lambda path: locked(path).__enter__(),
        lambda path: Journal(path, "recipe"),
        lambda path: _open_alone(path),
    ],
)
def test_a_planted_link_is_not_opened(planted, open_it):
    with pytest.raises(OSError, match="symbolic links"):
        open_it(planted("name") / "name")
