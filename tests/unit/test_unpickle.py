"""Pickles give their tensors, whatever else they hold, and no code of theirs ever runs."""

import argparse
import ast
import builtins
import collections
import enum
import io
import os
import pathlib
import pickle
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from fastmoco import cli
from fastmoco.runs.weights_file import _advice
from fastmoco.torch_files import pickle_names, unpickle
from tests.limits import HANG_SECONDS

ROOT = pathlib.Path(__file__).parents[2]
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.ones(2, dtype=torch.int64)}


class Settings(dict):
    """A mapping of another project."""


@dataclass(slots=True)
class Slots:
    rate: float = 0.1


class Kind(enum.Enum):
    one = 1


class Calls:
    """Unpickled without care, it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture(autouse=True)
def forget_stand_ins():
    yield
    torch.serialization.clear_safe_globals()


def read(path):
    """As the child process reads, but in this one, where importing PyTorch costs nothing."""
    return dict(unpickle.find_state(unpickle.load(str(path)))[1])


def same(found, expected=TENSORS):
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        np.float64(71.2),
        np.random.default_rng(0).bit_generator.state,
        argparse.Namespace(lr=0.03, kind=Kind.one),
        {"dir": pathlib.Path("/data"), pathlib.PurePosixPath("a"): 1},
        Settings(a=1),
        collections.defaultdict(list, b=[2]),
        Slots(),
        np.array(["object"], object),
        Calls(torch.hub.list, "never/called"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_lies_beside_the_tensors_is_no_obstacle(tmp_path, beside, zipped):
    path = tmp_path / "x.pth"
    record = {"state_dict": TENSORS, "beside": beside}
    torch.save(record, path, _use_new_zipfile_serialization=zipped)
    assert same(read(path))


def test_a_whole_module_gives_its_state_dict(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU())
    model.register_buffer("fleeting", torch.ones(1), persistent=False)
    path = tmp_path / "x.pth"
    for module in (model, nn.DataParallel(model)):
        torch.save({"epoch": 1, "model": module, "class": nn.Conv2d}, path)
        assert same(read(path), module.state_dict())


def test_arrays_become_tensors(tmp_path):
    path = tmp_path / "x.pth"
    arrays = {
        "f": np.arange(6, dtype=">f4").reshape(2, 3),
        "column_order": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        "half": np.ones(3, np.float16),
        "scalar": np.array(3.5),
        "text": np.array(["text"]),
    }
    torch.save(arrays, path)
    text = arrays.pop("text")
    assert text.dtype.kind == "U"  # no numbers: left out
    assert same(read(path), {n: torch.tensor(a.astype(a.dtype.type)) for n, a in arrays.items()})


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (eval, ("print('x')",), "builtins.eval"),
        (os.system, ("true",), "posix.system"),
        (open, ("trace", "w"), "io.open"),
        (subprocess.run, (["true"],), "subprocess.run"),
        (builtins.getattr, ("a", "upper"), "builtins.getattr"),
        (sys.exit, (0,), "sys.exit"),
    ],
)
def test_code_is_named_and_its_loading_never_advised(
    tmp_path, monkeypatch, function, arguments, name, protocol
):
    monkeypatch.chdir(tmp_path)
    record = {"state_dict": TENSORS, "x": Calls(function, *arguments)}
    for raw in (False, True):
        if raw:
            pathlib.Path("x.pth").write_bytes(pickle.dumps(record["x"], protocol))
        else:
            torch.save(record, "x.pth", pickle_protocol=protocol)
        with pytest.raises(unpickle.Refused, match=f"would call {name}") as error:
            unpickle.load("x.pth")
        advice = _advice(pathlib.Path("x.pth"), str(error.value))
        assert "safetensors" in advice
        assert "load(" not in advice
        assert not pathlib.Path("trace").exists()


def test_hidden_names_of_python_2_are_found():
    pickled = b"c__builtin__\neval\n(S'1'\ntR."
    assert list(pickle_names.called_names(io.BytesIO(pickled))) == ["builtins.eval"]
    again = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x9400h\x00h\x01\x93."
    assert list(pickle_names.called_names(io.BytesIO(again))) == ["posix.system"]
    posix, date = b"\x8c\x05posix\x8c\x06system", b"\x8c\x08datetime\x8c\x04date"
    masked = io.BytesIO(b"\x80\x04" + posix + date + b"00\x93.")
    assert list(pickle_names.called_names(masked)) == ["?.?"]


def test_a_name_that_the_scan_misses_is_still_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(1), "x": Calls(open, str(tmp_path / "trace"), "w")}, path)
    monkeypatch.setattr(pickle_names, "called_names", lambda _: iter(()))
    with pytest.raises(pickle.UnpicklingError) as error:
        unpickle.load(str(path))
    assert "would call io.open" in unpickle._reason(error.value)
    assert not (tmp_path / "trace").exists()


def test_a_wrong_checksum_in_the_archive_is_noticed(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(TENSORS, path)
    content = bytearray(path.read_bytes())
    content[content.index(TENSORS["a"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(unpickle.Refused, match=r"record \S+data/0 has a wrong checksum"):
        unpickle.load(str(path))


@pytest.mark.filterwarnings("ignore")  # of torch, about its own formats
def test_the_advice_works_for_the_very_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": TENSORS}, "it's four.pth", pickle_protocol=4)
    torch.save(nn.Linear(2, 2), "module.pth", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "script.pt")
    for name, said in (
        ("it's four.pth", "above"),
        ("module.pth", "module"),
        ("script.pt", "Torch"),
    ):
        with pytest.raises((unpickle.Refused, RuntimeError)) as error:
            unpickle.load(name)
        reason = unpickle._reason(error.value) if name == "script.pt" else str(error.value)
        assert said in reason
        advice = _advice(pathlib.Path(name), reason)
        exec(shlex.split(advice.partition("python -c ")[2])[0])
        assert read("weights.pth")


@pytest.mark.filterwarnings("ignore")
def test_a_foreign_class_is_no_reason_to_advise_its_loading(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(1), "x": Calls(torch.hub.list, "a/b")}, path, pickle_protocol=4)
    with pytest.raises(pickle.UnpicklingError) as error:
        unpickle.load(str(path))
    assert "load(" not in _advice(path, unpickle._reason(error.value))


def test_a_file_without_tensors_ends(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    assert cli.main(["import", str(path), f"out={tmp_path / 'out'}"]) == 2
    assert "its 0 tensors" in capsys.readouterr().err


def test_hostile_files_are_refused_by_the_child_and_none_is_recommended():
    """All of the zoo, each in a process with the limits of the real one, forked from one."""
    command = [sys.executable, "-m", "tests.faults.zoo_pickles"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS, check=True
    )
    rows = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert len(rows) == len({row[0] for row in rows}) >= 40
    for name, word, code, said, files, seconds in rows:
        reason = said.splitlines()[-1] if said else ""
        assert re.search(word, reason), (name, reason)
        assert (code, files) == ((3, []) if word else (0, ["weights.safetensors"])), name
        assert reason.isprintable()
        assert seconds < HANG_SECONDS
        if name != "frame of an exabyte":  # it holds None
            assert "weights_only=False" not in _advice(pathlib.Path("x"), reason), name
