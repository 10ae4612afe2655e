"""The table of columns: nothing missing, nothing superfluous, on terminals of any width."""

import io
import json

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner
from rich.console import Console

from lensprep.checks.columns import column_records, render_columns
from lensprep.checks.finding import leaking
from lensprep.cli import main
from lensprep.source.survey import COLUMNS, DECALS_SURVEY, FAMILY_COLUMNS, TOLD_COLUMNS
from lensprep.source.tree import Source
from lensprep.synth import synthesize
from tests.surveytree import tiny_survey


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A synthetic tree, read back."""
    root = tmp_path_factory.mktemp("synthetic") / "tree"
    synthesize(str(root), rows=24, regions=3, seed=1, workers=1)
    source = Source.open(str(root))
    pieces = [p for file in source.files for p in source.iter_file(file, source.schema.names)]
    return pa.concat_tables(pieces)


def test_the_table_has_the_columns_of_a_tree_and_no_others(rows):
    told = {record["name"]: record["type"] for record in column_records(DECALS_SURVEY)}
    ours = {column.name for column in (*FAMILY_COLUMNS, *TOLD_COLUMNS)}
    assert {name: told[name] for name in told if name not in ours} == {
        field.name: str(field.type) for field in rows.schema
    }


def test_a_tree_keeps_the_rules_of_nulls_that_the_table_tells(rows):
    control = pc.equal(rows["is_control"], 1)
    for column in COLUMNS:
        nulls = rows[column.name].is_null()
        if column.null_rule == "never null":
            assert not pc.any(nulls).as_py(), column.name
        if column.null_rule == "null in controls":
            assert nulls.equals(control), column.name
        if column.controls == "zero":
            assert {*rows.filter(control)[column.name].to_pylist()} == {0}, column.name


def test_every_column_says_what_it_means_and_leaks_as_the_checks_say():
    records = column_records(DECALS_SURVEY)
    assert all(record["meaning"] for record in records)
    names = [record["name"] for record in records if record["leaks"]]
    assert names == leaking(record["name"] for record in records)
    assert {record["name"] for record in records if record["lenses_only"]} <= {*names}


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_nothing_is_cut_at_any_width(width):
    survey = tiny_survey()
    console = Console(file=io.StringIO(), width=width)
    console.print(render_columns(survey))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "…" not in text
    assert "object_id (task_id)" in text
    for column in survey.known_columns:
        assert survey.called(column.name) in text
        assert width > 80 or column.meaning in text


def test_the_command_needs_no_source_and_gives_a_list():
    done = CliRunner().invoke(main, ["check", "--columns", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "survey": "decals",
        "columns": column_records(DECALS_SURVEY),
    }


@pytest.mark.parametrize("words", [[], ["--columns", "tree"]])
def test_a_source_or_the_table_is_asked_for_and_not_both(words):
    done = CliRunner().invoke(main, ["check", *words])
    assert done.exit_code == 2
    assert "Name SRC, or ask for the table of its columns with --columns." in done.output
