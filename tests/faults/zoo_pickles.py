"""Hostile and damaged files of `torch.save`, made by code; none may run code, hang or take memory.

``python tests/faults/zoo_pickles.py`` reads each of them as `fastmoco import` does, in a process
of its own with the same limits, and prints one line for each.
"""

import io
import os
import pickle
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from fastmoco.torch_files import unpickle

Case = tuple[str, bytes, str]
"""Name, the file's bytes, and a word of the reason; "" if its tensors are read."""

STOP, TWO = b".", b"\x80\x02"
TRACE = "touch fastmoco-was-here"
COMMAND = b"X" + struct.pack("<I", len(TRACE)) + TRACE.encode()
TENSORS = {"a": torch.ones(2)}


def cases() -> Iterator[Case]:
    """More than 40 files."""
    yield from _calls()
    yield from _claims()
    yield from _structures()
    yield from _archives()


def _text(word: str) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word.encode()


def _calls() -> Iterator[Case]:
    """Functions that unpickling would call, by each way of naming one."""
    for module, name in (
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "__import__"),
        ("subprocess", "Popen"),
        ("runpy", "run_path"),
        ("pickle", "loads"),
        ("shutil", "rmtree"),
        ("webbrowser", "open"),
        ("operator", "attrgetter"),
        ("importlib", "import_module"),
    ):
        call = f"c{module}\n{name}\n".encode() + COMMAND + b"\x85R"
        yield f"{module}.{name}", TWO + call + STOP, f"would call {module}.{name}"
    yield "name of Python 2", TWO + b"c__builtin__\neval\n" + COMMAND + b"\x85R.", "builtins.eval"
    stack = b"\x80\x04" + _text("os") + _text("system") + b"\x93" + COMMAND + b"\x85R."
    yield "name on the stack", stack, "os.system"
    memo = b"\x80\x04" + _text("os") + b"q\x00" + _text("system") + b"q\x01h\x00h\x01\x93"
    yield "name in the memo", memo + COMMAND + b"\x85R.", "os.system"
    yield "instance", b"(" + COMMAND + b"ios\nsystem\n.", "os.system"
    yield "object", TWO + b"(cos\nsystem\n" + COMMAND + b"o.", "os.system"
    new = TWO + b"cos\nsystem\n" + COMMAND + b"\x85\x81."
    yield "made by __new__", new, "os.system"
    hidden = b"\x80\x04" + _text("os") + b"\x8c\x06system\x85\x93" + COMMAND + b"\x85R."
    yield "name that cannot be told", hidden, "refused|damaged"
    yield "number of an extension", TWO + b"\x82\x01" + COMMAND + b"\x85R.", "refused|damaged"
    yield "function of torch", wrapped(b"ctorch.hub\nload\n" + COMMAND + b"\x85R."), "state dict"
    legacy = io.BytesIO()
    torch.save(TENSORS, legacy, _use_new_zipfile_serialization=False)
    keys = pickle.dumps([], 2)
    fifth = legacy.getvalue()[: legacy.getvalue().rindex(b"\x80\x02]")] + TWO
    yield "among the storages", fifth + b"cos\nsystem\n" + COMMAND + b"\x85R." + keys, "os.system"


def _claims() -> Iterator[Case]:
    """Sizes that are not there."""
    large = struct.pack("<Q", 1 << 60)
    yield "text of an exabyte", b"\x80\x04\x8d" + large + STOP, "far more memory"
    yield "bytes of an exabyte", b"\x80\x04\x8e" + large + STOP, "far more memory"
    yield "frame of an exabyte", b"\x80\x04\x95" + large + b"N.", "its format"
    yield "long of 2 GB", TWO + b"\x8b" + struct.pack("<i", 2**31 - 1) + STOP, "damaged|refused"
    yield "memo of 4 billion", wrapped(b"Nr" + struct.pack("<I", 2**32 - 2) + STOP), "NoneType"
    yield (
        "tensor of 4 GiB by stride 0",
        saved({"a": torch.zeros(1).expand(1 << 15, 1 << 15)}),
        ("far more memory"),
    )
    size = saved(TENSORS).replace(b"K\x02\x85", b"K\x7f\x85")  # its shape
    yield "tensor larger than its storage", recounted(size), "not resizable"


def _structures() -> Iterator[Case]:
    """Nesting, circles, and files without tensors."""
    yield "nested 20,000 deep", wrapped(b"(" * 20_000 + b"t" * 20_000 + STOP), "tuple"
    circle = b"}q\x00X\x05\x00\x00\x00modelh\x00s."
    yield "contains itself", wrapped(circle), "RecursionError"
    yield "empty mapping", saved({}), "no state dict"
    yield "no tensors", saved({"epoch": 3, "model": {}}), "no state dict"
    yield "a list", saved([1, 2]), "contains a list"
    yield "no end", pickle.dumps({"a": 1}, 2)[:-1], "damaged"
    yield "empty after the mark", TWO, "damaged"
    yield "random bytes", TWO + bytes(range(256)), "damaged|refused"
    yield "sparse", saved({"a": torch.eye(2).to_sparse()}), "plain dense"
    yield "name with escapes", saved({"a\n\x1b[2J": torch.ones(2)}), ""


def _archives() -> Iterator[Case]:
    """Zip files that are not what `torch.save` writes."""
    good = saved(TENSORS)
    yield "sound", good, ""
    yield "changed byte", flipped(good), "wrong checksum|damaged"
    yield "cut", good[:-100], "damaged"
    yield "no pickle", archive({"x/data/0": bytes(8)}), "damaged|refused"
    yield "deflate bomb", archive({"x/data.pkl": bytes(20 << 20)}, zipfile.ZIP_DEFLATED), "claim"
    evil = TWO + b"cos\nsystem\n" + COMMAND + b"\x85R."
    both = {"x/data.pkl": pickle.dumps({"a": 1}, 2), "y/data.pkl": evil}
    yield "a second pickle", archive(both), "os.system"
    script = archive({"x/data.pkl": evil, "x/constants.pkl": evil, "x/code/a.py": b""})
    yield "program", script, "os.system"


def saved(value: object) -> bytes:
    """As `torch.save` writes it."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def wrapped(pickled: bytes) -> bytes:
    """An archive as torch reads it, with this pickle of protocol 2."""
    return archive({"x/data.pkl": TWO + pickled, "x/byteorder": b"little", "x/version": b"3\n"})


def archive(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as out:
        for name, data in records.items():
            out.writestr(name, data)
    return file.getvalue()


def recounted(data: bytes) -> bytes:
    """The same records with right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as damaged:
        records = {}
        for info in damaged.infolist():
            start = info.header_offset + 30
            name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
            start += name + extra
            records[info.filename] = data[start : start + info.file_size]
    return archive(records)


def flipped(data: bytes) -> bytes:
    """One bit of the values is changed."""
    place = data.index(struct.pack("<f", 1.0))
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def main() -> None:
    """Read each file in a process of its own, with limits; print what came of it."""
    for name, data, word in cases():
        with tempfile.TemporaryDirectory() as folder:
            path, said = Path(folder, "weights.pth"), Path(folder, "said")
            path.write_bytes(data)
            start = time.monotonic()
            child = os.fork()
            if not child:
                os.chdir(folder)
                with said.open("w", encoding="utf-8") as sys.stderr:
                    code = unpickle.main(str(path), folder, "weights")
                os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            reason = said.read_text(encoding="utf-8").strip()
            found = sorted({one.name for one in Path(folder).iterdir()} - {path.name, said.name})
        seconds = time.monotonic() - start
        print(repr((name, word, code, reason, found, round(seconds, 1))), flush=True)


if __name__ == "__main__":
    main()
