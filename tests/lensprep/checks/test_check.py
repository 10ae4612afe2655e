"""`lensprep check`: each defect planted alone is found, and a sound source is not accused."""

import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lensprep.checks.check import check, render_text
from lensprep.checks.tally import Tally, tally_rows
from lensprep.convert import ConvertConfig, convert
from lensprep.errors import SchemaError, StorageError
from lensprep.tables.reader import read_table
from tests.phase4c import (
    set_columns,
    stamp_blob,
    tiny_counterfactuals,
    tiny_pixels,
    tiny_table,
    write_tree,
)

ROWS = 160


@pytest.fixture(scope="module")
def stamps():
    """Sound rows with stamps: all that can be said against them is that they are few."""
    theta_e = [0.0 if i % 2 == 0 else 1.0 for i in range(ROWS)]
    return tiny_table(ROWS, regions=80, theta_e_arcsec=theta_e)


@pytest.fixture(scope="module")
def rows(stamps):
    """The same without stamps, which a check of the light columns does not miss."""
    return set_columns(stamps, {"stamp_npz": [b"no zip"] * ROWS})


def report_on(tmp_path, table, **options):
    return check(write_tree(tmp_path / "stamps", table), **options)


def failed(report):
    return {f.item for f in report.findings if f.passed is False}


def finding(report, item):
    (found,) = [f for f in report.findings if f.item == item]
    return found


def column(table, name):
    return table[name].to_pylist()


def test_sound_source_passes_but_for_its_size(tmp_path, rows):
    report = report_on(tmp_path, rows)
    assert failed(report) == {"regions_per_split"}
    assert (report.verdict, report.exit_code) == ("warnings", 0)
    assert report.rows == ROWS
    assert report.splits["train"] == {
        "rows": 80,
        "fraction": 0.5,
        "classes": {"0": 40, "1": 40},
        "regions": 40,
    }


def test_report_is_one_json_object_and_a_page_of_text(tmp_path, rows):
    report = report_on(tmp_path, rows)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["verdict"] == "warnings"
    assert {"item", "severity", "passed", "measured", "threshold", "detail"} == set(
        data["findings"][0]
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_text(report))
    text = console.export_text()
    assert all(f.item in text for f in report.findings)
    assert "verdict: warnings" in text


def test_blobs_are_read_only_when_pixels_are_asked_for(tmp_path, rows):
    light = report_on(tmp_path, rows)
    assert light.verdict == "warnings"
    assert finding(light, "reject_rate").passed is None
    deep = report_on(tmp_path, rows, pixels=True)
    assert deep.verdict == "failed"
    assert finding(deep, "reject_rate").measured == {
        "by_class": {"0": 1.0, "1": 1.0},
        "reasons": {"not_zip": ROWS},
    }


# Each entry: what is changed in the sound rows, and the findings that must fail because of it.
DEFECTS = {
    "unknown label": (lambda t: {"lens_model": ["UNK", *column(t, "lens_model")[1:]]},
                      {"label_consistency": "blocker"}),
    "conflicting label": (lambda t: {"is_control": [0, *column(t, "is_control")[1:]]},
                          {"label_consistency": "blocker"}),
    "null in a required column": (lambda t: {"ra": [None, *column(t, "ra")[1:]]},
                                  {"null_rules": "blocker"}),
    "null in an optional column": (lambda t: {"replicate": [None, *column(t, "replicate")[1:]]},
                                   {"null_rules": "warn"}),
    "control with a PSF": (lambda t: {"psf_fwhm_used_r": [1.2] * ROWS},
                           {"control_rules": "warn"}),
    "control with a source": (lambda t: {"src_dmag": [1.0] * ROWS}, {"control_rules": "warn"}),
    "another zero point": (lambda t: {"ab_zp_nmgy": [30.0] * ROWS}, {"value_ranges": "warn"}),
    "PSF of width zero": (
        lambda t: {"psf_fwhm_used_g": [None, 0.0] * (ROWS // 2)}, {"value_ranges": "warn"}),
    "NaN depth": (lambda t: {"psfdepth_r": [math.nan] + [24.0] * (ROWS - 1)},
                  {"value_ranges": "warn"}),
    "wrong stamp size": (lambda t: {"stamp_size": [96] + [64] * (ROWS - 1)},
                         {"value_ranges": "warn"}),
    "shared region": (lambda t: {"region_id": [0] * 8 + column(t, "region_id")[8:]},
                      {"regions_disjoint": "blocker"}),
    "shared brick": (lambda t: {"brickname": ["0000p000"] * 8 + column(t, "brickname")[8:]},
                     {"bricks_disjoint": "blocker"}),
    "one class only in a split": (
        lambda t: {
            "lens_model": ["SIE" if s == "val" else m for s, m in
                           zip(column(t, "region_split"), column(t, "lens_model"), strict=True)],
            "is_control": [0 if s == "val" else c for s, c in
                           zip(column(t, "region_split"), column(t, "is_control"), strict=True)],
            "theta_e_arcsec": [1.0 if s == "val" else r for s, r in
                               zip(column(t, "region_split"), column(t, "theta_e_arcsec"),
                                   strict=True)],
        },
        {"both_classes": "blocker", "class_balance": "warn"}),
    "repeated task_id within a split": (
        lambda t: {"task_id": [column(t, "task_id")[1], *column(t, "task_id")[1:]]},
        {"duplicate_task_ids": "warn"}),
    "repeated task_id across splits": (
        lambda t: {"task_id": [*column(t, "task_id")[:4], column(t, "task_id")[0],
                               *column(t, "task_id")[5:]]},
        {"duplicate_task_ids": "blocker"}),
    "lenses below the seeing": (
        lambda t: {"theta_e_arcsec": [0.0, 0.3] * (ROWS // 2)}, {"unresolved_share": "warn"}),
    "seeing that tells the label": (
        lambda t: {"psfsize_r": [1.0 if i % 2 else 1.4 for i in range(ROWS)]},
        {"unlisted_leaks": "warn"}),
    "null that tells the label": (
        lambda t: {"ebv": [0.1 if i % 2 else None for i in range(ROWS)]},
        {"unlisted_leaks": "warn"}),
    "text that tells the label": (
        lambda t: {"ranking_mode": ["a" if i % 2 else "b" for i in range(ROWS)]},
        {"unlisted_leaks": "warn"}),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_planted_defect_is_found_and_nothing_else_is_accused(tmp_path, rows, name):
    change, expected = DEFECTS[name]
    report = report_on(tmp_path, set_columns(rows, change(rows)))
    assert failed(report) - {"regions_per_split"} >= set(expected)
    for item, severity in expected.items():
        assert finding(report, item).severity == severity
    blockers = {i for i, severity in expected.items() if severity == "blocker"}
    assert {f.item for f in report.findings if f.passed is False and f.severity == "blocker"} == (
        blockers
    )
    assert report.verdict == ("failed" if blockers else "warnings")


def test_texts_of_few_rows_each_tell_no_label(tmp_path, rows):
    bricks = [f"b{i}" for i in np.random.default_rng(2).integers(0, 48, ROWS)]
    report = report_on(tmp_path, set_columns(rows, {"brickname": bricks}))
    assert finding(report, "unlisted_leaks").passed is True


def test_without_seeing_nothing_is_said_of_resolution(tmp_path, rows):
    some = [None if i % 4 == 1 else 1.2 for i in range(ROWS)]
    found = finding(report_on(tmp_path / "some", set_columns(rows, {"psfsize_r": some})),
                    "unresolved_share")  # fmt: skip
    assert (found.passed, found.measured["unknown"]) == (True, ROWS // 4)
    assert f"For {ROWS // 4} lenses it is not known" in found.detail
    none = finding(report_on(tmp_path / "none", set_columns(rows, {"psfsize_r": [None] * ROWS})),
                   "unresolved_share")  # fmt: skip
    assert (none.passed, none.measured["share"]) == (None, None)
    assert none.detail.startswith("Not run: none of 80 lenses")


def test_positions_off_the_sky_are_out_of_range_and_lie_nowhere(tmp_path, rows):
    """A declination of 95 is not that of 85 on the other side of the pole."""
    ra, dec, splits = (column(rows, name) for name in ("ra", "dec", "region_split"))
    train, test = splits.index("train"), splits.index("test")
    ra[train], dec[train], ra[test], dec[test] = 10.0, 95.0, 190.0, 85.0
    report = report_on(tmp_path, set_columns(rows, {"ra": ra, "dec": dec}))
    assert finding(report, "sky_separation").passed
    assert not finding(report, "value_ranges").passed


@pytest.mark.parametrize(("offset_arcsec", "shared"), [(23.0, True), (24.5, False)])
def test_sky_shared_between_splits_is_found_up_to_a_stamps_diagonal(
    tmp_path, rows, offset_arcsec, shared
):
    ra, dec = column(rows, "ra"), column(rows, "dec")
    splits = column(rows, "region_split")
    train, test = splits.index("train"), splits.index("test")
    ra[train], dec[train] = 359.9999, 60.0  # across 0h, where a difference of ra would mislead
    ra[test] = (359.9999 + offset_arcsec / 3600 / math.cos(math.radians(60.0))) % 360
    dec[test] = 60.0
    report = report_on(tmp_path, set_columns(rows, {"ra": ra, "dec": dec}))
    sky = finding(report, "sky_separation")
    assert sky.passed is not shared
    assert sky.measured["close_positions"] == int(shared)
    assert sky.measured["nearest_arcsec"]["train-test"] == pytest.approx(offset_arcsec, abs=1e-3)
    assert sky.threshold == pytest.approx(23.71, abs=0.01)  # the diagonal of a stamp


def test_split_fractions_are_held_to_what_was_declared(tmp_path, rows):
    declared = {"train": 0.8, "val": 0.1, "test": 0.1}
    assert "split_fractions" in failed(report_on(tmp_path, rows, declared_fractions=declared))
    declared = {"train": 0.51, "val": 0.25, "test": 0.24}
    assert "split_fractions" not in failed(report_on(tmp_path, rows, declared_fractions=declared))


def test_train_smaller_than_val_is_a_warning_even_if_nothing_was_declared(tmp_path, rows):
    swap = {"train": "val", "val": "train", "test": "test"}
    splits = [swap[name] for name in column(rows, "region_split")]
    report = report_on(tmp_path, set_columns(rows, {"region_split": splits}))
    assert failed(report) >= {"split_fractions"}


def test_same_pixels_across_splits_or_labels_are_found(tmp_path, stamps):
    blobs, splits = column(stamps, "stamp_npz"), column(stamps, "region_split")
    first, test = 0, splits.index("test")
    # another compression of the same pixels: it is they that are compared, not the blobs
    same = stamp_blob(tiny_pixels(ROWS)[first].astype(np.float64))
    assert same != blobs[first]
    blobs[test], blobs[1] = same, same
    report = report_on(tmp_path, set_columns(stamps, {"stamp_npz": blobs}), pixels=True)
    images = finding(report, "duplicate_images")
    assert images.passed is False
    assert report.verdict == "failed"
    assert images.measured == {
        "images": ROWS, "unique": ROWS - 2, "across_splits": 1, "across_labels": 1
    }  # fmt: skip


def test_repeated_controls_of_one_split_are_counted_but_allowed(tmp_path, stamps):
    blobs = column(stamps, "stamp_npz")
    blobs[2] = blobs[0]
    report = report_on(tmp_path, set_columns(stamps, {"stamp_npz": blobs}), pixels=True)
    images = finding(report, "duplicate_images")
    assert images.passed is True
    assert images.measured["unique"] == ROWS - 1


def test_nan_and_constant_stamps_of_one_class_are_a_blocker(tmp_path, stamps):
    blobs = column(stamps, "stamp_npz")
    pixels = tiny_pixels(4)
    pixels[0, 0, 0, 0] = np.nan
    pixels[1, 2] = 0.25
    blobs[0], blobs[2] = stamp_blob(pixels[0]), stamp_blob(pixels[1])
    report = report_on(tmp_path, set_columns(stamps, {"stamp_npz": blobs}), pixels=True)
    rate = finding(report, "reject_rate")
    assert (rate.severity, rate.passed) == ("blocker", False)
    assert rate.measured == {
        "by_class": {"0": 2 / 80, "1": 0.0},
        "reasons": {"constant_band": 1, "nonfinite": 1},
    }


def test_rows_that_upstream_marked_are_counted_as_filtered_not_as_faults(tmp_path, rows):
    changed = set_columns(
        rows,
        {
            "cutout_ok": [0, *[1] * (ROWS - 1)],
            "bandset": ["grz", "r", *["grz"] * (ROWS - 2)],
            "lens_model": [None, *column(rows, "lens_model")[1:]],
            "psfdepth_r": [0.0, *column(rows, "psfdepth_r")[1:]],
        },
    )
    report = report_on(tmp_path, changed)
    assert finding(report, "filtered").measured == {"bandset_lacks_band": 1, "cutout_not_ok": 1}
    assert failed(report) == {"regions_per_split"}


def test_hosts_counts_positions_not_rows(tmp_path, rows):
    ra, dec = column(rows, "ra"), column(rows, "dec")
    ra[1], dec[1] = ra[0], dec[0]  # a lens and a control of the same galaxy, in one region
    measured = finding(report_on(tmp_path, set_columns(rows, {"ra": ra, "dec": dec})), "hosts")
    assert measured.measured["positions"] == {"0": 80, "1": 80}
    assert measured.measured["both_labels"] == 1


def test_bad_files_and_row_groups_are_findings_not_a_stop(tmp_path, rows):
    root = write_tree(tmp_path / "t", rows, files_per_split=1)
    (root / "region_split=val" / "part-9.parquet").write_bytes(b"PAR1 cut")
    path = next((root / "region_split=train").iterdir())
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    with path.open("r+b") as file:
        file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
        file.write(b"\0" * chunk.total_compressed_size)
    report = check(root)
    assert report.verdict == "failed"
    readable = finding(report, "readable")
    assert readable.measured == {"bad_files": 1, "bad_row_groups": 1}
    assert "part-9.parquet" in readable.detail
    assert sum(split["rows"] for split in report.splits.values()) == ROWS - 8


def test_a_job_that_did_not_finish_fails_and_a_missing_mark_is_a_note(tmp_path, rows):
    root = write_tree(tmp_path / "t", rows)
    assert finding(check(root), "finished").passed is True
    (root / "_SUCCESS").unlink()
    note = finding(check(root), "finished")
    assert (note.passed, note.severity) == (None, "info")
    (root / "_temporary" / "0" / "task_3").mkdir(parents=True)
    report = check(root)
    assert report.verdict == "failed"
    assert failed(report) == {"finished", "regions_per_split"}
    assert "_temporary: the job that writes it is running" in finding(report, "finished").detail


def test_an_extra_column_without_one_type_is_a_warning_with_its_remedy(tmp_path, rows):
    def change(table, name):
        first = "part-00000" in name
        return table.append_column("night", pa.array([1 if first else "1"] * table.num_rows))

    found = finding(check(write_tree(tmp_path / "t", rows, change=change)), "schema")
    assert (found.passed, found.severity) == (False, "warn")
    assert list(found.measured["without_a_type"]) == ["night"]
    assert "night is int64 in region_split=test/part-00000" in found.detail
    assert "--drop-column" in found.detail


def test_rejects_are_those_of_a_conversion(tmp_path, stamps):
    blobs = column(stamps, "stamp_npz")
    blobs[3], blobs[10] = b"", b"no zip"
    models, region = column(stamps, "lens_model"), column(stamps, "region_id")
    models[20], region[40] = "=1+1", None  # which a spreadsheet would run
    cutout = [0 if i == 60 else 1 for i in range(ROWS)]
    table = set_columns(
        stamps,
        {"stamp_npz": blobs, "lens_model": models, "region_id": region, "cutout_ok": cutout},
    )
    root = write_tree(tmp_path / "t", table)
    path = next((root / "region_split=test").glob("part-00001*"))
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    with path.open("r+b") as file:
        file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
        file.write(b"\0" * chunk.total_compressed_size)
    for suffix in ("csv", "parquet"):
        check(root, rejects=tmp_path / f"rejects.{suffix}", workers=1)
    config = ConvertConfig(max_reject_rate=1.0, skip_bad_files=True)
    convert(str(root), str(tmp_path / "ds"), config, workers=1)
    expected = pq.read_table(tmp_path / "ds" / "rejects.parquet")
    assert b',"=1+1"' not in (tmp_path / "rejects.csv").read_bytes()
    order = [(name, "ascending") for name in ("source_file", "source_row_group", "source_row")]
    names = ["lens_model", "kind", "reason", *(name for name, _ in order)]
    for found in (read_table(tmp_path / name).table for name in ("rejects.csv", "rejects.parquet")):
        assert found.sort_by(order).select(names).to_pylist() == (
            expected.sort_by(order).select(names).to_pylist()
        )
    assert set(expected["reason"].to_pylist()) == {
        "empty_blob", "not_zip", "unknown_label", "missing_region", "cutout_not_ok", "unreadable",
    }  # fmt: skip


def test_a_list_of_rejects_has_a_known_format(tmp_path, rows):
    with pytest.raises(
        StorageError, match=r"rejects.txt: the suffix says how .* is one of .parquet, .csv"
    ):
        report_on(tmp_path, rows, rejects=tmp_path / "rejects.txt")


def test_value_that_does_not_fit_its_type_fails_the_schema(tmp_path, rows):
    def huge(table, name):
        index = table.column_names.index("region_id")
        values = [2**40] * table.num_rows if "test" in name else table["region_id"].to_pylist()
        return table.set_column(index, "region_id", pa.array(values, pa.int64()))

    report = check(write_tree(tmp_path / "t", rows, change=huge))
    assert finding(report, "schema").passed is False
    assert "region_id" in finding(report, "schema").detail


def test_missing_required_column_stops_with_its_name(tmp_path, rows):
    root = write_tree(tmp_path / "t", rows, change=lambda t, _: t.drop_columns(["ebv", "dec"]))
    with pytest.raises(SchemaError, match="column dec is missing"):
        check(root)


def test_two_workers_find_what_one_finds(tmp_path, rows):
    root = write_tree(tmp_path / "stamps", rows)
    calls = []
    alone = check(root, workers=1, progress=lambda done, total: calls.append((done, total)))
    assert check(root, workers=2) == alone
    assert calls[-1] == (ROWS, ROWS)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_tallies_of_parts_add_up_to_the_whole(rows):
    whole, parts = tally_rows(rows), Tally()
    for start in (100, 0, 50):  # in no order
        parts.merge(tally_rows(rows.slice(start, 60 if start == 100 else 50)))
    assert parts.rows == whole.rows
    assert parts.regions == whole.regions
    assert parts.resolution == whole.resolution
    assert parts.splits() == whole.splits()
    assert tally_rows(rows.slice(0, 0)).rows == Tally().rows


def test_seeds_of_64_bits_are_no_obstacle(tmp_path, rows):
    seeds = [(-1) ** (i // 2) * (2**62 + i) for i in range(ROWS)]
    assert failed(report_on(tmp_path, set_columns(rows, {"task_seed64": seeds}))) == {
        "regions_per_split"
    }


@pytest.fixture(scope="module")
def made(stamps):
    """Counterfactuals of half of the hosts, unlike other rows in many ways."""
    made = tiny_counterfactuals(stamps, ("unlensed", "companion", "lensed"), pairs=ROWS // 4)
    return set_columns(made, {"ebv": [0.5] * len(made), "bad_pixel_frac": [0.5] * len(made)})


def report_with(tmp_path, table, made, **options):
    trees = [write_tree(tmp_path / name, t) for name, t in (("stamps", table), ("made", made))]
    return check(trees, **options)


def test_counterfactuals_change_no_finding_about_other_rows(tmp_path, stamps, made):
    """Though they are more, and have other nulls, labels, reddening and bad pixels."""
    before = report_on(tmp_path / "alone", stamps, pixels=True)
    after = report_with(tmp_path, stamps, made, pixels=True)
    assert after.verdict == before.verdict
    assert after.splits == before.splits
    about_all = {
        "readable",
        "reject_rate",
        "schema",
        "duplicate_task_ids",
        "duplicate_images",
        "leaking_columns",
    }
    for one in before.findings:
        if one.item not in about_all:
            assert finding(after, one.item) == one
    assert finding(after, "duplicate_task_ids").detail == f"All {ROWS + len(made)} task_ids differ."
    assert finding(after, "duplicate_images").passed is True
    assert finding(after, "schema").measured["extra"] == []
    assert {f.item for f in after.findings} - {f.item for f in before.findings} == {
        "counterfactual_split"
    }


def test_the_finding_about_counterfactuals_counts_them_by_kind_and_split(tmp_path, rows, made):
    found = finding(report_with(tmp_path, rows, made), "counterfactual_split")
    assert found.passed is True
    assert found.measured["without_host"] == found.measured["without_donor"] == 0
    assert found.measured["rows"]["val"] == {"companion": 10, "lensed": 10, "unlensed": 10}
    assert "train companion 20, lensed 20, unlensed 20" in found.detail


@pytest.mark.parametrize(
    ("column_name", "value", "item"),
    [
        ("host_task_id", lambda rows: rows[4]["task_id"], "without_host"),  # of another region
        ("host_task_id", lambda rows: rows[1]["task_id"], "without_host"),  # a lens
        ("host_task_id", lambda rows: "nobody", "without_host"),
        ("donor_task_id", lambda rows: rows[0]["task_id"], "without_donor"),  # a control
        ("donor_task_id", lambda rows: rows[5]["task_id"], "without_donor"),  # of another split
    ],
)
def test_a_host_or_donor_elsewhere_is_a_blocker(tmp_path, rows, made, column_name, value, item):
    names = made[column_name].to_pylist()
    names[0] = value(rows.to_pylist())
    report = report_with(tmp_path, rows, set_columns(made, {column_name: names}))
    found = finding(report, "counterfactual_split")
    assert (found.passed, found.severity, report.verdict) == (False, "blocker", "failed")
    assert {name: found.measured[name] for name in ("without_host", "without_donor")} == {
        "without_host": 0, "without_donor": 0, item: 1,
    }  # fmt: skip


def test_a_donor_may_lie_in_another_region_of_the_split(tmp_path, rows, made):
    names = made["donor_task_id"].to_pylist()
    names[0] = rows["task_id"][3].as_py()  # region 1, also train
    report = report_with(tmp_path, rows, set_columns(made, {"donor_task_id": names}))
    assert finding(report, "counterfactual_split").passed is True


def test_counterfactuals_alone_ask_for_the_tree_that_they_were_made_from(tmp_path, made):
    report = report_on(tmp_path, made)
    assert report.verdict == "failed"
    assert report.splits == {}
    for item in ("both_classes", "counterfactual_split"):
        assert "Name the tree that they were made from too" in finding(report, item).detail


def test_what_is_wrong_with_a_counterfactual_itself_is_found(tmp_path, stamps, made):
    """It breaks a rule for controls, repeats a task_id, has no host, or no stamp."""
    task_ids, hosts = made["task_id"].to_pylist(), made["host_task_id"].to_pylist()
    blobs, theta_e = made["stamp_npz"].to_pylist(), made["theta_e_arcsec"].to_pylist()
    task_ids[0], hosts[3], blobs[6], theta_e[9] = stamps["task_id"][0].as_py(), None, b"", 1.0
    bad = set_columns(
        made,
        {
            "task_id": task_ids,
            "host_task_id": hosts,
            "stamp_npz": blobs,
            "theta_e_arcsec": theta_e,
            "src_e": [0.1, *made["src_e"].to_pylist()[1:]],
        },
    )
    report = report_with(tmp_path, stamps, bad, pixels=True)
    assert finding(report, "label_consistency").measured == {
        "incomplete_counterfactual": 1, "label_conflict": 1,
    }  # fmt: skip
    assert finding(report, "control_rules").measured["src_e"] == 1
    assert finding(report, "duplicate_task_ids").measured["within_a_split"] == 1
    rate = finding(report, "reject_rate")
    assert rate.measured["reasons"] == {"empty_blob": 1}
    assert rate.measured["by_class"] == {"0": 0, "1": 0, "counterfactual": pytest.approx(1 / 118)}
    assert rate.passed is False
