"""What the report writes beside the page."""

from __future__ import annotations

import csv

from lensprep.tables.reader import read_table
from lenstrain.pages.files import write_csv


def test_no_cell_of_a_csv_is_a_formula_and_all_of_it_comes_back(tmp_path):
    names = ["=cmd|' /C calc'!A0", "@SUM(1+1)", "-1+1", "J12+5", "'quoted'"]
    numbers = [-1.5, 2.0, float("nan"), 1e-7, 3.0]
    write_csv(tmp_path / "x.csv", {"name": names, "=logit": numbers})
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["name", "'=logit"]
    assert [row[0] for row in rows] == [f"'{name}" if name[0] != "J" else name for name in names]
    assert [row[1] for row in rows] == ["-1.5", "2.0", "", "1e-07", "3.0"]
    found = read_table(tmp_path / "x.csv").table
    assert found["name"].to_pylist() == names
    assert found["=logit"].to_pylist() == [-1.5, 2.0, None, 1e-7, 3.0]
