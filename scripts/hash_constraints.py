"""Write ``constraints-hashes.txt``: `constraints.txt` with the SHA-256 of each package's files.

``python scripts/hash_constraints.py`` asks pip, for each supported Python on Linux x86-64, which
file it would install, and writes their hashes; nothing is installed. It names no address: the
hashes hold for any index that has the same files. Run it after each change of constraints.txt.
"""

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
NEWEST = 39  # of glibc, 2.39
PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in range(NEWEST, 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
]
FROM_SOURCE = ("antlr4-python3-runtime", "assertpy", "fastargs")
"""Packages without wheels."""
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
    pairs = (line.split("#")[0].split(";")[0].strip().partition("==") for line in lines)
    return {name: version for name, _, version in pairs if version}


def hashes(names: dict[str, str], options: list[str]) -> dict[str, str]:
    """SHA-256 by name of the files that pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder, "wanted.txt"), Path(folder, "report.json")
        wanted.write_text("".join(f"{name}=={version}\n" for name, version in names.items()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
        command += ["--ignore-installed", "--disable-pip-version-check", "--report", str(report)]
        subprocess.run([*command, *options, "-r", str(wanted)], check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        one["metadata"]["name"].lower().replace("_", "-").replace(".", "-"): one["download_info"][
            "archive_info"
        ]["hashes"]["sha256"]
        for one in found
    }


def main() -> None:
    """Ask pip for each Python and write the file."""
    wanted = {name: version for name, version in pinned().items() if name not in LEFT_OUT}
    sources = {name: wanted[name] for name in FROM_SOURCE}
    wheels = {name: version for name, version in wanted.items() if name not in sources}
    known: dict[str, set[str]] = defaultdict(set)
    for name, digest in hashes(sources, ["--no-build-isolation"]).items():
        known[name].add(digest)
    for python in PYTHONS:
        options = ["--only-binary=:all:", f"--python-version={python}", "--target=unused"]
        options += [f"--platform={platform}" for platform in PLATFORMS]
        here = {one: v for one, v in wheels.items() if ONLY_NEWER.get(one, python) <= python}
        for name, digest in hashes(here, options).items():
            known[name].add(digest)
    lines = []
    for name, version in wanted.items():
        digests = sorted(known[name.lower().replace("_", "-").replace(".", "-")])
        first = ONLY_NEWER.get(name)
        marker = f' ; python_version >= "{first}"' if first else ""
        parts = [f"{name}=={version}{marker}", *(f"--hash=sha256:{digest}" for digest in digests)]
        lines.append(" \\\n    ".join(parts))
    text = HEADER + "\n".join(lines) + "\n"
    (ROOT / "constraints-hashes.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
