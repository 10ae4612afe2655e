"""Verification names what was altered, and what the source says otherwise."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.convert import convert
from lensprep.dataset import Dataset
from lensprep.errors import InputError
from lensprep.inspection.verify import verify
from lensprep.source.survey import STAMP_COLUMN
from lensprep.source.tree import Source
from tests.lensprep.convert.conversions import CONFIG
from tests.phase4c import set_columns, tiny_table, write_tree
from tests.plainuser import PLAIN_USER


def test_verify_names_what_was_altered(tree, tmp_path):
    convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1)
    root = tmp_path / "ds"
    shard = Dataset.open(root).split("train").shards[1]
    with (root / shard.name).open("r+b") as file:
        file.seek(26624 + 640 + 50)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    (root / "train" / "extra.tar").write_bytes(b"?")
    result = verify(str(root), workers=1)
    assert not result["ok"]
    whats = {(f["file"], f["row"]): f["what"] for f in result["faults"]}
    assert "SHA-256" in whats[shard.name, None]
    assert "CRC-32" in whats[shard.name, 1]
    assert "not named by the manifest" in whats["train/extra.tar", None]


def test_what_could_not_be_read_contradicts_no_count(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "ds")
    (tmp_path / "ds" / "val" / "val-000000.tar").unlink()
    result = verify(str(tmp_path / "ds"), workers=1)
    assert [(fault["file"], fault["what"]) for fault in result["faults"]] == [
        ("val/val-000000.tar", "is missing")
    ]


def test_the_source_is_looked_for_before_the_dataset_is_read(dataset, tmp_path):
    def progress(*_):
        raise AssertionError("read already")

    with pytest.raises(InputError, match="no such file"):
        verify(str(dataset), against=str(tmp_path / "none"), workers=1, progress=progress)


def side_altered(dataset, folder, column, change):
    """A copy in which one column of the sidecar of val is another; its first shard's tar stays."""
    shutil.copytree(dataset, folder)
    shard = Dataset.open(dataset).split("val").shards[0]
    path = folder / shard.sidecar
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[1] = change(values)
    place = table.schema.get_field_index(column)
    array = pa.array(values, table.schema.field(place).type)
    pq.write_table(table.set_column(place, table.schema.field(place), array), path)
    text = (folder / "manifest.json").read_text()
    for old, new in (
        (shard.sidecar_sha256, hashlib.sha256(path.read_bytes()).hexdigest()),
        (f'"sidecar_bytes": {shard.sidecar_bytes}', f'"sidecar_bytes": {path.stat().st_size}'),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "manifest.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("column", "change", "what"),
    [
        ("source_row", lambda values: 999, "the source has no such row"),
        ("task_id", lambda values: "another", r"that is the object \S+, not another"),
        ("key", lambda values: values[0], r"the key \S+ is also that of row 0"),
    ],
)
def test_verify_says_what_a_row_contradicts(tree, dataset, tmp_path, column, change, what):
    altered = side_altered(dataset, tmp_path / "ds", column, change)
    result = verify(str(altered), against=str(tree), sample=None, workers=1)
    assert any(re.search(what, fault["what"]) for fault in result["faults"]), result["faults"]


def test_verify_says_that_only_the_pixels_differ_or_that_a_stamp_is_damaged(
    table, tree, dataset, tmp_path
):
    blobs = table[STAMP_COLUMN].to_pylist()
    blobs[0], blobs[1] = blobs[1], blobs[1][:100]
    other = set_columns(table, {STAMP_COLUMN: blobs})
    source = write_tree(tmp_path / "other", other)
    shutil.copytree(dataset, tmp_path / "ds")
    path = tmp_path / "ds" / "manifest.json"
    before = Dataset.open(dataset).manifest.source["digest"]
    path.write_text(path.read_text().replace(before, Source.open(source).digest()))
    result = verify(str(tmp_path / "ds"), against=str(source), sample=None, workers=1)
    whats = " ".join(fault["what"] for fault in result["faults"])
    assert len(result["faults"]) == 2
    assert "the pixels differ" in whats
    assert "its stamp cannot be decoded (" in whats


def test_a_source_file_that_is_cut_is_not_missing(tree, dataset, tmp_path):
    shutil.copytree(tree, tmp_path / "other")
    victim = sorted((tmp_path / "other").rglob("*.parquet"))[0]
    victim.write_bytes(victim.read_bytes()[:1000])
    result = verify(str(dataset), against=str(tmp_path / "other"), sample=None, workers=1)
    (fault,) = result["faults"]
    assert re.search(r"files that cannot be read: 1 \(\S+: it begins .*it is cut\)", fault["what"])
    assert "missing" not in fault["what"]


def test_a_file_that_may_not_be_read_is_neither_damaged_nor_left_out(tree, dataset, tmp_path):
    for name, whole in (("src", tree), ("ds", dataset)):
        shutil.copytree(whole, tmp_path / name)
    victim = sorted((tmp_path / "src").rglob("*.parquet"))[0]
    shard = tmp_path / "ds" / "val" / "val-000000.tar"
    for path in (victim, shard):
        path.chmod(0)
    lines = {}
    for command, *arguments in (
        ["convert", tmp_path / "src", tmp_path / "out", "--skip-bad-files"],
        ["verify", tmp_path / "ds", "--workers", "1"],
    ):
        done = subprocess.run(
            [*PLAIN_USER, sys.executable, "-m", "lensprep", command, *map(str, arguments)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        lines[command] = (done.stdout + done.stderr).splitlines()
    assert lines["convert"] == [f"Error: {victim} cannot be read: Permission denied."]
    assert lines["verify"][0] == "val/val-000000.tar: cannot be read: Permission denied"
    assert len(lines["verify"]) == 2


def other_rows(folder, tree):
    return write_tree(folder, tiny_table(120, seed=1))


def a_file_renamed(folder, tree):
    shutil.copytree(tree, folder)
    next((folder / "region_split=val").glob("part-00000*")).rename(
        folder / "region_split=val" / "part-7.parquet"
    )
    return folder


def packed_anew(folder, tree):
    shutil.copytree(tree, folder)
    path = next((folder / "region_split=val").glob("part-00000*"))
    pq.write_table(pq.ParquetFile(path).read(), path, row_group_size=8, compression="none")
    return folder


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (other_rows, r"files with other rows: 6 \(region_split=test/part-00000\S+, \S+, ...\)\."),
        (a_file_renamed, r"files that are missing: 1 \(region_split=val/part-00000\S*\); files "
                         r"that gave no stamp to the dataset: 1 \(region_split=val/part-7\S*\)\."),
        (packed_anew, r"Every row that was compared is the same\."),
    ],
)  # fmt: skip
def test_verify_tells_another_source_in_one_fault(tree, dataset, tmp_path, change, difference):
    other = change(tmp_path / "other", tree)
    result = verify(str(dataset), against=str(other), sample=None, workers=1)
    assert not result["ok"]
    (fault,) = result["faults"]
    assert fault["file"] == "manifest.json"
    stated = rf"names another source than {other}: {tree} with 6 files, 120 rows, \d+ bytes, not 6"
    assert re.fullmatch(rf"{stated} files, 120 rows, \d+ bytes\. {difference}", fault["what"])


def test_rows_altered_in_place_are_counted_beyond_the_first_few(tree, dataset, tmp_path):
    """Same files, sizes and rows: by its listing it is the source."""
    shutil.copytree(dataset, tmp_path / "ds")
    path = tmp_path / "ds" / "manifest.json"
    other = other_rows(tmp_path / "other", tree)
    manifest = json.loads(path.read_text())
    manifest["source"]["digest"] = Source.open(other).digest()
    path.write_text(json.dumps(manifest))
    result = verify(str(tmp_path / "ds"), against=str(other), sample=None, workers=1)
    whats = [fault["what"] for fault in result["faults"]]
    # Two files of train gave 30 rows each.
    assert whats.count("and 10 more faults") == 2
    assert len(whats) == 2 * 21 + 60
