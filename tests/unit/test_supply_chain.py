"""What is installed and run by others is named by digest, and the lists agree."""

import re
from pathlib import Path

from scripts.hash_constraints import LEFT_OUT, pinned

ROOT = Path(__file__).parents[2]


def test_hashes_are_of_the_pinned_versions() -> None:
    text = (ROOT / "constraints-hashes.txt").read_text()
    marker, digests = r"(?: ; python_version >= \S+)?", r"(?: \\\n    --hash=sha256:[0-9a-f]{64})+"
    entries = re.findall(rf"^([\w.-]+)==(\S+){marker}{digests}$", text, re.M)
    wanted = {name: version for name, version in pinned().items() if name not in LEFT_OUT}
    assert dict(entries) == wanted
    assert "://" not in text


def test_actions_are_pinned_by_commit() -> None:
    used = [
        line.split("uses:")[1].strip()
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert len(used) >= 5
    for one in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", one), one
