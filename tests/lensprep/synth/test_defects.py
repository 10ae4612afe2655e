"""Planted defects: each is found for what the truth says it is, and nothing else is."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lensprep.decode.reasons import RejectReason
from lensprep.decode.stampnpz import decode_batch
from lensprep.errors import ConfigError
from lensprep.source.contract import filter_rows, label_rows
from lensprep.source.tree import Source
from lensprep.synth import DEFAULT_RATES, synthesize
from lensprep.synth.defects import DEFECTS, plan_defects

ROWS = 300


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("synth") / "tree"
    summary = synthesize(out, rows=ROWS, seed=3, workers=1, defects=DEFAULT_RATES)
    return out, summary, pq.read_table(out / "_truth.parquet").to_pylist()


@pytest.fixture(scope="module")
def found(built):
    """Every row by its place, with the reason that reading it gives."""
    source = Source.open(built[0])
    rows = {}
    for file in source.files:
        for group in range(len(file.row_groups)):
            table = source.read_row_group(file, group)
            for row, (record, reason) in enumerate(
                zip(table.to_pylist(), reasons(table), strict=True)
            ):
                rows[file.path, group, row] = record | {"reason": reason}
    return rows


def reasons(table):
    """Why each row is left out, in the order of conversion; "" where it is not."""
    pixels = np.zeros((table.num_rows, 3, 64, 64), np.float32)
    decoded = decode_batch(table["stamp_npz"], pixels)
    middle = np.median(pixels, (2, 3), keepdims=True)
    constant = (np.median(np.abs(pixels - middle), (2, 3)) == 0).any(1)
    for i, reason in enumerate(decoded):
        flat = RejectReason.CONSTANT_BAND if constant[i] else ""
        yield filter_rows(table)[i] or label_rows(table).reason[i] or reason or flat


def place(record):
    return record["file"], record["row_group"], record["row"]


def test_every_defect_is_planted_and_told(built):
    _, summary, truth = built
    assert {record["defect"] for record in truth} == {defect.name for defect in DEFECTS}
    counts = summary["defects"]
    assert sum(counts.values()) == len(truth)
    assert counts["high_bad_pixel_frac"] == round(0.01 * ROWS)
    repeats = sum(n for name, n in counts.items() if name.startswith("duplicate_"))
    repeats -= counts["duplicate_member"]
    assert summary["rows"] == ROWS + repeats


def test_truth_is_what_reading_finds(built, found):
    truth = {place(record): record for record in built[2]}
    assert len(truth) == len(built[2])
    for where, row in found.items():
        told = truth.get(where)
        # A repeated task is found by comparing rows, not by reading one.
        expected = "" if told is None or told["reason"] == "duplicate_row" else told["reason"]
        assert row["reason"] in expected.split("|"), (where, told)
        if told is not None:
            assert row["task_id"] == told["task_id"]
            assert (told["outcome"] == "accepted") == (told["reason"] == "")


def test_repeats_show_the_pixels_of_the_row_they_name(built, found):
    by_task = {}
    for row in found.values():
        by_task.setdefault(row["task_id"], []).append(row)
    for record in built[2]:
        if record["repeats_task_id"] is None:
            continue
        twin, row = by_task[record["repeats_task_id"]][0], found[place(record)]
        assert row["stamp_npz"] == twin["stamp_npz"]
        same_task = record["defect"] == "duplicate_task"
        assert (row["task_id"] == twin["task_id"]) is same_task
        crosses = record["defect"] == "duplicate_across_splits"
        assert (row["region_split"] != twin["region_split"]) is crosses
    unique = {row["task_id"] for row in found.values() if row["task_id"]}
    assert len(unique) == len(found) - 2  # one task is there twice, one has no name


def test_control_stamps_are_repeated_at_most_24_times(built):
    names = [r["repeats_task_id"] for r in built[2] if r["defect"] == "duplicate_pixels"]
    assert 1 <= max(names.count(name) for name in names) <= 23


def test_part_files_have_53_to_57_columns(built):
    counts = {len(pq.ParquetFile(p).schema_arrow.names) for p in built[0].rglob("part-*.parquet")}
    assert {n + 1 for n in counts} == {53, 54, 55, 56, 57}  # and the split, in the folder's name


def test_rest_of_the_tree_is_untouched(built, found, tmp_path):
    """Rows without a defect are the rows of the tree without defects, byte for byte."""
    synthesize(tmp_path / "clean", rows=ROWS, seed=3, workers=1)
    source = Source.open(tmp_path / "clean")
    columns = ["task_id", "stamp_npz", "lens_model"]
    clean = pa.concat_tables(
        source.read_row_group(file, group, columns)
        for file in source.files
        for group in range(len(file.row_groups))
    )
    spoilt = {place(record) for record in built[2]}
    sound = {row["task_id"]: row for where, row in found.items() if where not in spoilt}
    clean = clean.filter(pc.is_in(clean["task_id"], pa.array(list(sound))))
    assert clean.num_rows == len(sound) > 0.8 * ROWS
    for record in clean.to_pylist():
        assert sound[record["task_id"]]["stamp_npz"] == record["stamp_npz"]


def test_rates_are_shares_of_the_rows():
    is_control = np.arange(10_000) % 2 == 0
    plan = plan_defects(
        {"nan_pixels": 0.0137, "psf_g_zero": 0.02}, 1, is_control, ["train"] * 10_000
    )
    names = list(plan.spoilt.values())
    assert (names.count("nan_pixels"), names.count("psf_g_zero")) == (137, 200)
    assert not any(is_control[row] for row, name in plan.spoilt.items() if name == "psf_g_zero")
    assert plan.repeats == ()


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"nan_pixel": 0.1}, "no defect 'nan_pixel'; there are: .*nan_pixels"),
        ({"nan_pixels": 1.5}, "between 0 and 1"),
        ({"nan_pixels": 0.9, "inf_pixels": 0.9}, "Ask for more rows"),
    ],
)
def test_rates_that_cannot_be_are_refused(rates, message):
    with pytest.raises(ConfigError, match=message):
        plan_defects(rates, 1, np.zeros(10, bool), ["train"] * 10)
