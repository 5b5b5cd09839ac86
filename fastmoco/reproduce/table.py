"""`fastmoco table`: a sweep's Markdown, CSV and plots, from its run folders."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmoco.errors import UsageError
from fastmoco.files import atomic_write_text, read_json_object
from fastmoco.parsing import spreadsheet_cell
from fastmoco.reproduce.definition import Definition, Measure, load_definition
from fastmoco.reproduce.figures import LABELS, SETTINGS, Group, RunFigures, collect, is_collapsed
from fastmoco.reproduce.orderings import LEAST_SEEDS, STANDARD_ERRORS, Finding, check_claims, judge
from fastmoco.reproduce.plots import draw_plots
from fastmoco.reproduce.record import STATE_ADVICE, STATE_NAME
from fastmoco.reproduce.settings import SweepTableConfig, sweep_folder
from fastmoco.reproduce.voc import write_voc_table

VOC = "voc"


def write_table(name: str, cfg: SweepTableConfig) -> str:
    """Write ``table.md``, ``table.csv`` and the plots of a sweep.

    Args:
        name: Name of the sweep; ``voc``: results of `fastmoco detect`.
        cfg: Scale and folders.

    Returns:
        The Markdown.

    Raises:
        UsageError: If there is no such sweep, or if no run of it has ended.
    """
    if name == VOC:
        return write_voc_table(cfg)
    definition = load_definition(name).at(cfg.scale)
    folder = sweep_folder(name, cfg)
    state = read_state(folder, name)
    groups = collect(definition, folder, state["seeds"])
    if not any(group.runs for group in groups):
        raise UsageError(f"{folder} holds no run that ended; start: fastmoco sweep {name}")
    out = cfg.out or folder
    check_claims(definition)
    plots = draw_plots(out, definition, groups)
    text = markdown(definition, groups, state, plots)
    atomic_write_text(out / "table.md", text)
    atomic_write_text(out / "table.csv", csv_text(definition, groups))
    return text


def read_state(folder: Path, name: str) -> dict[str, Any]:
    """Read the ``sweep.json`` of a sweep.

    Raises:
        UsageError: If it is missing.
        ValueError: If it is damaged.
    """
    if not (path := folder / STATE_NAME).exists():
        raise UsageError(f"{folder} holds no sweep; start: fastmoco sweep {name}")
    types = {"name": str, "scale": str, "seeds": list}
    return read_json_object(path, types, advice=f"{STATE_ADVICE} {name}")


def shown_measures(definition: Definition, groups: Sequence[Group]) -> list[str]:
    """The measures that the table has columns for."""
    wanted = []
    if Measure.knn in definition.measure:
        wanted.append("knn_top1")
    if Measure.linear in definition.measure:
        wanted.append("linear_top1")
    if definition.trains:
        wanted += ["loss", "chance_loss", "accuracy_top1", "feature_deviation"]
    if Measure.dry_run in definition.measure:
        wanted += ["images_per_second", "peak_gb", "mb_per_image", "hours"]
    if definition.trains:
        wanted.append("seconds")
    settings = {name: {v for group in groups for v in group.values(name)} for name in SETTINGS}
    return wanted + [name for name, values in settings.items() if len(values) > 1]


def default_measure(definition: Definition) -> str:
    """The measure of claims that name none."""
    return "linear_top1" if Measure.linear in definition.measure else "knn_top1"


def cell(group: Group, measure: str) -> str:
    """Mean and deviation of a group's finished runs."""
    mean, deviation, label = group.mean(measure), group.deviation(measure), LABELS[measure]
    if mean is None:
        return ""
    text = f"{mean * label.factor:,.{label.digits}f}"
    constant = measure in (*SETTINGS, "chance_loss")
    if deviation is None or constant:
        return text
    return f"{text} ± {deviation * label.factor:,.{label.digits}f}"


def markdown(
    definition: Definition,
    groups: Sequence[Group],
    state: dict[str, Any],
    plots: Mapping[str, str],
) -> str:
    """The complete page."""
    runs = [run for group in groups for run in group.runs]
    lines = [f"# {definition.about}", ""]
    lines += [f"- {line}" for line in _header(definition, runs, state)]
    lines += ["", *_table_lines(definition, groups), ""]
    lines += [f"- {line}" for line in _endings(groups)]
    lines += [f"- {line}" for line in definition.notes]
    tested = next((run.record.facts.get("test_images", 0) for run in runs), 0)
    named = {group.name: group for group in groups}
    found = judge(definition.published.orderings, named, default_measure(definition), tested)
    lines += _ordering_lines(found)
    for plot, title in plots.items():
        lines += ["", f"![{title}]({plot})"]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _header(definition: Definition, runs: Sequence[RunFigures], state: dict[str, Any]) -> list[str]:
    """Command, data, encoder, device and protocols of the runs."""
    facts = [run.record.facts for run in runs if run.record.facts]

    def all_of(key: str, form: str = "{}") -> str:
        values = dict.fromkeys(str(one[key]) for one in facts if one.get(key) not in (None, ""))
        return form.format(" / ".join(values)) if values else ""

    seeds = ",".join(map(str, state["seeds"]))
    given = " ".join(state.get("settings", []))
    command = f"fastmoco sweep {state['name']} scale={state['scale']} seeds=[{seeds}]"
    lines = [f"`{' '.join(filter(None, [command, given]))}`"]
    if definition.source:
        lines.append(f"Source of the published figures: {definition.source}")
    data = f"{all_of('train_data')}, {all_of('train_images')} images"
    if tested := all_of("test_images"):
        data += f"; tested on {all_of('test_data')}, {tested}"
    lines.append(f"Data: {data}")
    lines += [
        f"Encoder: {all_of('encoder')}, width {all_of('width')}, {all_of('stem')} stem, views of "
        f"{all_of('view_size')} pixels; {all_of('epochs')} epochs, batch "
        f"{all_of('global_batch_size')}",
        f"Device: {all_of('device')}, {all_of('precision')}, torch {all_of('torch')}; "
        f"seeds {seeds}",
    ]
    return lines + _protocols(runs)


def _protocols(runs: Sequence[RunFigures]) -> list[str]:
    """Protocols of the accuracies."""
    lines = []
    found = [run.record.measures for run in runs]
    if knn := next((one["knn"] for one in found if "knn" in one), None):
        lines.append(f"kNN: k = {knn['k']}, T = {knn['temperature']:g}, {knn['features']} features")
    if linear := next((one["linear"] for one in found if "linear" in one), None):
        lines.append(
            f"Linear: protocol {linear['protocol']}, {linear['views']} views, {linear['epochs']} "
            f"epochs, {linear['optimizer']}, {linear['num_train']} labeled images"
        )
    return lines


def _table_lines(definition: Definition, groups: Sequence[Group]) -> list[str]:
    """The table: a row per group, with the published figure in the last column."""
    measures, published = shown_measures(definition, groups), definition.published
    titles = [" x ".join(definition.axes), "n", *(LABELS[measure].title for measure in measures)]
    rows = [[group.name, _count(group), *_cells(group, measures)] for group in groups]
    if published.values:
        titles.append(f"published: {published.about}" if published.about else "published")
        for row, group in zip(rows, groups, strict=True):
            row.append(published.values.get(group.name, ""))
    rule = "|---|" + "---:|" * (len(titles) - 1)
    return [_line(titles), rule, *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in cells)} |"


def _count(group: Group) -> str:
    """Number of finished runs, and of all runs if not all finished."""
    finished, total = len(group.finished), len(group.runs) + len(group.missing)
    return str(finished) if finished == total else f"{finished} of {total}"


def _cells(group: Group, measures: Sequence[str]) -> list[str]:
    if group.finished:
        return [cell(group, measure) for measure in measures]
    failed = [f"failed: {run.record.reason}" for run in group.ended_badly]
    return [*failed, "not run"][:1] + [""] * (len(measures) - 1)


def _endings(groups: Sequence[Group]) -> list[str]:
    """Lines on runs that are missing, failed, diverged or collapsed."""
    lines = []
    for group in groups:
        if group.missing:
            lines.append(f"{group.name}: not run with seed {', '.join(map(str, group.missing))}")
        for run in group.ended_badly:
            record = run.record
            lines.append(f"{group.name}, seed {record.seed} {record.status}: {record.reason}")
        collapsed = [str(run.record.seed) for run in group.finished if is_collapsed(run)]
        if collapsed:
            lines.append(
                f"{group.name}, seed {', '.join(collapsed)} collapsed: at the end all images have "
                "nearly the same embedding (feature deviation)"
            )
    return lines


def _ordering_lines(found: Sequence[Finding]) -> list[str]:
    if not found:
        return []
    lines = [
        "",
        "Published orderings. One shows (or does not) where every seed of one run is above every "
        f"seed of the other, with {LEAST_SEEDS} or more seeds each, no collapsed run among them, "
        f"and accuracies that differ by at least {STANDARD_ERRORS:g} standard errors of a test set "
        "of this size:",
        "",
        "| claim | here | |",
        "|---|---|---|",
    ]
    return lines + [_line([one.claim, one.verdict, one.detail]) for one in found]


def csv_text(definition: Definition, groups: Sequence[Group]) -> str:
    """A row per group: axes, counts, mean and deviation of each measure, published value."""
    measures = [m for m in LABELS if any(group.values(m) for group in groups)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    figures = [f"{measure}_{part}" for measure in measures for part in ("mean", "sd")]
    writer.writerow([*definition.axes, "finished", "failed", "missing", *figures, "published"])
    for group in groups:
        cells: list[object] = [*group.points.values()]
        cells += [len(group.finished), len(group.ended_badly), len(group.missing)]
        for measure in measures:
            cells += [_number(group.mean(measure)), _number(group.deviation(measure))]
        cells.append(definition.published.values.get(group.name, ""))
        writer.writerow(map(spreadsheet_cell, cells))
    return buffer.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
