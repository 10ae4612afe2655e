"""`lensprep doctor`: what it finds here and in a tree, what it leaves, how it is told."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from lensprep.cli import main
from tests.phase4c import tiny_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return tiny_tree(tmp_path_factory.mktemp("doctor"), 60)


def run(*arguments, columns=80):
    texts = [str(argument) for argument in arguments]
    return CliRunner().invoke(main, texts, env={"COLUMNS": str(columns)}, catch_exceptions=False)


def test_a_tree_is_told_with_the_time_of_its_conversion(tree, tmp_path):
    before = {path: path.read_bytes() for path in tree.rglob("*.parquet")}
    done = run("doctor", tree, "--disk", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert {*report} == {
        "versions", "extras", "machine", "disks", "store", "source", "convert", "findings", "ok"
    }  # fmt: skip
    assert report["ok"]
    source, convert = report["source"], report["convert"]
    assert (source["kind"], source["rows"], sum(source["splits"].values())) == ("tree", 60, 60)
    rate = convert["stamps_per_s_per_worker"] * convert["workers"]
    assert convert["seconds_by"]["processors"] == pytest.approx(60 / rate)
    assert convert["seconds"] == max(convert["seconds_by"].values())
    assert convert["sample"] == "its own rows"
    assert [disk["folder"] for disk in report["disks"]] == [str(tmp_path)]
    assert {path: path.read_bytes() for path in tree.rglob("*.parquet")} == before
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_the_page_is_cut_and_what_is_missing_is_a_problem(tmp_path):
    done = run("doctor", tmp_path / "none", "--disk", tmp_path, columns=60)
    assert done.exit_code == 1
    assert max(map(len, done.stdout.splitlines())) <= 60
    assert "…" not in done.stdout
    words = " ".join(done.stdout.split())
    assert "problem" in words
    assert "none" in words


def test_a_store_is_tried_where_it_was_asked_for_and_not_in_a_source(s3, tmp_path, tree):
    arguments = ("--endpoint-url", s3.server.http, "--disk", tmp_path, "--json")
    for path in tree.rglob("*.parquet"):
        s3.store().write(f"tree/{path.relative_to(tree)}", path.read_bytes())
    names = [entry.name for entry in s3.store().entries()]
    report = json.loads(run("doctor", f"{s3.uri}/tree", *arguments).stdout)
    assert report["ok"], report["findings"]
    assert [trial["name"] for trial in report["store"]["trials"]] == ["list"]
    assert report["source"]["rows"] == 60
    assert "network" in report["convert"]["seconds_by"]
    report = json.loads(run("doctor", "--store", s3.uri, *arguments).stdout)
    trials = {trial["name"]: trial["ok"] for trial in report["store"]["trials"]}
    assert trials == {"list": True, "write": True, "read": True, "delete": True}
    assert [entry.name for entry in s3.store().entries()] == names
