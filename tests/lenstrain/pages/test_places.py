"""What a report calls its run, and links to: what is there, and belongs to it."""

import json

import pytest

from lenstrain.pages.page import render
from lenstrain.pages.places import Link, add_link, links, run_name


def member(checkpoint, sha="a" * 64):
    return {"checkpoint": str(checkpoint), "checkpoint_sha256": sha}


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        (member("/runs/first/checkpoints/best.pt"), "first"),
        (member("s3://bucket/runs/second/checkpoints/last.pt"), "second"),
        (member("model.pt"), "model.pt"),
        ({"members": [member("/r/a/checkpoints/b.pt"), member("/r/c/checkpoints/b.pt")]}, "a, c"),
        ({"members": [member("/r/a/checkpoints/1.pt"), member("/r/a/checkpoints/2.pt")]}, "a"),
        ({}, "scores"),
    ],
)
def test_a_run_is_called_by_its_folder_or_foreign_scores_by_their_file(metadata, name):
    assert run_name(metadata, "/data/scores.parquet") == name


@pytest.fixture
def run(tmp_path):
    """A run with a probe, an audit beside the report, and a dataset with a name to escape."""
    run = tmp_path / "runs" / "first"
    for folder in (run / "checkpoints", run / "probe", tmp_path / "audit", tmp_path / "d #1"):
        folder.mkdir(parents=True)
    (run / "probe" / "probe.html").touch()
    (run / "probe" / "probe.json").write_text(json.dumps({"checkpoint_sha256": "a" * 64}))
    (tmp_path / "audit" / "audit.html").touch()
    (tmp_path / "audit" / "audit.json").write_text(
        json.dumps({"digests": {"checkpoint": "a" * 64}})
    )
    return member(run / "checkpoints" / "best.pt") | {"dataset": str(tmp_path / "d #1")}


def found(metadata, out):
    return {link.title: link.href for link in links(metadata, out)}


def test_links_lead_to_what_is_there(run, tmp_path):
    assert found(run, tmp_path / "report") == {
        "Run": "../runs/first/",
        "Audit": "../audit/audit.html",
        "Probe": "../runs/first/probe/probe.html",
        "Dataset": "../d%20%231/",
    }


def test_pages_of_another_checkpoint_are_not_linked(run, tmp_path):
    other = run | {"checkpoint_sha256": "b" * 64}
    assert found(other, tmp_path / "report").keys() == {"Run", "Dataset"}
    (tmp_path / "audit" / "audit.json").write_text("[no json")
    (tmp_path / "runs" / "first" / "probe" / "probe.json").write_text("[]")
    assert found(run, tmp_path / "report").keys() == {"Run", "Dataset"}


def test_nothing_is_linked_that_is_not_there_or_lies_in_a_store(run, tmp_path):
    for folder in ("/nowhere/x", "s3://b/runs/x"):
        other = member(f"{folder}/checkpoints/best.pt", sha="c" * 64)
        assert found(other, tmp_path / "report") == {}
    assert found({"dataset": "s3://b/dataset"}, tmp_path / "report") == {}
    assert found(run, "s3://bucket/report") == {}


@pytest.mark.parametrize("before", [[], [Link("Run", "../a&b/"), Link("Audit", "../old.html")]])
def test_a_page_made_after_the_report_is_linked_from_it(tmp_path, before):
    report, audit = tmp_path / "report" / "report.html", tmp_path / "a <b>" / "audit.html"
    for page in (report, audit):
        page.parent.mkdir()
    report.write_text(f"<h1>Ä</h1>\n{render('links.html', {'links': before})}<p>rest</p>")
    add_link(report, "Audit", audit)
    kept = [link for link in before if link.title != "Audit"]
    wanted = render("links.html", {"links": [*kept, Link("Audit", "../a%20%3Cb%3E/audit.html")]})
    assert report.read_text() == f"<h1>Ä</h1>\n{wanted}<p>rest</p>"
    add_link(report, "Audit", audit)
    assert report.read_text() == f"<h1>Ä</h1>\n{wanted}<p>rest</p>"


def test_no_report_or_one_of_another_kind_is_left_alone(tmp_path):
    other = tmp_path / "report.html"
    other.write_text("no links")
    for report in (None, "s3://bucket/report.html", tmp_path / "gone.html", other):
        add_link(report, "Audit", tmp_path / "audit.html")
    assert other.read_text() == "no links"
    assert len([*tmp_path.iterdir()]) == 1
