"""`fastmoco doctor` as it is called, with its child processes."""

import json
import subprocess
import sys

import pytest


@pytest.mark.full
def test_this_machine_can_train(tmp_path):
    command = [sys.executable, "-m", "fastmoco.cli", "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["can_train"]
    states = {part: one["state"] for part, one in found["parts"].items()}
    assert states["torch"] == states["libjpeg-turbo"] == states["disk"] == "works"
    assert not [text for one in found["parts"].values() if "crashed" in (text := one["text"])]
