"""The contract of Phase 4c: columns, types, labels and filters."""

import math
from collections import Counter

import pyarrow as pa
import pytest

from lensprep.dataset.where import compile_where
from lensprep.source.contract import (
    FilterRules,
    accepts,
    filter_rows,
    is_counterfactual,
    label_rows,
    schema_faults,
)
from lensprep.source.survey import (
    COLUMNS,
    FAMILY_COLUMNS,
    LEAKING_COLUMNS,
    REQUIRED_COLUMNS,
    SCHEMA,
)


def test_contract_has_57_columns_of_which_27_are_required():
    assert len(COLUMNS) == len(SCHEMA) == 57
    assert len(REQUIRED_COLUMNS) == 27
    assert {"stamp_npz", "region_split", "psf_fwhm_used_r"} <= set(REQUIRED_COLUMNS)


def test_whatever_controls_do_not_hold_leaks_the_label():
    unlike = {column.name for column in COLUMNS if column.controls != "value"}
    assert unlike <= set(LEAKING_COLUMNS)
    assert {"config_id", "src_gr", "src_rz", "lens_model"} <= set(LEAKING_COLUMNS)
    assert not {"psfsize_r", "psfdepth_r", "ebv", "bad_pixel_frac"} & set(LEAKING_COLUMNS)


def test_columns_that_controls_leave_null_are_nullable():
    assert all(column.nullable for column in COLUMNS if column.controls == "null")


@pytest.mark.parametrize(
    ("wanted", "found", "good"),
    [
        (pa.int32(), pa.int32(), True),
        (pa.int32(), pa.int64(), True),
        (pa.int32(), pa.int8(), True),
        (pa.int32(), pa.float64(), False),
        (pa.int32(), pa.bool_(), False),
        (pa.float64(), pa.float32(), True),
        (pa.float64(), pa.int32(), False),
        (pa.string(), pa.large_string(), True),
        (pa.string(), pa.dictionary(pa.int32(), pa.string()), True),
        (pa.string(), pa.dictionary(pa.int32(), pa.int64()), False),
        (pa.string(), pa.binary(), False),
        (pa.binary(), pa.large_binary(), True),
        (pa.binary(), pa.string(), False),
        (pa.float64(), pa.null(), True),
    ],
)
def test_types_may_be_wider_but_never_of_another_kind(wanted, found, good):
    assert accepts(wanted, found) is good


def test_full_schema_has_no_fault():
    assert schema_faults(SCHEMA) == {}


def test_every_missing_required_column_is_named():
    for name in REQUIRED_COLUMNS:
        schema = SCHEMA.remove(SCHEMA.get_field_index(name))
        assert schema_faults(schema) == {name: "is missing"}


def test_optional_columns_and_a_split_known_from_the_folder_may_be_missing():
    for name in ("physics_warnings", "psf_source_g", "ebv"):
        assert schema_faults(SCHEMA.remove(SCHEMA.get_field_index(name))) == {}
    without = SCHEMA.remove(SCHEMA.get_field_index("region_split"))
    assert schema_faults(without, ["region_split"]) == {}


def test_wrong_type_and_doubled_column_are_faults():
    index = SCHEMA.get_field_index("ra")
    wrong = SCHEMA.set(index, pa.field("ra", pa.string()))
    assert schema_faults(wrong) == {"ra": "is string, not double"}
    doubled = SCHEMA.append(pa.field("ra", pa.float64()))
    assert schema_faults(doubled) == {"ra": "occurs 2 times"}


LABEL_CASES = [
    # task_id, lens_model, is_control, theta_e_arcsec -> label, reason
    ("a", "CONTROL", 1, 0.0, 0, ""),
    ("a", "SIE", 0, 0.6, 1, ""),
    ("a", "SIS", 0, 1.0, 1, ""),
    ("a", None, 0, 0.6, -1, "unknown_label"),
    ("a", "UNK", 0, 0.6, -1, "unknown_label"),
    ("a", "control", 1, 0.0, -1, "unknown_label"),
    ("a", "", 1, 0.0, -1, "unknown_label"),
    ("a", "CONTROL", 0, 0.0, -1, "label_conflict"),
    ("a", "CONTROL", 1, 0.3, -1, "label_conflict"),
    ("a", "CONTROL", None, 0.0, -1, "label_conflict"),
    ("a", "SIE", 1, 0.6, -1, "label_conflict"),
    ("a", "SIE", 0, 0.0, -1, "label_conflict"),
    ("a", "SIE", 0, None, -1, "label_conflict"),
    ("a", "SIE", 0, math.nan, -1, "label_conflict"),
    ("a", "SIE", 0, -0.3, -1, "label_conflict"),
    ("a", "CONTROL", 1, math.nan, -1, "label_conflict"),
    ("a", "SIE", 2, 0.6, -1, "label_conflict"),
    (None, "SIE", 0, 0.6, -1, "missing_task_id"),
    ("", "CONTROL", 1, 0.0, -1, "missing_task_id"),
]


def _label_table(cases):
    columns = list(zip(*cases, strict=True))[:4] if cases else [[]] * 4
    return pa.table(
        {
            "task_id": pa.array(columns[0], pa.string()),
            "lens_model": pa.array(columns[1], pa.string()),
            "is_control": pa.array(columns[2], pa.int32()),
            "theta_e_arcsec": pa.array(columns[3], pa.float64()),
        }
    )


def test_label_is_a_closed_map_checked_against_two_columns():
    labels = label_rows(_label_table(LABEL_CASES))
    assert labels.label.dtype == "int8"
    for case, label, reason in zip(LABEL_CASES, labels.label, labels.reason, strict=True):
        assert (label, reason) == case[4:], case


@pytest.mark.parametrize(
    ("kind", "host", "donor", "lens_model", "reason"),
    [
        (None, None, None, "CONTROL", ""),
        (None, "h", None, "SIE", ""),
        ("unlensed", "h", "d", "CONTROL", ""),
        ("lensed", "h", "d", "SIE", ""),
        ("of a later version", "h", "d", "CONTROL", ""),
        ("unlensed", "h", "d", "SIE", "label_conflict"),
        ("of a later version", "h", "d", "SIE", "label_conflict"),
        ("lensed", "h", "d", "CONTROL", "label_conflict"),
        ("unlensed", None, "d", "CONTROL", "incomplete_counterfactual"),
        ("lensed", "h", "", "SIE", "incomplete_counterfactual"),
        ("", "h", "d", "CONTROL", "incomplete_counterfactual"),
    ],
)
def test_a_counterfactual_names_its_family_and_is_a_lens_only_if_lensed(
    kind, host, donor, lens_model, reason
):
    table = _label_table(
        [("a", lens_model, int(lens_model == "CONTROL"), float(lens_model == "SIE"))]
    )
    assert not is_counterfactual(table).any()
    for column, value in zip(FAMILY_COLUMNS, (kind, host, donor), strict=True):
        table = table.append_column(column.name, pa.array([value], column.type))
    assert is_counterfactual(table).tolist() == [kind is not None]
    (label,), (found,) = label_rows(table)
    assert found == reason
    assert label == (-1 if reason else int(lens_model == "SIE"))


def test_a_counterfactual_without_the_columns_of_its_family_is_incomplete():
    table = _label_table([("a", "CONTROL", 1, 0.0)])
    table = table.append_column("counterfactual", pa.array(["unlensed"]))
    assert label_rows(table).reason.tolist() == ["incomplete_counterfactual"]


def test_labels_do_not_depend_on_how_text_is_stored():
    table = _label_table(LABEL_CASES)
    plain = label_rows(table)
    encoded = table.set_column(1, "lens_model", table.column("lens_model").dictionary_encode())
    chunked = pa.concat_tables([encoded.slice(0, 7), encoded.slice(7)])
    again = label_rows(chunked)
    assert (again.label == plain.label).all()
    assert (again.reason == plain.reason).all()


def test_no_rows_have_no_labels():
    labels = label_rows(_label_table([]))
    assert labels.label.shape == labels.reason.shape == (0,)
    assert not labels.reason.any()


def _filter_table():
    return pa.table(
        {
            "cutout_ok": pa.array([1, 0, None, 1, 1, 1, 1], pa.int32()),
            "bandset": pa.array(["grz", "grz", "grz", "r", None, "zrg", "grz"]),
            "bad_pixel_frac": pa.array([0.0, 0.0, 0.0, 0.0, 0.2, 0.21, None], pa.float64()),
            "psfsize_r": pa.array([1.0, 1.0, 1.0, 1.0, 1.5, None, 1.0], pa.float64()),
        }
    )


def test_rows_without_a_usable_stamp_are_always_filtered():
    reasons = filter_rows(_filter_table())
    assert (
        reasons.tolist() == ["", "cutout_not_ok", "cutout_not_ok", "bandset_lacks_band"] + [""] * 3
    )


def test_bad_pixel_limit_keeps_the_limit_itself_and_drops_unknown():
    reasons = filter_rows(_filter_table(), FilterRules(max_bad_pixel_frac=0.2))
    assert reasons[4:].tolist() == ["", "max_bad_pixel_frac", "max_bad_pixel_frac"]


def test_first_cut_that_applies_is_the_one_counted():
    rules = FilterRules(max_bad_pixel_frac=0.1, where=compile_where("psfsize_r < 1.4"))
    reasons = filter_rows(_filter_table(), rules)
    assert Counter(reasons.tolist()) == {
        "cutout_not_ok": 2,
        "bandset_lacks_band": 1,
        "max_bad_pixel_frac": 3,
        "": 1,
    }
    only_where = filter_rows(_filter_table(), FilterRules(where=compile_where("psfsize_r < 1.4")))
    assert only_where[4:].tolist() == ["where", "where", ""]
