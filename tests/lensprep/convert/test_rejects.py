"""Rows that stay out: each with its reason, and not too many."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.convert import ConvertConfig, convert
from lensprep.dataset import Dataset
from lensprep.errors import BudgetError, DatasetError, InputError
from lensprep.inspection.verify import verify
from tests.lensprep.convert.conversions import CONFIG, contents, digests, rejects
from tests.phase4c import stamp_blob, tiny_pixels, tiny_table, tiny_tree, write_tree


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
    assert verify(str(tmp_path / "ds"), against=str(tree), workers=1)["ok"]


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
    assert verify(str(tmp_path / "ds"), workers=1)["ok"]


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
    monkeypatch.setattr("lensprep.convert.workfolder.write_run", None)  # finished work is kept
    assert convert(str(tree), str(out), config, workers=1, resume=resume)["accepted"] == 38


@pytest.mark.parametrize("resume", [False, True])
def test_after_a_conversion_that_accepted_nothing_the_corrected_one_works(tree, tmp_path, resume):
    out = tmp_path / "ds"
    with pytest.raises(BudgetError, match=r"None of 120 rows was accepted \(where 120\)"):
        convert(str(tree), str(out), ConvertConfig(where="ra > 1000"), workers=1)
    convert(str(tree), str(out), CONFIG, workers=1, resume=resume)
    convert(str(tree), str(tmp_path / "whole"), CONFIG, workers=1)
    assert contents(out) == contents(tmp_path / "whole")


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
    assert verify(str(tmp_path / "ds2"), workers=1)["ok"]


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
