"""Compiled code has a folder in every container, and nobody else can write to it."""

import importlib
import os
import pwd
import stat
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import caching
from torch.utils._filelock import FileLock

from fastmoco import caches

VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MPLCONFIGDIR")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A temporary folder of its own, and an environment without the variables."""
    monkeypatch.setattr(caches.tempfile, "tempdir", str(tmp_path))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def prepared(monkeypatch, home, **given):
    """The folders that the variables name."""
    environment = given if home is None else {"HOME": str(home), **given}
    monkeypatch.setattr(caches.os, "environ", environment)
    caches.prepare_caches()
    return {name: Path(os.environ[name]) for name in VARIABLES if name in os.environ}


def test_the_folder_is_private_and_stays(temporary):
    folder = caches.private_folder()
    assert folder == caches.private_folder() != temporary
    assert folder.parent == temporary
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("fault", ["open", "link", "file", "foreign", "nowhere"])
def test_a_folder_that_others_may_write_is_not_used(temporary, monkeypatch, fault):
    folder = caches.private_folder()
    if fault == "open":
        folder.chmod(0o770)
    elif fault == "foreign":
        mine = folder.lstat()
        other = os.stat_result((*mine[:4], mine.st_uid + 1, *mine[5:]))
        monkeypatch.setattr(Path, "lstat", lambda _: other)
    elif fault == "nowhere":
        monkeypatch.setattr(caches.tempfile, "tempdir", str(temporary / "none"))
    else:
        folder.rmdir()
        (temporary / "theirs").mkdir(mode=0o700)
        folder.symlink_to(temporary / "theirs") if fault == "link" else folder.touch(0o600)
    assert caches.private_folder() is None
    assert prepared(monkeypatch, "/dev/null") == {}


def test_a_writable_home_keeps_its_caches(temporary, monkeypatch):
    found = prepared(monkeypatch, temporary)
    assert found == {"TORCHINDUCTOR_CACHE_DIR": caches.private_folder() / "torchinductor"}


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("home", ["/dev/null", None])  # where not even root can make a folder
def test_without_a_home_all_caches_are_in_the_private_folder(monkeypatch, home):
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # a user id without a passwd entry
    found = prepared(monkeypatch, home)
    assert set(found) == set(VARIABLES)
    assert {folder.parent for folder in found.values()} == {caches.private_folder()}
    assert len(set(found.values())) == len(VARIABLES)


def test_the_user_decides(temporary, monkeypatch):
    given = {name: str(temporary / name) for name in VARIABLES}
    found = prepared(monkeypatch, "/dev/null", **given)
    assert {name: str(folder) for name, folder in found.items()} == given


@pytest.fixture
def numba_folders(temporary, monkeypatch):
    """The folders that Numba can use: none at first."""
    usable = [temporary / "none"]

    def ensure(locator):
        if not any(Path(locator.get_cache_path()).is_relative_to(folder) for folder in usable):
            raise PermissionError

    for kind in caching.CacheImpl._locator_classes:
        monkeypatch.setattr(kind, "ensure_cache_path", ensure)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    return usable


def twice(value: int) -> int:
    return 2 * value


def test_a_folder_that_numba_finds_is_kept(numba_folders):
    numba_folders.append(Path(__file__).parent)
    loop = caches.cached_njit()(twice)
    assert loop._cache.cache_path == str(Path(__file__).parent / "__pycache__")
    assert numba.config.CACHE_DIR == ""


def test_without_one_the_private_folder_keeps_machine_code(numba_folders):
    numba_folders.append(caches.private_folder())
    loop = caches.cached_njit()(twice)
    kept = Path(loop._cache.cache_path)
    assert kept.parent == caches.private_folder()
    kept.mkdir()
    assert loop(4) == 8
    assert len(list(kept.glob("*.nbc"))) == 1


@pytest.mark.usefixtures("numba_folders")
def test_without_any_each_process_compiles():
    loop = caches.cached_njit(fastmath=True)(twice)
    assert loop._cache.cache_path is None
    assert loop.targetoptions["nogil"]
    assert loop.targetoptions["fastmath"]
    assert loop(4) == 8


@pytest.mark.skipif(sys.platform != "linux", reason="libraries are ELF files on Linux alone")
def test_machine_code_is_not_kept_for_other_code_of_a_called_function(tmp_path, monkeypatch):
    """Numba looks at the file of a function only, whose machine code contains what it calls."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    head = "from fastmoco.caches import cached_njit\n"
    loop = "@cached_njit()\ndef {}(value):\n    return {}\n"
    inner = "from inner_of_test import inner\n" + loop.format("middle", "inner(value)")
    (tmp_path / "outer_of_test.py").write_text(head + inner + loop.format("outer", "middle(value)"))
    names = []
    for result in ("value + 1", "value + 2", "value + 1"):
        (tmp_path / "inner_of_test.py").write_text(head + loop.format("inner", result))
        for module in ("inner_of_test", "outer_of_test"):
            monkeypatch.delitem(sys.modules, module, raising=False)
            importlib.invalidate_caches()
            found = importlib.import_module(module)
        names.append(found.outer.py_func.__qualname__)
    assert names[0] == names[2] != names[1]


def test_half_a_library_is_removed_from_torchs_cache(tmp_path):
    """As a killed process leaves it; what another one links now, and all else, stays."""
    content = Path(np.random._common.__file__).read_bytes()
    kept = {name(0): content, "bb/source.cpp": b"", f"{name(1)}.load_ok": b""}
    kept |= {"aa/of_another_program.so": b"GROUP ( libc.so.6 )", "caa/libcaa.so": b"/* script */"}
    lost = {name(2, ".so"): b"", name(3): content[:4000], name(4): content[:-1]}
    lost[name(5)] = bytes(5000)
    linking = name(6)
    for path, data in {**kept, **lost, linking: content[:4000]}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
        os.utime(tmp_path / path, (0, 0))  # a linker may need long after it made the file
    with FileLock(tmp_path / "locks" / f"{Path(linking).name.partition('.')[0]}.lock"):
        caches.remove_half_written(tmp_path)
    left = {
        str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*") if path.suffix != ".lock"
    }
    assert left == {*kept, linking}
    caches.remove_half_written(tmp_path)
    assert not (tmp_path / linking).exists()
    caches.remove_half_written(tmp_path / "none yet")


def name(number, end=".main.so"):
    """A name that torch gives to a library."""
    key = f"c{'abcdefgh'[number]}a{'x' * 49}"
    return f"{key[1:3]}/{key}{end}"
