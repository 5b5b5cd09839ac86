"""CSV lists that people open hold no formulas, and our readers give back the text."""

import csv

from hypothesis import example, given
from hypothesis import strategies as st

from fastmoco.data.quarantine import write_quarantine
from fastmoco.data.sources.tables import read_table
from fastmoco.labeling.request_files import _write_csv
from fastmoco.parsing import plain_cell, spreadsheet_cell
from fastmoco.report.recorded import _table

FORMULAS = ["=1+1", '=cmd|" /C calc"!A0', "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-x"]
PLAIN = ["cat/1.jpg", "'cat'", "", "a=1", "-1.5", "+0.2", "-nan", 3, -1.5, None]


@given(st.text(alphabet="'=+-@\t\ra1.e "))
@example("'")
def test_text_comes_back(text: str) -> None:
    assert plain_cell(str(spreadsheet_cell(text))) == text


def test_no_cell_begins_as_a_formula_does_and_others_stay() -> None:
    assert [spreadsheet_cell(cell) for cell in FORMULAS] == [f"'{cell}" for cell in FORMULAS]
    assert [spreadsheet_cell(cell) for cell in PLAIN] == PLAIN


def test_lists_are_quoted_and_read_back(tmp_path) -> None:
    left_out, chosen = tmp_path / "x.quarantine.csv", tmp_path / "request.csv"
    write_quarantine(left_out, [(name, "-- cut") for name in FORMULAS])
    _write_csv(chosen, {"sample_id": range(len(FORMULAS)), "path": FORMULAS})
    assert _table(left_out) == [[name, "-- cut"] for name in FORMULAS]
    assert read_table(chosen, ["path"]).columns["path"] == FORMULAS
    for path in (left_out, chosen):
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
