"""Conversion: the account balances, the bytes depend on rows and seed alone, nothing half done."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.convert import rounds
from lensprep.convert.conversion import ConvertConfig, convert
from lensprep.convert.sites import ROW_BYTES
from lensprep.dataset import Dataset
from lensprep.decode import rowgroup
from lensprep.errors import (
    BudgetError,
    ConfigError,
    DatasetError,
    InputError,
    NotFoundError,
    SchemaError,
)
from lensprep.inspection.verify import verify
from lensprep.source.contract import plain_type
from lensprep.source.survey import STAMP_COLUMN
from lensprep.source.tree import Source
from tests.phase4c import (
    set_columns,
    stamp_blob,
    tiny_pixels,
    tiny_table,
    tiny_tree,
    write_tree,
)
from tests.plainuser import PLAIN_USER

CONFIG = ConvertConfig(shard_rows=20, max_reject_rate=1.0)
CONFIG_40 = ConvertConfig(max_reject_rate=1.0)


def digests(root):
    manifest = Dataset.open(root).manifest
    return {s.name: s.sha256 for split in manifest.splits.values() for s in split.shards}


def contents(root):
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def rejects(root):
    return pq.read_table(root / "rejects.parquet").to_pylist()


@pytest.fixture(scope="module")
def table():
    return tiny_table(120)


@pytest.fixture(scope="module")
def tree(table, tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("src"), table)


@pytest.fixture(scope="module")
def dataset(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "ds"
    convert(str(tree), str(out), CONFIG, workers=1)
    return out


def test_every_row_of_a_clean_tree_is_in_the_dataset(tree, table, tmp_path):
    report = convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1)
    assert report["input_rows"] == report["accepted"] == 120
    assert report["filtered"] == report["rejected"] == {}
    dataset = Dataset.open(tmp_path / "ds")
    found = [dataset.read_sidecar(split) for split in ("train", "val", "test")]
    by_id = {row["task_id"]: row for part in found for row in part.to_pylist()}
    assert len(by_id) == 120
    for row in table.drop_columns(["stamp_npz"]).to_pylist():
        got = by_id[row["task_id"]]
        assert {name: got[name] for name in row} == row
        assert got["label"] == (row["lens_model"] != "CONTROL")
    assert verify(str(tmp_path / "ds"), against=str(tree), sample=None)["compared"] == 120
    assert not (tmp_path / "ds" / ".work").exists()


def test_the_stored_pixels_are_what_numpy_gives(tree, table, tmp_path):
    convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1)
    dataset = Dataset.open(tmp_path / "ds")
    side = dataset.read_sidecar("val")
    stored = dataset.read_pixels("val", np.arange(side.num_rows))
    raw = dict(zip(table["task_id"].to_pylist(), tiny_pixels(120), strict=True))
    for row, (task_id, pixels) in enumerate(zip(side["task_id"].to_pylist(), stored, strict=True)):
        x = raw[task_id].reshape(3, -1)
        median = np.median(x, axis=1, keepdims=True)
        scale = np.float32(1.4826) * np.median(np.abs(x - median), axis=1, keepdims=True)
        expected = np.clip((x - median) / scale, -10, 10).astype(np.float16)
        np.testing.assert_array_equal(pixels.reshape(3, -1), expected)
        assert side["median_r"][row].as_py() == median[1, 0]
        assert side["scale_z"][row].as_py() == scale[2, 0]


@pytest.mark.parametrize(
    ("hive", "files", "groups", "workers"), [(True, 5, 3, 1), (False, 1, 1000, 1), (True, 2, 8, 2)]
)
def test_files_row_groups_order_and_workers_do_not_change_the_bytes(
    table, tree, tmp_path, hive, files, groups, workers
):
    convert(str(tree), str(tmp_path / "a"), CONFIG, workers=1)
    order = np.random.default_rng(3).permutation(table.num_rows)
    other = write_tree(
        tmp_path / "src", table.take(order), hive=hive, files_per_split=files, row_group_rows=groups
    )
    convert(str(other), str(tmp_path / "b"), CONFIG, workers=workers)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    first, second = Dataset.open(tmp_path / "a"), Dataset.open(tmp_path / "b")
    assert first.dataset_id == second.dataset_id
    names = [n for n in first.read_sidecar("train").column_names if not n.startswith("source_")]
    assert first.read_sidecar("train", names).equals(second.read_sidecar("train", names))


def with_empty_groups(path):
    """The same rows, with row groups without rows before, between and after them."""
    part = pq.ParquetFile(path).read()
    with pq.ParquetWriter(path, part.schema) as writer:
        for rows in (part.slice(0, 0), part.slice(0, 5), part.slice(0, 0), part.slice(5)):
            writer.write_table(rows)
        writer.write_table(part.slice(0, 0))


def test_row_groups_and_files_without_rows_change_no_byte(tree, dataset, tmp_path):
    source = tmp_path / "src"
    shutil.copytree(tree, source)
    for path in list(source.rglob("*.parquet")):
        with_empty_groups(path)
        empty = pq.ParquetFile(path).schema_arrow.empty_table()
        pq.write_table(empty, path.with_name(f"a-{path.name}"))  # the first, and all of a task
        pq.ParquetWriter(path.with_name(f"z-{path.name}"), empty.schema).close()  # no row group
    report = convert(str(source), str(tmp_path / "b"), CONFIG, workers=1)
    assert report["input_rows"] == report["accepted"] == 120
    assert digests(dataset) == digests(tmp_path / "b")
    assert verify(str(tmp_path / "b"), against=str(source), sample=None, workers=1)["ok"]


@pytest.mark.parametrize(
    ("rows", "splits"),
    [
        ({"region_split": "test"}, {"test": {"0": 10, "1": 10}}),
        ({"region_split": ["train"] * 10 + ["val"] * 10, "cutout_ok": [1] * 10 + [0] * 10},
         {"train": {"0": 5, "1": 5}}),
        ({"lens_model": "SIE", "is_control": 0, "theta_e_arcsec": 1.0, "region_split": "val"},
         {"val": {"0": 0, "1": 20}}),
    ],
    ids=["one split", "a split that is all filtered", "one class"],
)  # fmt: skip
def test_a_split_or_class_without_rows_is_simply_not_there(tmp_path, rows, splits):
    table = set_columns(tiny_table(20), {n: v if isinstance(v, list) else [v] * 20
                                         for n, v in rows.items()})  # fmt: skip
    source = write_tree(tmp_path / "src", table)
    report = convert(str(source), str(tmp_path / "ds"), CONFIG, workers=1)
    assert {name: split["classes"] for name, split in report["splits"].items()} == splits
    assert verify(str(tmp_path / "ds"), against=str(source), workers=1)["ok"]


NUMBERS = (
    pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.date32(), pa.time32("ms"),
    pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.duration("us"), pa.decimal128(10, 2),
    pa.dictionary(pa.int8(), pa.int64()), pa.dictionary(pa.int8(), pa.float64()), pa.null(),
)  # fmt: skip
TEXTS = (
    pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.uint32(), pa.string()),
    pa.binary(), pa.binary_view(), pa.binary(1),
)  # fmt: skip
EXTRA = {
    **{str(kind): pa.array([None if pa.types.is_null(kind) else 1, None], kind)
       for kind in NUMBERS},
    **{str(kind): pa.array(["a", None], kind) for kind in TEXTS},
    "bool": pa.array([True, None]),
    "list": pa.array([["a"], None], pa.list_(pa.string_view())),
    "struct": pa.array([{"x": "a"}, None], pa.struct([("x", pa.string_view())])),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, None], pa.binary(16))),
}  # fmt: skip


def test_extra_columns_of_every_type_come_back_from_the_sidecar(tmp_path):
    """All at once, each column with a value and a null, beside each other in every row."""
    table = tiny_table(2, region_split="val")
    for name, array in EXTRA.items():
        table = table.append_column(f"extra {name}", array)
    (tmp_path / "src").mkdir()
    pq.write_table(table, tmp_path / "src" / "part-0.parquet")
    convert(str(tmp_path / "src"), str(tmp_path / "ds"), CONFIG, workers=1)
    (shard,) = Dataset.open(tmp_path / "ds").split("val").shards
    side = pq.read_table(tmp_path / "ds" / shard.sidecar)
    order = [side["task_id"].to_pylist().index(task_id) for task_id in table["task_id"].to_pylist()]
    for name, array in EXTRA.items():
        plain = array.cast(plain_type(array.type))
        assert side[f"extra {name}"].take(order).to_pylist() == plain.to_pylist(), name
    read = Dataset.open(tmp_path / "ds").read_sidecar("val")
    nested = {f"extra {name}" for name in ("list", "struct", "map")}
    assert {*side.column_names} - {*read.column_names} == nested
    assert verify(str(tmp_path / "ds"), against=str(tmp_path / "src"), workers=1)["ok"]


def test_a_column_without_one_type_is_left_out_only_if_the_user_says_so(table, tmp_path):
    def change(part, name):
        first = "part-00000" in name
        return part.append_column("night", pa.array([1 if first else "1"] * part.num_rows))

    source, out = write_tree(tmp_path / "src", table, change=change), tmp_path / "ds"
    with pytest.raises(SchemaError, match=r"is int64 in .*part-00000.* and string in .*--drop-col"):
        convert(str(source), str(out), CONFIG, workers=1)
    assert not out.exists()
    dropping = ConvertConfig(shard_rows=20, drop_columns=["night"])
    convert(str(source), str(out), dropping, workers=1)
    dataset = Dataset.open(out)
    assert "night" not in dataset.read_sidecar("val").column_names
    assert dataset.manifest.config["drop_columns"] == ["night"]
    assert verify(str(out), against=str(source), workers=1)["ok"]
    again = ConvertConfig(shard_rows=20, drop_columns=("night", "night"))
    convert(str(source), str(out), again, workers=1, resume=True)
    other = ConvertConfig(shard_rows=20, drop_columns=("night", "ebv"))
    with pytest.raises(DatasetError, match=r"was made with drop_columns = \['night'\], not"):
        convert(str(source), str(out), other, workers=1, resume=True)


def test_a_dataset_of_a_version_that_dropped_nothing_may_be_resumed(tree, dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "ds")
    path = tmp_path / "ds" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["config"]["drop_columns"]
    path.write_text(json.dumps(manifest))
    assert convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1, resume=True)["accepted"]


def test_what_a_job_did_not_finish_is_converted_only_if_asked_to_and_said(tree, tmp_path, caplog):
    source, out = tmp_path / "src", str(tmp_path / "ds")
    shutil.copytree(tree, source)
    (source / "_temporary" / "0").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds _temporary: the job .*did not finish"):
        convert(str(source), out, CONFIG, workers=1)
    convert(str(source), out, ConvertConfig(skip_bad_files=True), workers=1)
    assert "did not finish, and rows may be missing" in caplog.text
    assert Dataset.open(out).manifest.source["unfinished"] == "_temporary"


def test_small_runs_and_batches_do_not_change_the_bytes(tree, tmp_path, monkeypatch):
    convert(str(tree), str(tmp_path / "a"), CONFIG, workers=1)
    monkeypatch.setattr(rounds, "RUN_ROWS", 7)
    monkeypatch.setattr(rowgroup, "BATCH_ROWS", 6)
    monkeypatch.setattr(rowgroup, "READ_ROWS", 3)
    monkeypatch.setattr(rowgroup, "BLOB_ROWS", 2)
    monkeypatch.setattr("lensprep.convert.conversion.RUN_ROWS", 7)
    convert(str(tree), str(tmp_path / "b"), CONFIG, workers=1)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_another_seed_is_another_shuffle_of_the_same_rows(tree, tmp_path):
    for seed in (0, 1):
        config = ConvertConfig(seed=seed, shard_rows=20)
        convert(str(tree), str(tmp_path / str(seed)), config, workers=1)
    keys = [
        Dataset.open(tmp_path / str(s)).read_sidecar("train", ["key"])["key"].to_pylist()
        for s in (0, 1)
    ]
    assert keys[0] != keys[1]
    assert sorted(keys[0]) == sorted(keys[1])


def test_the_account_names_every_row_that_stays_out(tmp_path):
    rows = 60
    table = tiny_table(rows)
    good = tiny_pixels(rows)
    blobs = table["stamp_npz"].to_pylist()
    models, cutout = table["lens_model"].to_pylist(), [1] * rows
    frac = [0.1] * rows
    nan = good[2].copy()
    nan[1, 5, 5] = np.nan
    flat = good[3].copy()
    flat[2] = 0.25
    planted = {
        0: "null_blob", 1: "empty_blob", 2: "nonfinite", 3: "constant_band", 4: "missing_band",
        5: "unknown_label", 6: "label_conflict", 7: "cutout_not_ok", 8: "max_bad_pixel_frac",
        9: "crc_mismatch", 10: "not_zip",
    }  # fmt: skip
    blobs[0], blobs[1], blobs[2], blobs[3] = None, b"", stamp_blob(nan), stamp_blob(flat)
    blobs[4] = stamp_blob(good[4, :2], ("r", "z"))
    models[5], models[6], cutout[7], frac[8] = "UNK", "SIE", 0, 0.5
    damaged = bytearray(blobs[9])
    damaged[damaged.index(b"PK\x01\x02") + 16] ^= 0xFF  # the CRC-32 in the directory
    blobs[9], blobs[10] = bytes(damaged), good[10].tobytes()
    tree = tiny_tree(
        tmp_path, rows, stamp_npz=blobs, lens_model=models, cutout_ok=cutout, bad_pixel_frac=frac
    )
    config = ConvertConfig(max_bad_pixel_frac=0.2, max_reject_rate=1.0)
    report = convert(str(tree), str(tmp_path / "ds"), config, workers=1)
    ids = table["task_id"].to_pylist()
    assert {r["task_id"]: r["reason"] for r in rejects(tmp_path / "ds")} == {
        ids[row]: reason for row, reason in planted.items()
    }
    kept_out = sum(report["filtered"].values()) + sum(report["rejected"].values())
    assert report["input_rows"] == 60 == report["accepted"] + kept_out
    assert report["filtered"] == {"cutout_not_ok": 1, "max_bad_pixel_frac": 1}
    account = Dataset.open(tmp_path / "ds").manifest.account
    cells = [cell for split in account["splits"].values() for cell in split.values()]
    for total in ("input_rows", "accepted"):
        assert sum(cell[total] for cell in cells) == account[total]
    for row in rejects(tmp_path / "ds"):
        source = pq.ParquetFile(tree / row["source_file"])
        group = source.read_row_group(row["source_row_group"], ["task_id"])
        assert group["task_id"][row["source_row"]].as_py() == row["task_id"]
    assert verify(str(tmp_path / "ds"), against=str(tree))["ok"]


def test_a_row_that_is_there_twice_gets_in_once(tmp_path):
    table = tiny_table(40)
    doubled = pa.concat_tables([table, table.slice(3, 2), table.slice(3, 1)])
    tree = write_tree(tmp_path / "a", doubled)
    report = convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1)
    assert report["accepted"] == 40
    assert report["rejected"] == {"duplicate_row": 3}
    mixed = doubled.take(np.random.default_rng(0).permutation(doubled.num_rows))
    other = write_tree(tmp_path / "b", mixed, files_per_split=3)
    convert(str(other), str(tmp_path / "ds2"), CONFIG, workers=1)
    assert digests(tmp_path / "ds") == digests(tmp_path / "ds2")
    assert verify(str(tmp_path / "ds"))["ok"]


@pytest.mark.parametrize("resume", [False, True])
def test_too_many_rejects_commit_nothing_and_a_higher_rate_goes_on(tmp_path, monkeypatch, resume):
    blobs = tiny_table(40)["stamp_npz"].to_pylist()
    blobs[5] = blobs[6] = b""
    tree = tiny_tree(tmp_path, 40, stamp_npz=blobs)
    out = tmp_path / "ds"
    said = (
        r"at least 2 of 40 rows are rejected \(empty_blob 2\), more than --max-reject-rate 0.01; "
        r".*The first: region_split=\w+/part-\S+, row group 0, row \d: empty_blob; \S+, row group "
        r"0, row \d: empty_blob\. `lensprep check \S+ --rejects FILE.csv` lists them all\."
    )
    with pytest.raises(BudgetError, match=said):
        convert(str(tree), str(out), ConvertConfig(), workers=1)
    with pytest.raises(DatasetError, match="did not finish"):
        Dataset.open(out)
    config = ConvertConfig(max_reject_rate=0.1)
    monkeypatch.setattr("lensprep.convert.workfolder.write_run", None)  # what is done is kept
    assert convert(str(tree), str(out), config, workers=1, resume=resume)["accepted"] == 38


@pytest.mark.parametrize("resume", [False, True])
def test_after_a_conversion_that_accepted_nothing_the_corrected_one_works(tree, tmp_path, resume):
    out = tmp_path / "ds"
    with pytest.raises(BudgetError, match=r"No row of 120 was accepted \(where 120\)"):
        convert(str(tree), str(out), ConvertConfig(where="ra > 1000"), workers=1)
    convert(str(tree), str(out), CONFIG, workers=1, resume=resume)
    convert(str(tree), str(tmp_path / "whole"), CONFIG, workers=1)
    assert contents(out) == contents(tmp_path / "whole")


def test_shards_of_a_conversion_that_failed_are_gone_in_the_corrected_one(tmp_path):
    """Rows that are there twice are found only when the shards are written."""
    doubled = pa.concat_tables([tiny_table(40), tiny_table(40)])
    tree, out = write_tree(tmp_path / "src", doubled), tmp_path / "ds"
    with pytest.raises(BudgetError, match=r"duplicate_row 40\).*them all but duplicates\."):
        convert(str(tree), str(out), ConvertConfig(shard_rows=4), workers=1)
    assert len(list(out.rglob("*.tar"))) > 6
    convert(str(tree), str(out), CONFIG, workers=1)
    convert(str(tree), str(tmp_path / "whole"), CONFIG, workers=1)
    assert contents(out) == contents(tmp_path / "whole")


def test_what_goes_on_after_it_failed_is_protected_again(tmp_path):
    tree = tiny_tree(tmp_path, 40, stamp_npz=[b"", *tiny_table(40)["stamp_npz"].to_pylist()[1:]])
    out = tmp_path / "ds"
    with pytest.raises(BudgetError, match="1 of 40"):
        convert(str(tree), str(out), ConvertConfig(), workers=1)
    with pytest.raises(KeyboardInterrupt):
        convert(str(tree), str(out), CONFIG_40, workers=1, progress=interrupt)
    other = ConvertConfig(seed=9, max_reject_rate=1.0)
    with pytest.raises(DatasetError, match="Add --resume"):
        convert(str(tree), str(out), other, workers=1)
    with pytest.raises(DatasetError, match="begun with seed = 0, not 9"):
        convert(str(tree), str(out), other, workers=1, resume=True)
    assert convert(str(tree), str(out), CONFIG_40, workers=1, resume=True)["accepted"] == 39


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p / "none", InputError, "no such file or folder"),
        (lambda p: p, InputError, "holds no .parquet file"),
        (
            lambda p: tiny_tree(p, 12, change=lambda t, _: t.drop_columns(["psfsize_r"])),
            SchemaError,
            "column psfsize_r is missing",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, make, error, message):
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    with pytest.raises(error, match=message) as caught:
        convert(str(source), str(tmp_path / "ds"), workers=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ds").exists()


def test_a_bad_where_is_told_before_anything_is_made(tree, tmp_path):
    config = ConvertConfig(where="theta_e_arcsecs >= 0.5")
    with pytest.raises(ConfigError, match="theta_e_arcsec"):
        convert(str(tree), str(tmp_path / "ds"), config, workers=1)
    assert not (tmp_path / "ds").exists()


def test_the_work_folder_may_hold_the_source_too(tree, dataset, tmp_path):
    convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1, work=str(tree.parent))
    assert digests(tmp_path / "ds") == digests(dataset)


def test_a_folder_that_holds_something_is_refused(tree, tmp_path):
    out = tmp_path / "ds"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(DatasetError, match="conversion but other files"):
        convert(str(tree), str(out), workers=1, resume=True)
    assert (out / "thesis.tex").read_text() == "precious"


def test_a_finished_dataset_is_not_overwritten(tree, tmp_path):
    out = tmp_path / "ds"
    convert(str(tree), str(out), CONFIG, workers=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(DatasetError, match="finished dataset already"):
        convert(str(tree), str(out), CONFIG, workers=1)
    other = ConvertConfig(shard_rows=20, max_reject_rate=1.0, seed=9)
    with pytest.raises(DatasetError, match="made with seed = 0, not 9"):
        convert(str(tree), str(out), other, workers=1, resume=True)
    less = write_tree(tmp_path / "src", tiny_table(60))
    with pytest.raises(DatasetError, match="finished dataset of other source files"):
        convert(str(less), str(out), CONFIG, workers=1, resume=True)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("text", ["", "x", "3", "[1]"])
def test_a_plan_that_is_none_is_told(tree, tmp_path, text, resume):
    (tmp_path / "ds" / ".work").mkdir(parents=True)
    (tmp_path / "ds" / ".work" / "plan.json").write_text(text)
    with pytest.raises(DatasetError, match=r"plan\.json that is not the plan of a conversion"):
        convert(str(tree), str(tmp_path / "ds"), ConvertConfig(), workers=1, resume=resume)


def test_resume_of_what_is_finished_is_done(tree, tmp_path, monkeypatch):
    out = tmp_path / "ds"
    first = convert(str(tree), str(out), CONFIG, workers=1, resume=True)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr("lensprep.convert.conversion.run_rows", None)  # nothing is read again
    again = convert(str(tree), str(out), CONFIG, workers=1, resume=True)
    clock = ("seconds", "stamps_per_s", "peak_rss_bytes")
    assert {k: v for k, v in again.items() if k not in clock} == {
        k: v for k, v in first.items() if k not in clock
    }
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_resume_repeats_nothing_and_refuses_another_configuration(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("lensprep.convert.conversion.RUN_ROWS", 16)
    convert(str(tree), str(tmp_path / "whole"), CONFIG, workers=1)
    out = tmp_path / "ds"
    seen = []

    def stop(phase, done, total):
        seen.append(phase)
        if phase == "shards" and seen.count("shards") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(str(tree), str(out), CONFIG, workers=1, progress=stop)
    with pytest.raises(DatasetError, match="Add --resume"):
        convert(str(tree), str(out), CONFIG, workers=1)
    changed = ConvertConfig(shard_rows=20, max_reject_rate=1.0, seed=9)
    with pytest.raises(DatasetError, match="begun with seed = 0, not 9"):
        convert(str(tree), str(out), changed, workers=1, resume=True)
    done = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.suffix in (".dat", ".tar")}
    # A second run of any first-round task fails.
    monkeypatch.setattr("lensprep.convert.workfolder.write_run", None)
    convert(str(tree), str(out), CONFIG, workers=1, resume=True)
    assert digests(out) == digests(tmp_path / "whole")
    assert all(p.stat().st_mtime_ns == t for p, t in done.items() if p.exists())


def test_resume_refuses_a_source_that_changed(tree, tmp_path):
    source = tmp_path / "src"
    shutil.copytree(tree, source)

    def stop(phase, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(str(source), str(tmp_path / "ds"), CONFIG, workers=1, progress=stop)
    next(source.rglob("*.parquet")).unlink()
    with pytest.raises(DatasetError, match="other source files"):
        convert(str(source), str(tmp_path / "ds"), CONFIG, workers=1, resume=True)


def test_a_corrupt_row_group_stops_the_run_or_is_left_out_whole(table, tmp_path):
    tree = write_tree(tmp_path / "src", table, files_per_split=2, row_group_rows=10)
    victim = sorted(tree.rglob("*.parquet"))[0]
    metadata = pq.read_metadata(victim)
    column = metadata.row_group(1).column(metadata.schema.names.index("stamp_npz"))
    with victim.open("r+b") as file:
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(b"\xff" * 16)  # the header of the column's first page
    with pytest.raises(InputError, match=r"row group 1 cannot be read.*--skip-bad-files"):
        convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1)
    config = ConvertConfig(shard_rows=20, max_reject_rate=1.0, skip_bad_files=True)
    report = convert(str(tree), str(tmp_path / "ds2"), config, workers=1)
    lost = metadata.row_group(1).num_rows
    assert report["rejected"] == {"unreadable": lost}
    assert report["accepted"] == 120 - lost
    assert {r["source_row_group"] for r in rejects(tmp_path / "ds2")} == {1}
    assert verify(str(tmp_path / "ds2"))["ok"]


def test_a_disk_that_is_too_small_is_told_before_the_work(tree, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 2 * 120 * ROW_BYTES - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(BudgetError, match=r"takes up to 6\.6 MB of disk .* but 6\.6 MB are free"):
        convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1)
    assert not (tmp_path / "ds").exists()


def test_a_long_task_id_is_rejected_and_not_cut(tmp_path):
    table = tiny_table(20)
    ids = table["task_id"].to_pylist()
    ids[4] = "x" * 600
    tree = tiny_tree(tmp_path, 20, task_id=ids)
    report = convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1)
    assert report["rejected"] == {"long_metadata": 1}


def test_null_split_or_region_is_a_reject(tmp_path):
    split = ["train", None, "validation", *["train"] * 17]
    region = [*range(19), None]
    tree = tiny_tree(tmp_path, 20, hive=False, region_split=split, region_id=region)
    report = convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1)
    assert report["rejected"] == {"missing_region": 1, "unknown_split": 2}


def test_where_filters_and_is_counted_by_class(tree, table, tmp_path):
    config = ConvertConfig(shard_rows=20, where="theta_e_arcsec == 0 or theta_e_arcsec >= 0.6")
    report = convert(str(tree), str(tmp_path / "ds"), config, workers=1)
    small = int((np.array(table["theta_e_arcsec"]) == 0.3).sum())
    assert report["filtered"] == {"where": small}
    account = Dataset.open(tmp_path / "ds").manifest.account["splits"]
    assert sum(s["1"]["filtered"].get("where", 0) for s in account.values()) == small


def test_a_shard_is_a_random_sample_of_its_split(tmp_path):
    from scipy.stats import chi2_contingency

    table = tiny_table(600, regions=8)
    convert(
        str(write_tree(tmp_path / "src", table, files_per_split=3, row_group_rows=20)),
        str(tmp_path / "ds"),
        ConvertConfig(shard_rows=75),
        workers=1,
    )
    dataset = Dataset.open(tmp_path / "ds")
    parts = [dataset.read_shard_sidecar(shard) for shard in dataset.split("train").shards]
    assert len(parts) == 4
    for column in ("region_id", "source_file", "label"):
        values = sorted({v for part in parts for v in part[column].to_pylist()})
        counts = [[part[column].to_pylist().count(v) for v in values] for part in parts]
        assert chi2_contingency(counts).pvalue > 1e-3, column
    first = parts[0].slice(0, parts[0].num_rows // 2)["source_row"].to_numpy()
    second = parts[0].slice(parts[0].num_rows // 2)["source_row"].to_numpy()
    assert abs(first.mean() - second.mean()) < 4 * first.std() / np.sqrt(len(first) / 2)


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
        ("key", lambda values: values[0], r"the key \S+ is that of row 0 too"),
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


def test_an_error_in_a_worker_keeps_its_words(tree, tmp_path):
    source = tmp_path / "src"
    shutil.copytree(tree, source)
    victim = sorted(source.rglob("*.parquet"))[0]
    with pytest.raises(NotFoundError, match=rf"{victim}, row group 0: no such file"):
        convert(
            str(source),
            str(tmp_path / "ds"),
            CONFIG,
            workers=2,
            announce=lambda *_: victim.unlink(),
        )
    assert not (tmp_path / "ds" / "manifest.json").exists()


def test_killed_between_commit_and_clean_up_is_finished_by_resume(tree, tmp_path, monkeypatch):
    out = tmp_path / "ds"
    with monkeypatch.context() as patch:
        patch.setattr("lensprep.convert.conversion.release", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(str(tree), str(out), CONFIG, workers=1)
    assert (out / ".work").exists()
    first = Dataset.open(out)
    again = convert(str(tree), str(out), CONFIG, workers=1, resume=True)
    assert again["dataset_id"] == first.dataset_id
    assert not (out / ".work").exists()
    assert verify(str(out))["ok"]


def interrupt(*_):
    raise KeyboardInterrupt


def test_of_two_that_begin_at_once_one_is_refused(tree, tmp_path, monkeypatch):
    out = tmp_path / "ds"

    def other_begins(*_):
        with monkeypatch.context() as patch:
            patch.setattr("lensprep.convert.conversion._first_round", interrupt)
            with pytest.raises(KeyboardInterrupt):
                convert(str(tree), str(out), CONFIG, workers=1)

    with pytest.raises(DatasetError, match="has just begun"):
        convert(str(tree), str(out), CONFIG, workers=1, announce=other_begins)
    assert convert(str(tree), str(out), CONFIG, workers=1, resume=True)["accepted"] == 120


def test_the_work_may_lie_elsewhere_and_is_found_again(tree, tmp_path, monkeypatch):
    out, work = tmp_path / "ds", tmp_path / "work"
    with monkeypatch.context() as patch:
        patch.setattr("lensprep.convert.conversion._second_round", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(str(tree), str(out), CONFIG, workers=1, work=str(work))
    assert [p.name for p in out.rglob("*") if p.is_file()] == ["plan.json"]
    (folder,) = work.iterdir()
    assert list(folder.glob("run-*.dat"))
    with pytest.raises(DatasetError, match="Resume without --work"):
        convert(str(tree), str(out), CONFIG, workers=1, work=str(tmp_path), resume=True)
    with monkeypatch.context() as patch:
        patch.setattr("lensprep.convert.workfolder.write_run", None)
        convert(str(tree), str(out), CONFIG, workers=1, resume=True)
    assert list(work.iterdir()) == []
    convert(str(tree), str(tmp_path / "whole"), CONFIG, workers=1)
    assert digests(out) == digests(tmp_path / "whole")


def test_a_copy_is_kept_only_of_what_is_elsewhere(tree, tmp_path):
    with pytest.raises(ConfigError, match="object store"):
        convert(str(tree), str(tmp_path / "ds"), CONFIG, keep_local=str(tmp_path / "kept"))


def test_a_seed_of_numpy_is_a_plain_number_in_plan_and_manifest():
    config = ConvertConfig(seed=np.int64(3), clip=np.float32(5), skip_bad_files=np.bool_(True))
    assert json.dumps(config.identity) == json.dumps(ConvertConfig(seed=3, clip=5.0).identity)
    assert config.skip_bad_files is True
    for options in ({"seed": 1.5}, {"shard_rows": True}, {"normalize": "MAD"}):
        with pytest.raises(ConfigError):
            ConvertConfig(**options)
