"""The report in Chromium: no error, no request, both themes, a phone's width, the map."""

import numpy as np
import pytest
from PIL import Image

from fastmoco import cli
from fastmoco.report.report import write_report
from fastmoco.report.settings import ReportConfig
from tests.browser import show
from tests.runs import write_colors
from tests.unit.test_report import make_run

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    write_colors(folder / "images", seed=0, per_class=8)
    assert cli.main(["convert", str(folder / "images"), str(folder / "set.beton")]) == 0
    data = f"data.train={folder / 'set.beton'}"
    runs = [make_run(folder / name, data, f"seed={seed}") for seed, name in enumerate("ab")]
    write_report(runs[:1], ReportConfig())
    write_report(runs, ReportConfig())
    return [folder / "a/report.html", folder / "a/comparison.html"]


@pytest.mark.parametrize("number", [0, 1])
def test_no_error_and_no_request(pages, number, tmp_path):
    shown = show(pages[number], tmp_path)
    assert "</html>" in shown.document
    assert shown.errors == []


def test_a_forbidden_request_would_be_seen(pages, tmp_path):
    """What the test before rests on: the page's policy allows no request at all."""
    script = "fetch('https://example.com/x').catch(() => 0)"
    shown = show(pages[0], tmp_path, script=script)
    assert any("Content Security Policy" in line for line in shown.errors)


HOVER = """
const circle = document.querySelectorAll("#map circle")[3], box = circle.getBoundingClientRect();
const place = {clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true};
document.getElementById("map").dispatchEvent(new PointerEvent("pointermove", place));
const said = document.getElementById("tip").textContent.trim(), caption = circle.dataset.caption;
const seen = [getComputedStyle(document.getElementById("tip")).display, said === caption];
document.getElementById("map").dispatchEvent(new PointerEvent("pointerleave"));
seen.push(getComputedStyle(document.getElementById("tip")).display);
document.body.dataset.seen = seen.join(" ");
"""
KEYS = """
const map = document.getElementById("map"), said = [];
map.focus();
for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft"]) {
  map.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  said.push(document.getElementById("tip").textContent.trim());
}
map.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
const none = document.getElementById("tip").style.display;
const found = [document.activeElement === map, said[0] !== said[1], said[0] === said[2], none];
document.body.dataset.seen = found.join(" ");
"""


@pytest.mark.parametrize(
    ("script", "expected"), [(HOVER, "block true none"), (KEYS, "true true true none")]
)
def test_the_map_names_its_points(pages, tmp_path, script, expected):
    shown = show(pages[0], tmp_path, script=script)
    assert f'data-seen="{expected}"' in shown.document


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_screen(pages, tmp_path, width):
    """No number is broken into lines either, which would keep a table narrow."""
    script = "document.body.dataset.wide = document.documentElement.scrollWidth - innerWidth;"
    script += """
for (const cell of document.querySelectorAll("td.number")) {
  const range = document.createRange();
  range.selectNodeContents(cell);
  if (range.getClientRects().length > 1) document.body.dataset.wide = cell.textContent;
}"""
    # Headless windows are 500 pixels wide at least: a frame has the width of a phone.
    frame = tmp_path / "frame.html"
    inner = pages[0].read_text().replace("</body>", f"<script>{script}</script></body>")
    escaped = inner.replace("&", "&amp;").replace('"', "&quot;")
    size = f'width="{width}" height="900"'
    frame.write_text(f'<html><body><iframe srcdoc="{escaped}" {size}></iframe></body></html>')
    read = "onload = () => { document.body.dataset.wide = frames[0].document.body.dataset.wide }"
    shown = show(frame, tmp_path, script=read)
    assert 'data-wide="0"' in shown.document


def test_both_themes_are_drawn(pages, tmp_path):
    """Light text on dark where the system is dark, and the other way round."""
    levels = []
    for scheme in (1, 0):  # light, dark
        picture = tmp_path / f"{scheme}.png"
        options = [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=900,1200"]
        show(pages[0], tmp_path, *options, picture=picture)
        pixels = np.asarray(Image.open(picture).convert("L"), np.float64)
        levels.append((np.median(pixels), pixels.min(), pixels.max()))
    (light, darkest, _), (dark, _, lightest) = levels
    assert light > 240 > 60 > dark
    assert darkest < 60 < 200 < lightest
