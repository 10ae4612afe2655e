"""The command line of lensprep: JSON on stdout, one line for an error, exit statuses."""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lensprep.cli import main
from tests.phase4c import tiny_counterfactuals, tiny_table, tiny_tree, write_tree
from tests.widths import assert_fits, at_every_width, set_width


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return tiny_tree(tmp_path_factory.mktemp("src"), 60)


@pytest.fixture(scope="module")
def dataset(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "ds"
    assert run("convert", tree, out, "--workers", 1).exit_code == 0
    return out


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_with_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.stdout
    assert f"lensprep {command}" in result.stdout
    assert "--json" in result.stdout


def test_convert_prints_one_json_object_with_the_agreed_keys(tree, tmp_path):
    result = run("convert", tree, tmp_path / "ds", "--workers", 1, "--json")
    data = json.loads(result.stdout)
    assert {
        "input_rows", "accepted", "filtered", "rejected", "read_again", "splits", "seconds",
        "stamps_per_s", "peak_rss_bytes", "dataset_id",
    } == set(data)  # fmt: skip
    assert data["splits"]["train"].keys() == {"rows", "shards", "classes"}
    assert data["accepted"] == 60


def test_verify_is_ok_and_fails_with_status_1_on_an_altered_shard(tree, tmp_path):
    out = tmp_path / "ds"
    run("convert", tree, out, "--workers", 1)
    good = run("verify", out, "--against", tree, "--workers", 1, "--json")
    assert good.exit_code == 0
    assert {"ok", "shards", "rows", "faults"} <= set(json.loads(good.stdout))
    shard = next((out / "train").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    bad = run("verify", out, "--workers", 1)
    assert bad.exit_code == 1
    assert "train/train-000000.tar, row 0, offset 640: the pixels do not have" in bad.stdout


def test_check_says_ok_and_inspect_shows_the_account(tree, dataset, tmp_path):
    checked = run("check", tree, "--workers", 1, "--json")
    assert checked.exit_code == 0
    assert json.loads(checked.stdout)["verdict"] in ("ok", "warnings")
    shown = run("inspect", dataset, "--sample", 2, "--montage", tmp_path / "m.png")
    assert shown.exit_code == 0, shown.output
    assert "60 input rows = 60 accepted" in shown.stdout
    assert (tmp_path / "m.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads(run("inspect", dataset, "--json").stdout)["dataset_id"]


@at_every_width
def test_tables_fit_the_terminal_and_are_never_cut(tree, dataset, monkeypatch, columns):
    set_width(monkeypatch, columns)
    checked = run("check", tree, "--workers", 1).stdout
    assert_fits(checked, columns, "unresolved_share", "non-lenses", "verdict: ")
    if columns is None:
        assert re.search(r"(?m)^passed +both_classes +Every split has lenses .*\.$", checked)
    shown = run("inspect", dataset, "--sample", 2).stdout
    record = json.loads(run("inspect", dataset, "--sample", 2, "--json").stdout)["record"]
    ids = (record["key"], *(record["sidecar"][name] for name in ("task_id", "source_file")))
    assert_fits(shown, columns, *ids, "wise_brightmask_frac", "theta_e_arcsec")
    assert_fits(run("inspect", dataset).stdout, columns, "wise_brightmask_frac", "non-lens")
    assert_fits(run("verify", dataset, "--workers", 1).stdout, columns, "60 stamps: ok")


def test_counterfactuals_have_lines_of_their_own(tree, tmp_path):
    made = write_tree(tmp_path / "made", tiny_counterfactuals(tiny_table(60), pairs=12))
    checked = run("check", tree, made, "--workers", 1)
    assert "counterfactual_split" in checked.stdout
    done = run("convert", tree, made, tmp_path / "ds", "--workers", 1)
    lines = [line.split() for line in done.stdout.splitlines()]
    expected = ["12", "of", "them", "are", "counterfactuals:", "lensed", "6,", "unlensed", "6"]
    assert lines[lines.index(expected) - 1][:3] == ["train", "44", "stamps"]
    against = ("--against", made, "--against", tree, "--all")
    verified = run("verify", tmp_path / "ds", *against, "--workers", 1)
    assert verified.exit_code == 0, verified.output
    assert "84 stamps, 84 compared with the source: ok" in verified.stdout
    shown = run("inspect", tmp_path / "ds")
    assert "lensed 6, unlensed 6" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "/nowhere"], "no such file or folder"),
        (["convert", "/nowhere", "OUT"], "no such file or folder"),
        (["verify", "/nowhere"], "no such dataset"),
        (["check", "gs://bucket/x"], "gs:// is not read; local paths and s3:// are"),
        (["check", "s3:/bucket/x"], "s3:/bucket/x lacks a slash: write s3://bucket/x"),
        (["check", "TREE", "--fractions", "train=0.9,val=0.2"], "add up to 1, not 1.1"),
        (["convert", "TREE", "OUT", "--max-bad-pixel-frac", "nan"], "must be a number, got nan"),
        (["inspect", "/nowhere"], "/nowhere"),
        (["convert", "TREE", "OUT", "--where", "theta > 1"], "theta"),
        (["convert", "TREE", "OUT", "--clip", "-1"], "clip"),
        (["convert", "TREE", "gs://bucket/x"], "local"),
        (["synth", "OUT", "--rows", "5", "--defect", "typo=0.1"], "typo"),
    ],
)
def test_bad_input_is_one_line_with_status_1(arguments, message, tree, tmp_path):
    names = {"OUT": tmp_path / "out", "TREE": tree}
    result = run(*[names.get(argument, argument) for argument in arguments])
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "DATASET"], "DATASET is a converted dataset. `lensprep inspect` shows what"),
        (["convert", "DATASET", "OUT"], "DATASET is a converted dataset."),
        (["check", "DATASET/val"], "val-000000.parquet is the sidecar of a shard."),
        (["check", "DATASET/val/val-000000.parquet"], "val-000000.parquet is the sidecar of a sh"),
        (["check", "DATASET/val/val-000000.tar"], "val-000000.tar is no parquet file: it does"),
        (["check", "DATASET/rejects.parquet"], "rejects.parquet is a list of rows that were left"),
        (["verify", "TREE"], "TREE has no manifest.json; it is a tree of parquet files. `lensprep"),
        (["inspect", "TREE"], "TREE has no manifest.json; it is a tree of parquet files."),
        (["verify", "DATASET/val"], "DATASET/val lies inside the dataset DATASET. Give that"),
        (["verify", "DATASET/manifest.json"], "manifest.json lies inside the dataset DATASET."),
        (
            ["verify", "DATASET/val/val-000000.tar"],
            "000000.tar lies inside the dataset DATASET.",
        ),
        (["verify", "DATASETS"], "DATASETS: no such dataset. Did you mean DATASET?"),
        (["inspect", "DATASET/val/val-000000.tar", "--split", "test"], "is no shard of test"),
        (["convert", "TREE", "DATASET/manifest.json"], "manifest.json is a file; a folder is"),
        (["convert", "TREE", "DATASET/manifest.json/x"], "manifest.json is a file, so DATASET/"),
        (["convert", "TREE", "OUT", "--work", "DATASET/manifest.json"], "manifest.json is a file"),
        (["synth", "DATASET/manifest.json/x", "--rows", "9"], "manifest.json is a file, so "),
        (["synth", "DATASET", "--rows", "9"], "DATASET is not empty"),
        (["convert", "TREE", "DATASET/val", "--resume"], "no interrupted conversion but other"),
        (["convert", "TREE", "TREE/out"], "TREE/out lies in TREE: the output would be"),
        (["convert", "TREE/region_split=val", "TREE"], "region_split=val lies in TREE"),
        (["convert", "TREE", "OUT", "--work", "TREE/work"], "TREE/work lies in TREE"),
        (["convert", "TREE", "TREE/region_split=val", "OUT"], "region_split=val lies in TREE: its"),
        (["check", "TREE", "TREE"], "TREE is named twice: its rows would come twice. Name it onc"),
        (["convert", "TREE", "OUT", "--drop-column", "ra"], "must have the column ra"),
        (["convert", "TREE", "OUT", "--drop-column", "typo"], "no column 'typo' to leave out"),
    ],
)
def test_what_was_given_is_named_in_one_line(arguments, message, tree, dataset, tmp_path):
    names = {"OUT": str(tmp_path / "out"), "TREE": str(tree), "DATASET": str(dataset)}

    def full(text):
        return re.sub("|".join(names), lambda found: names[found[0]], text)

    result = run(*map(full, arguments))
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert full(message) in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert"],
        ["convert", "a"],
        ["check"],
        ["convert", "a", "b", "--shard-rows", "0"],
        ["check", "a", "--rejects", "x.txt"],
        ["nonsense"],
    ],
)
def test_a_mistake_in_the_command_line_is_status_2(arguments):
    assert run(*arguments).exit_code == 2


def test_synth_with_defects_has_the_fates_of_its_truth_table(tmp_path):
    source, out = tmp_path / "p4c", tmp_path / "ds"
    made = run("synth", source, "--rows", 150, "--seed", 3, "--defects", "--workers", 1)
    assert made.exit_code == 0, made.output
    done = run("convert", source, out, "--workers", 1, "--max-reject-rate", 1, "--json")
    assert done.exit_code == 0, done.output
    truth = pq.read_table(source / "_truth.parquet").to_pylist()
    assert len({row["defect"] for row in truth}) > 10
    place = ("source_file", "source_row_group", "source_row")
    fates = {
        tuple(row[name] for name in place): (row["kind"], row["reason"])
        for row in pq.read_table(out / "rejects.parquet").to_pylist()
    }
    for row in truth:
        if row["defect"] == "duplicate_task":
            continue  # which one of equal rows stays is not the source's to say
        fate = fates.pop((row["file"], row["row_group"], row["row"]), ("accepted", None))
        assert fate[0] == row["outcome"], row
        if fate[0] != "accepted":
            assert fate[1] in row["reason"].split("|"), row
    assert {reason for _, reason in fates.values()} <= {"duplicate_row"}
