"""HTML pages from templates; every value from a file is escaped."""

import base64
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fastmoco.option_names import as_option
from fastmoco.report.charts import compared, curves
from fastmoco.report.gallery import KNN_K, KNN_TEMPERATURE, SIDE, Gallery
from fastmoco.report.recorded import RecordedRun, flat
from fastmoco.version import __version__

MEANINGS = {
    "knn_top1": ("kNN accuracy, %", "the encoder now"),
    "knn_top1_pixels": ("of raw pixels, %", "without any encoder"),
    "knn_top1_start": ("of the encoder at the start, %", "before the first step"),
    "loss": ("loss", "mean over the last tenth of the steps"),
    "loss_floor_ln_k1": ("loss at chance", "what guessing gives"),
    "feature_deviation": ("spread of the features", "1 is even over the sphere, 0 is collapse"),
}
"""Name and meaning of the figures of a verdict."""
MORE_MEANINGS = {
    "accuracy_top1": ("look-up, %", "the positive is found first among K + 1 keys"),
    "loss_stale": ("loss against the queue", "the next queries, at most 2,048 keys"),
    "loss_fresh": ("loss against fresh keys", "the same queries and images, new keys"),
    "accuracy_top1_fresh": ("look-up among fresh keys, %", "told apart by what images show"),
    "key_drift": ("drift of the keys", "1 - cosine of a key in the queue and its new one"),
    "rankme": ("RankMe", "dimensions that the features use"),
    "skipped_steps": ("skipped steps", "their numbers were not finite"),
}
"""The same of those that are folded at first."""
SECTIONS = {
    "rests": "Figures",
    "curves": "Curves",
    "views": "First views",
    "map-title": "Map",
    "neighbors": "Neighbors",
    "hardest": "Hardest images",
    "classes": "Classes",
    "data": "Data",
    "settings": "Settings",
    "machine": "Machine",
    "rerun": "Run it again",
}
LEFT_OUT_OF_COMMAND = ("name", "run_dir", "advice")


def run_page(run: RecordedRun, gallery: Gallery | None, *, missing: str = "") -> str:
    """The report of one run.

    Args:
        run: The run.
        gallery: Its images, if they could be computed.
        missing: Why they could not.
    """
    changed = run.changed_settings()
    views = run.folder.views.read_bytes() if run.folder.views.is_file() else b""
    absent = {"views": not views, "neighbors": not gallery, "hardest": not gallery}
    absent["classes"] = not (gallery and gallery.classes)
    return _render(
        "report.html",
        run=run,
        step=f"{run.rows[-1]['step']:,}" if run.rows else "0",
        figures=_figures(run, MEANINGS),
        more_figures=_figures(run, MORE_MEANINGS),
        curves=curves(run),
        views=base64.b64encode(views).decode(),
        gallery=gallery,
        gallery_missing=missing,
        sprite=base64.b64encode(gallery.sprite).decode() if gallery else "",
        side=SIDE,
        knn_k=KNN_K,
        knn_temperature=KNN_TEMPERATURE,
        color=_color,
        changed=changed,
        command=_command(changed),
        sections=[(key, title) for key, title in SECTIONS.items() if not absent.get(key)],
    )


def comparison_page(runs: Sequence[RecordedRun]) -> str:
    """Several runs beside each other."""
    settings = [flat(run.config) for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one if key not in LEFT_OUT_OF_COMMAND)
    differing = [(key, [one.get(key) for one in settings]) for key in keys]
    return _render(
        "comparison.html",
        runs=runs,
        outcomes=[_outcome(run) for run in runs],
        curves=compared(runs),
        differing=[pair for pair in differing if any(v != pair[1][0] for v in pair[1])],
    )


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("fastmoco.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["capitalize_first"] = _capitalized
    return environment.get_template(template).render(version=__version__, **values)


def _capitalized(text: str) -> str:
    """The start of a sentence; "kNN" stays."""
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def _figures(
    run: RecordedRun, meanings: Mapping[str, tuple[str, str]]
) -> list[tuple[str, str, str]]:
    """Figures of the verdict; of a run without one, of its last row."""
    found = run.verdict["figures"] if run.verdict else (run.rows[-1] if run.rows else {})
    return [
        (name, _number(found[key]), meaning)
        for key, (name, meaning) in meanings.items()
        if found.get(key) is not None
    ]


def _number(value: float | None, digits: int = 2) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.{digits}f}"


def _outcome(run: RecordedRun) -> dict[str, str]:
    last = run.rows[-1] if run.rows else {}
    measured = [row["knn_top1"] for row in run.rows if row.get("knn_top1") is not None]
    return {
        "name": run.name,
        "outcome": run.verdict["outcome"] if run.verdict else "not at its end",
        "step": _number(last.get("step")),
        "knn": _number(measured[-1] if measured else None, 1),
        "pixels": _number(run.baselines.knn_top1_pixels if run.baselines else None, 1),
        "loss": _number(last.get("loss")),
        "floor": _number(last.get("loss_floor_ln_k1")),
    }


def _command(changed: Sequence[tuple[str, Any, Any]]) -> str:
    """A command line that gives a new run the settings of this one."""
    words = [as_option(key, value) for key, value, _ in changed]
    return shlex.join(["fastmoco", "train", "name=again", *words])


def _color(label: int) -> str:
    """A color of a class: neighbors in number are far apart in hue (the golden angle)."""
    return f"hsl({label * 137.508 % 360:.0f} 65% 50%)" if label >= 0 else "var(--soft)"
