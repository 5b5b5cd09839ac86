"""Words of a command line: positional arguments, ``key=value``, flags; and what is wrong with them.

Only a refusal imports the options of the command: they are what its hint is chosen from.
"""

import difflib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fastmoco.errors import UsageError

PLACES = {
    "RUN": "a run folder of fastmoco train, a checkpoint, or an imported or exported encoder",
    "SRC": "a folder of images, a manifest, tar shards, arrays or torchvision:NAME",
    "DST.beton": "the dataset file to write",
    "FILE.beton": "a dataset file of fastmoco convert, or its https:// or s3:// address",
    "FILE": "a file of weights, .pth or .safetensors",
    "REQUEST": "a folder of fastmoco request",
    "NAME": "the name of a sweep, such as temperature, or FILE.yaml with your own",
    "SHELL": "bash, zsh or fish",
}
"""What each positional argument is, for the refusal of a command line without it."""
OUTPUTS = ("out", "run_dir")
"""Options that name what is written."""
NEWEST_RUNS = 3
_HOME = re.compile(r"""(?<![^=\[,'"])~(?=/)""")
"""``~/`` at the start of a word, value or item."""


def expand_home(words: Sequence[str]) -> list[str]:
    """Replace ``~/`` by the home folder, also in ``out=~/x`` and ``[~/a,~/b]``, which shells leave.

    Raises:
        UsageError: If this user has no home folder.
    """
    expanded = [_HOME.sub(lambda found: os.path.expanduser(found[0]), word) for word in words]
    for given, word in zip(words, expanded, strict=True):
        if _HOME.search(word):
            raise UsageError(
                f"{given}: ~ is no folder, since HOME is not set and the system does not know this "
                "user; write the path in full"
            )
    return expanded


def is_flag(word: str) -> bool:
    """Whether a word is a flag, such as ``--json`` or ``-k``; -3 is none."""
    return re.match(r"--?[A-Za-z]", word) is not None


def split_arguments(
    arguments: Sequence[str],
    positional: Sequence[str],
    schema: type | None = None,
    *,
    repeats: bool = False,
) -> tuple[list[str], list[str], bool]:
    """Positional arguments, ``key=value`` overrides, and whether ``--json`` was given.

    Args:
        arguments: Command line after the command.
        positional: Names of the positional arguments.
        schema: Options of the command, for hints.
        repeats: Whether the last positional argument may be given several times.

    Raises:
        UsageError: If an argument is missing, or is neither of these.
    """
    check_flags(arguments, ("--json",), schema)
    words = [word for word in arguments if not is_flag(word)]
    check_blanks(words)
    count = len(positional)
    if repeats:
        more = (
            n for n, word in enumerate(words[count:]) if "=" in word and not os.path.exists(word)
        )
        count += next(more, len(words[count:]))
    places, rest = words[:count], words[count:]
    for name, place in zip(positional, [*places, *[""] * len(positional)], strict=False):
        if not place or (_is_option(place, schema) and not os.path.exists(place)):
            raise UsageError(f"{name} is missing; it is {_described(name)}")
    check_strays(rest, schema, places)
    return places, rest, len(words) < len(arguments)


def check_flags(words: Sequence[str], allowed: Collection[str], schema: type | None) -> None:
    """Refuse other flags; an option of that name is shown as it is given here.

    Raises:
        UsageError: At the first other flag.
    """
    for flag, after in zip(words, [*words[1:], ""], strict=False):
        name, _, value = flag.partition("=")
        if is_flag(flag) and name not in allowed:
            value = value or ("VALUE" if is_flag(after) or "=" in after else after or "VALUE")
            known = _known(schema)
            plain = name.lstrip("-").replace("-", "_")
            same = [key for key in known if key.rsplit(".", 1)[-1] == plain]
            key = next(iter(same), None) or _other_name(plain, known)
            hint = f"; write {key}={value}" if key else ""
            raise UsageError(f"unknown flag {name}; options are given as key=value{hint}")


def check_blanks(words: Sequence[str]) -> None:
    """Refuse ``key = value``, ``key= value`` and ``key =value``.

    Raises:
        UsageError: At the first.
    """
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        split = word == "=" or (word.startswith("=") and "=" not in before)
        if split or (word.endswith("=") and after and "=" not in after):
            parts = (before, word, after) if word == "=" else (before, word)
            joined = "".join(parts if split else (word, after))
            raise UsageError(f"an option has no blanks around =; write {joined}")


def check_strays(words: Sequence[str], schema: type | None, places: Sequence[str] = ()) -> None:
    """Refuse words that are no ``key=value``.

    Args:
        words: Command line after the positional arguments.
        schema: Options of the command, for hints.
        places: The positional arguments.

    Raises:
        UsageError: At the first.
    """
    for before, word in zip(["", *words], words, strict=False):
        if "=" in word:
            continue
        known = _known(schema)
        hint = ""
        is_data = os.path.exists(word) and "data.train" in known
        if is_data and not any(one.startswith("data.train=") for one in words):
            hint = f"; write data.train={word}"
        elif "=" in before:
            hint = f"; quote a value that has blanks: '{before} {word}'"
        elif same := [key for key in known if word in (key, key.rsplit(".", 1)[-1])]:
            hint = f"; write {same[0]}=VALUE"
        elif places:
            parts = " ".join([*places, word][: max(2, len(places))])
            hint = f"; quote a path that has blanks, such as '{parts}'"
        raise UsageError(f"unexpected argument {word}; options are given as key=value{hint}")


def _known(schema: type | None) -> list[str]:
    """Options and groups of presets of a command."""
    if schema is None:
        return []
    from fastmoco.configuration import preset_groups
    from fastmoco.schema_options import describe

    return [*(key for key, _, _ in describe(schema)), *preset_groups(schema)]


def _other_name(name: str, known: Sequence[str]) -> str | None:
    from fastmoco.option_names import other_name

    return other_name(name, known)


def _is_option(word: str, schema: type | None) -> bool:
    return "=" in word and word.partition("=")[0] in _known(schema)


def _described(name: str) -> str:
    described = PLACES.get(name, "named in --help")
    if name == "RUN" and (runs := run_folders()[:NEWEST_RUNS]):
        described += f"; newest: {', '.join(map(str, runs))}"
    return described


def run_folders(folder: Path = Path("runs")) -> list[Path]:
    """Runs in a folder, also those of sweeps, the newest first.

    What has checkpoints inside a run, such as ``evaluation/finetune``, is a result of that run.
    """
    patterns = ("*/checkpoints", "*/*/checkpoints", "*/*/*/checkpoints")
    times = {p.parent: p.stat().st_mtime for pattern in patterns for p in folder.glob(pattern)}
    runs = [path for path in times if times.keys().isdisjoint(path.parents)]
    return sorted(runs, key=times.__getitem__, reverse=True)


def check_run(run: Path) -> None:
    """Refuse a RUN that does not exist, naming the nearest one.

    Raises:
        UsageError: If neither the path nor a checkpoint of this name exists.
    """
    if run.exists() or run.with_suffix(".json").exists():
        return
    runs = [str(path) for path in run_folders()]
    siblings = [str(path) for path in run.parent.iterdir()] if run.parent.is_dir() else []
    near = [path for path in runs if Path(path).name == run.name]
    near = near or difflib.get_close_matches(str(run), [*runs, *siblings], n=1, cutoff=0.7)
    if near:
        hint = f"did you mean {near[0]}?"
    elif runs:
        hint = f"newest: {', '.join(runs[:NEWEST_RUNS])}"
    else:
        hint = f"give {PLACES['RUN']}"
    raise UsageError(f"RUN {run} does not exist; {hint}")


def check_outputs(cfg: Any) -> None:
    """Check the options that name what is written; see `check_output`."""
    for name in OUTPUTS:
        if path := getattr(cfg, name, None):
            check_output(f"{name}={path}", Path(path))


def check_output(given: str, path: Path) -> None:
    """Refuse a path that cannot be written, or is below two folders that are missing: a typo.

    Commands make one missing folder themselves.

    Args:
        given: The path as given, for the message.
        path: File or folder to write.

    Raises:
        UsageError: Before any work is done.
    """
    parent = path.absolute().parent
    existing = next(folder for folder in (parent, *parent.parents) if folder.exists())
    if not existing.is_dir():
        raise UsageError(f"{given}: {existing} is not a folder; choose another path")
    if len(parent.relative_to(existing).parts) > 1:
        raise UsageError(
            f"{given}: {parent} does not exist, nor does the folder above it; correct the path, or "
            f"make it: mkdir -p {parent}"
        )
    check_writable(given, parent)


def check_writable(given: str, folder: Path) -> None:
    """Refuse a folder that cannot be written, or not be made.

    Raises:
        UsageError: Before any work is done.
    """
    folder = folder.absolute()
    existing = next(one for one in (folder, *folder.parents) if one.is_dir())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{given}: no permission to write to {existing}; choose another path")
