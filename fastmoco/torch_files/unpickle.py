"""Read the tensors of a foreign PyTorch file and write them as plain data, in a process of its own.

`child` calls `main` in a new process. With the form ``weights`` it writes the state dict to
``weights.safetensors``, with ``arrays`` all arrays at the top to ``0.npy``, ``1.npy`` and so on.
`torch.load` runs no code of the file (``weights_only=True``): instead of a class or function that
is not torch's own it makes an `Inert` object. A file that names functions of Python's standard
library is refused. Memory, processor time and output are limited, so a malicious file can at most
end this process.

Exit codes: 0 done; 3 refused or damaged, with one line on stderr.
"""

import errno
import json
import os
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fastmoco.torch_files.pickle_names import Refused, is_harmless, named_in

CPU_SECONDS = 600
SPARE_BYTES = 2 << 30
"""Memory for PyTorch itself, beside three times the file's size."""
# Keys under which training frameworks store a model's tensors. The first that has some is taken, at
# each level: of a teacher, its moving average and a student, the teacher.
CONTAINERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "weights"),
    *("teacher", "ema", "model_ema", "student", "classy_state_dict", "base_model", "trunk"),
)
_MODEL_PARTS = re.compile(
    r"torch\.(_utils\._rebuild\w+|\w+Storage|nn\.parameter\.Parameter|nn\.modules\.\w+\.\w+)"
    r"|torchvision\.models\.\w+\.\w+"
)
_MORE_THAN_TENSORS = re.compile(
    r"Unsupported (operand|class) \S+|(Can only|Trying to|Only persistent_load) .*"
)
_FORMAT = "refused: its format (pickle above protocol 2, or a module of before PyTorch 1.6)"
_ARRAY = re.compile(r"numpy\.(_core|core)\.multiarray\._reconstruct")


class _LikeDict(type):
    """Equal to dict: torch's unpickler compares types before it fills a mapping."""

    def __eq__(cls, other: object) -> bool:
        return other is dict or other is cls

    __hash__ = type.__hash__


class Inert(dict[Any, Any], metaclass=_LikeDict):
    """In place of any object of a class, or result of a function, that a file names."""

    state: Any = None

    def __init__(self, *args: Any) -> None:
        """Keep the arguments."""
        super().__init__()
        self.args = args

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state


class InertArray(Inert):
    """In place of a NumPy array."""


def bound_resources(file_bytes: int) -> None:
    """Limit memory, processor time and output size of this process; no core file."""
    memory = 3 * file_bytes + SPARE_BYTES + _used_bytes()
    for what, value in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 2 * file_bytes + (64 << 20)),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (limit, limit))


def _used_bytes() -> int:
    """Private writable memory so far, which counts towards RLIMIT_DATA."""
    with open("/proc/self/status", encoding="ascii") as file:
        found = re.search(r"VmData:\s+(\d+) kB", file.read())
    return 1024 * int(found[1]) if found else 1 << 30


def load(source: str) -> Any:
    """Load a file with inert objects for all that torch does not allow.

    Raises:
        Refused: If the file names functions that weights do not need, or is damaged.
        Exception: Of any kind, if it is damaged.
    """
    names = named_in(source)
    root = sys.stdlib_module_names
    if called := sorted(n for n in names if n.split(".")[0] in root and not is_harmless(n)):
        raise Refused(f"refused: unpickling it would call {called[0]}, which no weights need")
    torch.serialization.add_safe_globals(
        [(InertArray if _ARRAY.fullmatch(name) else Inert, name) for name in names]
    )
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        known = all(is_harmless(name) or _MODEL_PARTS.fullmatch(name) for name in names)
        if known and re.search("Unsupported operand|Only persistent_load", str(error)):
            raise Refused(f"{_FORMAT} cannot be read without running its code") from error
        raise


def find_state(loaded: Any) -> tuple[str, Mapping[str, torch.Tensor]]:
    """The model's tensors in a checkpoint, and the keys to them where others hold tensors too.

    Raises:
        Refused: If there are none.
    """
    state = _mapping(loaded)
    if state is None:
        raise Refused(f"it contains a {type(loaded).__name__}, not a state dict")
    if found := _find_state(state):
        return found
    keys = ", ".join(str(key) for key in list(state)[:8])
    raise Refused(f"it contains no state dict (its keys: {keys})")


def _find_state(state: Mapping[Any, Any]) -> tuple[str, Mapping[str, torch.Tensor]] | None:
    inner = {key: _mapping(state.get(key)) for key in CONTAINERS}
    found = {key: _find_state(one) for key, one in inner.items() if one is not None}
    holding = [(key, one) for key, one in found.items() if one is not None]
    if holding:
        key, (path, tensors) = holding[0]
        path = f"{key}.{path}".strip(".") if len(holding) > 1 else path
        return path, tensors
    given = ((name, _tensor(value)) for name, value in state.items() if isinstance(name, str))
    tensors = {name: tensor for name, tensor in given if tensor is not None}
    return ("", tensors) if tensors else None


def _mapping(value: Any) -> Mapping[Any, Any] | None:
    """A mapping as it is, the tensors of a module by name, or None."""
    state = value.state if isinstance(value, Inert) else None
    if isinstance(state, dict) and "_modules" in state:
        return dict(_module_tensors(value))
    return value if isinstance(value, Mapping) else None


def _module_tensors(module: Inert, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The state dict of a `torch.nn.Module`, by the attributes that it pickles."""
    state = module.state
    for name, tensor in {**state["_parameters"], **state["_buffers"]}.items():
        if name not in state.get("_non_persistent_buffers_set", ()):
            yield f"{prefix}{name}", tensor
    for name, child in state["_modules"].items():
        if isinstance(child, Inert):
            yield from _module_tensors(child, f"{prefix}{name}.")


def _tensor(value: Any) -> torch.Tensor | None:
    if isinstance(value, InertArray):
        return _array_tensor(value)
    return value if isinstance(value, torch.Tensor) else None


def _array_tensor(array: InertArray) -> torch.Tensor | None:
    """The array by its pickled state: version, shape, dtype, column order, bytes; None for objects.

    A dtype is pickled as its code, such as f4, and a state whose second item is the byte order.
    """
    _, shape, dtype, is_column_order, data = array.state
    if not re.fullmatch("[fiub][1248]", dtype.args[0]):
        return None
    values = np.frombuffer(data, dtype.state[1] + dtype.args[0])
    values = values.reshape(shape, order="F" if is_column_order else "C")
    return torch.from_numpy(np.array(values, values.dtype.newbyteorder("=")))


def find_arrays(loaded: Any) -> dict[str, Any]:
    """What a file holds at its top, by name: tensors and lists as arrays, else a type's name.

    Raises:
        Refused: If that is neither a tensor, a tuple or list of them, nor a mapping.
    """
    if isinstance(loaded, torch.Tensor):
        return {"": _plain_array("", loaded)}
    is_mapping = isinstance(loaded, Mapping) and not isinstance(loaded, Inert)
    if not (is_mapping or (isinstance(loaded, tuple | list) and loaded)):
        raise Refused(f"it holds a {_kind(loaded)}; save tensors of images and labels")
    items = loaded.items() if is_mapping else enumerate(loaded)
    return {str(name): _plain_array(str(name), value) for name, value in items}


def _plain_array(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        check_plain(name, value)
        # NumPy has no bfloat16.
        return (value.float() if value.dtype is torch.bfloat16 else value).numpy(force=True)
    array = np.asarray(value) if isinstance(value, list) else None
    return _kind(value) if array is None or array.dtype.hasobject else array


def _kind(value: Any) -> str:
    return "class of other code" if isinstance(value, Inert) else type(value).__name__


def write_arrays(arrays: Mapping[str, Any], folder: str) -> None:
    """Write each array to a file, and the number of its file, or a type's name, by name."""
    names = {
        name: value if isinstance(value, str) else number
        for number, (name, value) in enumerate(arrays.items())
    }
    for name, number in names.items():
        if isinstance(number, int):
            np.save(os.path.join(folder, f"{number}.npy"), arrays[name], allow_pickle=False)
    with open(os.path.join(folder, "names.json"), "w", encoding="utf-8") as file:
        json.dump(names, file)


def check_plain(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that is not just values in memory.

    Raises:
        Refused: If it is sparse, quantized or complex.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
        raise Refused(f"{name or 'its tensor'} is not a plain dense tensor")


def plain_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Dense copies on the CPU, each with memory of its own.

    Raises:
        Refused: If one is sparse, quantized or complex.
    """
    plain = {}
    for name, tensor in tensors.items():
        check_plain(name, tensor)
        plain[name] = tensor.detach().to("cpu").contiguous().clone()
    return plain


def _reason(error: Exception) -> str:
    """Shorten an error of `torch.load` to one line."""
    text = str(error)
    if "TorchScript archives" in text:
        return "refused: it is a TorchScript program, not weights"
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"refused: unpickling it would call {found[1]}, which is not needed for weights"
    if found := re.search(
        r"Unsupported (?:operand|class) \S+|(?:Can only|Trying to|Only persistent_load) .*", text
    ):
        return f"refused: unpickling it would do more than read tensors ({found[0]})"
    is_large = isinstance(error, OSError) and error.errno == errno.EFBIG
    if is_large or isinstance(error, MemoryError) or "alloc" in text.lower():
        return "refused: its tensors need far more memory than the size of the file"
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"damaged or not a PyTorch file ({type(error).__name__}: {line[:120]})"


def convert(source: str, folder: str, form: str) -> None:
    """Convert one file.

    Raises:
        Refused: If it holds nothing of that form, or is damaged.
        Exception: Of any kind, if it is damaged.
    """
    loaded = load(source)
    if form == "arrays":
        write_arrays(find_arrays(loaded), folder)
        return
    container, tensors = find_state(loaded)
    target = os.path.join(folder, "weights.safetensors")
    save_file(plain_tensors(tensors), target, {"container": container})


def main(source: str, folder: str, form: str) -> int:
    """Convert one file with limits on this process; returns the exit code."""
    torch.set_num_threads(1)
    bound_resources(os.path.getsize(source))
    try:
        convert(source, folder, form)
    except Refused as error:
        reason = str(error)
    except Exception as error:  # a crafted file can raise anything
        reason = _reason(error)
    else:
        return 0
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in reason)
    sys.stderr.write(f"{shown[:500]}\n")
    return 3
