"""Write ``constraints-hashes.txt``: `constraints.txt` with the SHA-256 of each package's files.

``python scripts/hash_constraints.py`` lists, as pip does, the files that an index has for the
supported Pythons on Linux x86-64, and writes their hashes; nothing is downloaded or installed. It
names no address: the hashes hold for any index with the same files. Run it after each change of
constraints.txt. It uses pip's internal list of candidates, because no command of pip prints it.
"""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PYTHONS = ((3, 11), (3, 12), (3, 13))
PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
]
ONLY_NEWER = {"pyyaml-ft": "3.13"}
"""Packages that earlier Pythons do not install."""
LEFT_OUT = ("ffcv",)
"""What is built against libraries of the system, by `make ffcv`."""
HEADER = """\
# Written by scripts/hash_constraints.py from constraints.txt; do not edit.
# pip install --require-hashes -r constraints-hashes.txt, then pip install --no-deps -e .
"""


def pinned() -> dict[str, str]:
    """Versions by name in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("==") for line in lines if not line.startswith("#"))
    return {name: version for name, _, version in pairs if version}


def finders() -> list[Any]:
    """Pip's finder of files, for each Python."""
    # Not at the top: pip replaces distutils, and torch.compile would fail in this process.
    from pip._internal.commands import create_command
    from pip._internal.models.target_python import TargetPython

    command: Any = create_command("index")
    options, _ = command.parse_args(["versions", "pip"])
    with command.main_context():
        session = command.get_default_session(options)
    return [
        command._build_package_finder(
            options=options,
            session=session,
            target_python=TargetPython(platforms=PLATFORMS, py_version_info=python),
            ignore_requires_python=True,
        )
        for python in PYTHONS
    ]


def digests(name: str, version: str, searched: list[Any]) -> list[str]:
    """SHA-256 of the files of one version.

    Raises:
        ValueError: If the index has none.
    """
    files = [one for finder in searched for one in finder.find_all_candidates(name)]
    links = [one.link for one in files if str(one.version) == version]
    found = {link.hash for link in links if link.hash_name == "sha256"}
    if not found:
        raise ValueError(f"the index has no file of {name} {version} with a SHA-256")
    return sorted(found)


def main() -> None:
    """Write the file."""
    searched = finders()
    text = HEADER
    for name, version in pinned().items():
        if name in LEFT_OUT:
            continue
        first = ONLY_NEWER.get(name)
        marker = f' ; python_version >= "{first}"' if first else ""
        hashes = (f"--hash=sha256:{digest}" for digest in digests(name, version, searched))
        text += " \\\n    ".join([f"{name}=={version}{marker}", *hashes]) + "\n"
    (ROOT / "constraints-hashes.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
