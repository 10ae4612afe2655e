"""Tables for people at any width: what is shown, what is left out, and what is never cut."""

import pytest
from rich.console import Group
from rich.text import Text

from lensprep.terminal import print_rich
from lensprep.texttable import TextTable, unbroken

TASK = "d39aee6fd493fa68cb19fb00757569dd89c8657843beabd12659100d1f2a3b4c"
PROSE = "The share of lenses whose arcs no telescope on the ground can resolve, by far too large."


@pytest.fixture
def shown(monkeypatch, capsys):
    def show(renderable, columns=None):
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
        print_rich(renderable)
        lines = capsys.readouterr().out.splitlines()
        assert not any("…" in line or line != line.rstrip() for line in lines)
        return lines

    return show


def table(**named):
    made = TextTable("item", "rows", "share", "detail", prose="detail", **named)
    made.add("unresolved_share", "12,000", "58.6%", PROSE)
    made.add("schema", "7", "1.0%", "Fine.")
    return made


def test_what_is_piped_has_a_line_for_each_row(shown):
    assert shown(table()) == [
        "item                rows  share  detail",
        f"unresolved_share  12,000  58.6%  {PROSE}",
        "schema                 7   1.0%  Fine.",
    ]


def test_prose_is_wrapped_and_columns_are_left_out_only_then(shown):
    lines = shown(table(spare=("share", "rows")), 65)
    assert lines[0].split() == ["item", "rows", "share", "detail"]
    assert max(map(len, lines)) <= 65
    assert " ".join(line[33:] for line in lines[1:-1]) == PROSE
    lines = shown(table(spare=("share", "rows")), 48)
    assert lines[0].split() == ["item", "rows", "detail"]
    assert lines[-1] == "(no room for share)"
    assert shown(table(spare=("share", "rows")), 41)[-1] == "(no room for share, rows)"


def test_the_narrowest_screen_has_a_line_for_each_cell(shown):
    lines = shown(table(spare=("rows",)), 30)
    assert lines[:4] == ["item    unresolved_share", "rows    12,000", "share   58.6%", "detail"]
    assert " ".join(lines[4:]).startswith(PROSE)
    assert max(map(len, lines)) <= 30


@pytest.mark.parametrize("columns", [40, 60, 80, 120, None])
def test_an_id_and_a_path_stay_whole(shown, columns):
    path = f"s3://bucket/phase4c/stamps/{TASK}.parquet"
    made = TextTable("task", "where", prose="where")
    made.add(TASK, f"It lies in {path}: see there.")
    lines = shown(made, columns)
    assert any(TASK in line.split() for line in lines)
    assert any(path in line for line in lines)
    assert shown(unbroken(Text(f"key {TASK} {path}")), columns) == [f"key {TASK} {path}"]


def test_names_from_outside_are_no_markup_and_hold_no_control_characters(shown):
    made = TextTable("name", "n")
    made.add("[bold]a[/]\x1b[31m", "1")
    assert shown(Group(made, Text("\x1b[0mb")))[1:] == ["[bold]a[/]?[31m  1", "?[0mb"]


def test_a_table_without_rows_is_its_headings(shown):
    assert shown(TextTable("a", "b"), 60) == ["a  b"]
