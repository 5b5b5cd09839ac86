"""The classes and functions that a file of `torch.save` names, read without loading it."""

import io
import os
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO

ZIP_START = b"PK\x03\x04"
LEGACY_PICKLES = 5  # before torch 1.6: magic number, version, machine, object, storages
_HARMLESS = re.compile(
    r"_codecs\.encode|argparse\.Namespace|copyreg\._reconstructor|types\.SimpleNamespace"
    r"|builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice"
    r"|str|tuple|type)|collections\.(Counter|OrderedDict|defaultdict|deque)|datetime\.\w+"
    r"|decimal\.Decimal|fractions\.Fraction|functools\.partial|pathlib\.(_local\.)?\w*Path|uuid\.UUID"
)


class Refused(ValueError):
    """The file has no weights that can be imported."""


def named_in(source: str) -> set[str]:
    """All names of a file's pickles.

    Raises:
        Refused: If an archive is damaged, or claims more bytes than it has.
    """
    return {name for pickled in _pickles(source) for name in called_names(pickled)}


def _pickles(source: str) -> Iterator[BinaryIO]:
    """Streams that are each at the start of a pickle of the file.

    Raises:
        Refused: If a record of an archive has a wrong checksum.
    """
    with open(source, "rb") as file:
        if file.read(4) == ZIP_START:
            with zipfile.ZipFile(file) as archive:
                if sum(one.file_size for one in archive.infolist()) > os.path.getsize(source):
                    raise Refused("refused: its records claim more bytes than the file has")
                if record := archive.testzip():
                    raise Refused(f"damaged (its record {record} has a wrong checksum)")
                for name in archive.namelist():
                    if name.endswith("data.pkl"):
                        yield io.BytesIO(archive.read(name))
            return
        file.seek(0)
        for _ in range(LEGACY_PICKLES):
            yield file


def called_names(pickled: BinaryIO) -> Iterator[str]:
    """Classes and functions that a pickle names, without loading it; "?.?" for hidden ones.

    Where `pickletools` gives up, other readers may go on, so the rest counts as a hidden one.
    """
    memo: dict[Any, Any] = {}
    texts: deque[Any] = deque(["?", "?"], maxlen=2)
    value: Any
    is_begun = False
    try:
        for code, value, _ in pickletools.genops(pickled):
            is_begun = True
            if code.name.startswith("EXT"):  # a name by its number in a registry
                yield "?.?"
            elif code.name in ("GLOBAL", "INST"):
                yield _present_name(*value.split(" ", 1))
            elif code.name == "STACK_GLOBAL":
                yield _present_name(*map(str, texts))
            elif code.name == "MEMOIZE":
                memo[len(memo)] = texts[-1]
            elif code.name.endswith("PUT"):
                memo[value] = texts[-1]
            elif code.name.endswith("GET"):
                texts.append(memo.get(value, "?"))
            elif isinstance(value, str):
                texts.append(value)
            elif code.name != "FRAME":
                texts.extend("??")  # the two texts may no longer be the last on the stack
    except ValueError:
        if is_begun or pickled.read(1):  # not just the end of the file
            yield "?.?"


def _present_name(module: str, name: str) -> str:
    """A name of Python 2 as Python 3 has it."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def is_harmless(name: str) -> bool:
    """Whether a name of the standard library is a class that holds values."""
    return _HARMLESS.fullmatch(name) is not None
