"""A page in a real browser, headless: its errors, and its document after a script."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.limits import HANG_SECONDS

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass(slots=True)
class Shown:
    """A page as a browser showed it."""

    document: str
    """HTML after all scripts have run."""
    errors: list[str]
    """Lines of the console; a request that the page's policy forbids is one."""


def show(
    page: Path, folder: Path, *options: str, script: str = "", picture: Path | None = None
) -> Shown:
    """Show a page, with a script of the test at its end; skip where there is no browser.

    Args:
        page: The page; a copy is shown.
        folder: For the copy and the browser's own files.
        options: More of the browser's options.
        script: JavaScript that runs after the page's own.
        picture: PNG file to write; then there is no document.
    """
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine; sudo apt-get install chromium")
    shown = folder / "shown.html"
    text = page.read_text(encoding="utf-8")
    added = f"<script>{{{script}}}</script>" if script else ""
    shown.write_text(text.replace("</body>", f"{added}</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", *options]
    command += [f"--screenshot={picture}"] if picture else ["--dump-dom"]
    done = subprocess.run(
        [*command, shown.as_uri()], capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return Shown(document=done.stdout, errors=re.findall(r"CONSOLE.*", done.stderr))
