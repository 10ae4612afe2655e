"""A survey file: what it says, what is refused, and trees read by it."""

import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.dataset.geometry import DECALS
from lensprep.errors import ConfigError, DatasetError, SchemaError
from lensprep.source.contract import filter_rows, label_rows
from lensprep.source.regions import assign_regions, region_splits
from lensprep.source.survey import (
    COLUMNS,
    DECALS_SURVEY,
    FAMILY_COLUMNS,
    Survey,
    load_survey,
    recorded_survey,
)
from lensprep.source.tree import Source
from tests.surveytree import survey_table, tiny_survey, write_survey_tree

from .conftest import read_all

FOLDER = Path(__file__).parents[3] / "configs" / "surveys"
HSC = (FOLDER / "hsc.toml").read_text()


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_every_survey_file_loads_and_survives_a_manifest(path):
    survey = load_survey(path)
    assert survey.name == path.stem
    assert survey.geometry.format_version == 2
    assert Survey.from_mapping(survey.to_mapping()) == survey
    assert recorded_survey({"survey": survey.to_mapping()}) == survey
    assert pickle.loads(pickle.dumps(survey)) == survey
    assert survey.required_columns == ("task_id", "ra", "dec", "stamp_npz", "lens_model")


def test_the_default_is_phase_4c():
    assert load_survey("decals") is DECALS_SURVEY
    assert recorded_survey({}) is DECALS_SURVEY
    assert DECALS_SURVEY.geometry is DECALS
    assert DECALS_SURVEY.contract == (*COLUMNS, *FAMILY_COLUMNS)
    assert len(COLUMNS) == 57


def test_what_a_task_carries_is_small_whatever_was_asked_before():
    survey = tiny_survey()
    before = pickle.dumps(survey)
    assert survey.contract
    assert survey.column_by_name
    assert survey.identity
    assert pickle.dumps(survey) == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("side = 64", "sides = 64", r"'sides'. Did you mean 'side'\?"),
        ("side = 64", "side = 16", "stamps of 16 pixels"),
        ("side = 64", "side = 64.5", "side must be of type int"),
        ("zero_point = 27.0", "", "zero_point is missing"),
        ("zero_point = 27.0", "zero_point = nan", "zero_point must be a number"),
        ('name = "hsc"', 'name = "decals"', "name: decals is the built-in survey"),
        ('name = "hsc"', 'name = "../hsc"', "is no name"),
        ('reference_band = "i"', 'reference_band = "u"', "reference_band: 'u' is no band"),
        ('"z", "y"]', '"z"]', "sky_noise must have each of the bands g, r, i, z"),
        ("g = 0.0448", "g = 0.0", "sky_noise: 0.0 is not positive"),
        ("g = 0.0448", 'g = "low"', "sky_noise.g must be of type float"),
        ('"1" = 1', '"1" = 2', "labels.1 must be 0 or 1, got 2"),
        ('"1" = 1', '"1" = true', "labels.1 must be of type int"),
        ('"1" = 1', "LENS = 0", "labels.LENS must be 1"),
        ('"1" = 1\n"0" = 0', "", "labels is empty"),
        ("psfsize_r =", "psfsiz_r =", "columns.psfsiz_r: .* known: psfsize_r"),
        ('"seeing_i"', '"object_id"', "must be one column of its own"),
        ('"seeing_i"', "3", "columns.psfsize_r must be of type str"),
        ("[columns]", '[splits]\n"3" = "dev"\n[columns]', "splits.3 must be one of train, val"),
        ("[columns]", "[softening]\nu = 1.0\n[columns]", "softening.u = 1.0 is no band"),
        ('name = "hsc"', 'name = "hsc"\nfractions = [0.5, 0.4, 0.2]', "fractions must be three"),
        ('name = "hsc"', "name = " + "[" * 5000, "is nested too deeply|is not valid TOML"),
        ('name = "hsc"', "#" * (1 << 20), "longer than 1.0 MB"),
    ],
)
def test_a_fault_of_a_file_is_one_line_that_names_key_and_file(tmp_path, old, new, message):
    assert old in HSC
    path = write(tmp_path, HSC.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        load_survey(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"mine\.toml: no such configuration file"):
        load_survey(tmp_path / "mine.toml")


def test_a_foreign_manifest_states_a_survey_or_is_refused():
    for found in (3, {"name": "hsc"}, {"surveys": 1}):
        with pytest.raises(DatasetError, match="survey"):
            recorded_survey({"survey": found})


def test_softening_is_the_noise_of_the_sky_unless_stated():
    survey = tiny_survey(bands="gr", softening={"r": 7.0})
    assert survey.normalization().parameters == {"softening_g": 0.05, "softening_r": 7.0}
    assert survey.normalization("mad_stamp").parameters == {}


def test_two_surveys_that_differ_in_anything_have_two_identities():
    survey = tiny_survey()
    others = [
        replace(survey, label_map={"0": 1, "1": 0}),
        replace(survey, columns={}),
        replace(survey, fractions=(0.7, 0.2, 0.1)),
        replace(survey, geometry=replace(survey.geometry, zero_point=26.0)),
    ]
    assert len({one.identity for one in (survey, *others)}) == 5
    assert Survey.from_mapping(survey.to_mapping()).identity == survey.identity


def test_columns_have_the_names_of_a_dataset_whatever_the_files_call_them(tmp_path):
    survey = tiny_survey()
    table = survey_table(survey, 24, columns={"note": ["x"] * 24, "key": ["k"] * 24})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = read_all(Source.open(tmp_path, survey=survey))
    assert rows.column_names == [
        "task_id", "region_split", "region_id", "ra", "dec", "theta_e_arcsec", "psfsize_r",
        "psfdepth_r", "stamp_npz", "lens_model", "hsc_key", "note",
    ]  # fmt: skip
    assert rows["task_id"].to_pylist() == table["object_id"].to_pylist()
    assert rows["lens_model"].to_pylist() == ["0", "1"] * 12
    assert label_rows(rows, survey).label.tolist() == [0, 1] * 12
    assert (filter_rows(rows, survey=survey) == "").all()


def test_ids_labels_and_positions_may_have_the_types_that_tables_have(tmp_path):
    survey = tiny_survey(label_map={"true": 1, "false": 0})
    table = survey_table(
        survey,
        8,
        columns={
            "task_id": np.arange(8, dtype=np.uint64) + 2**63,
            "ra": np.arange(8, dtype=np.float32),
            "dec": np.arange(8),
            "is_control": [True, False] * 4,
            "region_id": np.arange(8, dtype=np.uint8),
        },
    )
    assert table["is_lens"].type == pa.bool_()
    pq.write_table(table, tmp_path / "a.parquet")
    rows = read_all(Source.open(tmp_path, survey=survey))
    assert rows["task_id"].to_pylist() == [str(2**63 + row) for row in range(8)]
    assert rows["dec"].type == pa.float64()
    assert label_rows(rows, survey).label.tolist() == [0, 1] * 4


def test_null_says_nothing_of_a_label_but_another_value_must_agree():
    survey = tiny_survey()
    table = pa.table(
        {
            "task_id": list("abcdef"),
            "lens_model": ["1", "1", "0", "0", "1", "2"],
            "theta_e_arcsec": [None, 1.0, float("nan"), 0.5, 1.0, None],
            "is_control": pa.array([None, 0, 1, 1, 1, None], pa.int32()),
        }
    )
    labels = label_rows(table, survey)
    assert labels.label.tolist() == [1, 1, 0, -1, -1, -1]
    assert labels.reason.tolist() == ["", "", "", *["label_conflict"] * 2, "unknown_label"]
    bare = table.select(["task_id", "lens_model"])
    assert label_rows(bare, survey).label.tolist() == [1, 1, 0, 0, 1, -1]


def test_cuts_that_upstream_states_are_made_where_it_has_the_columns():
    survey = tiny_survey(bands=("vis", "y"))
    table = pa.table({"cutout_ok": [1, 0, 1, None], "bandset": ["vis,y", "vis,y", "y", "visy"]})
    wanted = ["", "cutout_not_ok", "bandset_lacks_band", "cutout_not_ok"]
    assert filter_rows(table, survey=survey).tolist() == wanted
    assert filter_rows(table.select(["cutout_ok"]), survey=survey).tolist()[2] == ""


def without(*columns):
    return lambda table: table.drop_columns([*columns])


def added(name, values):
    return lambda table: table.append_column(name, pa.array(values))


def replaced(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("object_id"),
            r"column object_id \(task_id\) is missing, which hsc data must have",
        ),
        (without("object_id"), r"; say under \[columns\] of the survey what it is called .*tract"),
        (without("ra", "dec"), "2 columns are missing that hsc data must have: ra, dec"),
        (added("psfsize_r", [1.0] * 8), "column psfsize_r must have another name, since .* seeing"),
        (added("ebv", ["low"] * 8), "column ebv is string, not double"),
        (replaced("object_id", [0.5] * 8), r"column object_id \(task_id\) is double, not string"),
        (replaced("tract", [2**40] * 8), r"tract \(region_id\) is int64 and .* not fit int32"),
    ],
)
def test_a_tree_that_is_not_of_the_survey_is_one_clear_line(tmp_path, change, message):
    survey = tiny_survey()
    pq.write_table(change(survey_table(survey, 8)), tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match=message) as caught:
        read_all(Source.open(tmp_path, survey=survey))
    assert "\n" not in str(caught.value)


def test_required_columns_cannot_be_dropped_by_either_name(tmp_path):
    survey = tiny_survey()
    write_survey_tree(tmp_path, survey, 8)
    for name in ("object_id", "task_id"):
        with pytest.raises(ConfigError, match=r"hsc data must have the column object_id"):
            Source.open(tmp_path, survey=survey, drop_columns=[name])
    for name in ("seeing", "psfsize_r"):
        source = Source.open(tmp_path, survey=survey, drop_columns=[name])
        assert "psfsize_r" not in source.schema.names


def test_splits_are_renamed_in_columns_and_folders(tmp_path):
    survey = tiny_survey(splits={"0": "train", "1": "val", "2": "test", "9": "test"})
    table = survey_table(survey, 24)
    assert pa.types.is_integer(table["fold"].type)
    flat = write_survey_tree(tmp_path / "flat", survey, 24, files=1)
    rows = read_all(Source.open(flat, survey=survey))
    wanted = [survey.splits[str(fold)] for fold in table["fold"].to_pylist()]
    assert rows["region_split"].to_pylist() == wanted
    for fold in (0, 9):
        (tmp_path / f"hive/fold={fold}").mkdir(parents=True)
        part = table.drop_columns(["fold"])
        pq.write_table(part, tmp_path / f"hive/fold={fold}/a.parquet")
    source = Source.open(tmp_path / "hive", survey=survey)
    assert [file.split for file in source.files] == ["train", "test"]
    splits = read_all(source)["region_split"].to_pylist()
    assert splits == ["train"] * 24 + ["test"] * 24
    (tmp_path / "hive/fold=9").rename(tmp_path / "hive/fold=7")
    with pytest.raises(SchemaError, match="fold=7; known are 0, 1, 2, 9, train, val, test"):
        Source.open(tmp_path / "hive", survey=survey)


@pytest.mark.parametrize("without", [("region_split",), ("region_id", "region_split")])
def test_a_tree_without_splits_or_regions_gets_them_from_the_position(tmp_path, without):
    survey = tiny_survey(fractions=(0.5, 0.25, 0.25))
    write_survey_tree(tmp_path, survey, 48, without=without)
    source = Source.open(tmp_path, survey=survey)
    rows = read_all(source)
    region = rows["region_id"].to_numpy()
    if "region_id" in without:
        cells = assign_regions(rows["ra"].to_numpy(), rows["dec"].to_numpy())
        assert region.tolist() == cells.tolist()
    drawn = region_splits(region, survey.fractions).tolist()
    assert rows["region_split"].to_pylist() == drawn
    assert {*drawn} == {"train", "val", "test"}
    for name in ("region_split", "region_id"):
        alone = read_all(source, [name])
        assert alone.column_names == [name]
        assert alone[name].equals(rows[name])


def test_rows_off_the_sky_get_no_region(tmp_path):
    survey = tiny_survey()
    dec = [95.0, None, float("nan"), *[5.0] * 5]
    write_survey_tree(
        tmp_path, survey, 8, without=("region_id", "region_split"), columns={"dec": dec}
    )
    rows = read_all(Source.open(tmp_path, survey=survey))
    for name in ("region_id", "region_split"):
        assert rows[name].is_valid().to_pylist() == [False] * 3 + [True] * 5


def test_regions_and_splits_are_in_all_files_or_in_none(tmp_path):
    survey = tiny_survey()
    write_survey_tree(tmp_path / "a", survey, 8)
    write_survey_tree(tmp_path / "b", survey, 8, without=("region_id",))
    with pytest.raises(SchemaError, match=r"a/part-1.parquet has a column tract .region_id. and b"):
        Source.open([tmp_path / "a", tmp_path / "b"], survey=survey)


def test_a_tree_of_another_survey_is_not_taken_for_phase_4c(tmp_path):
    write_survey_tree(tmp_path, tiny_survey(), 8)
    with pytest.raises(SchemaError, match=re.escape("columns are missing that Phase 4c data must")):
        Source.open(tmp_path)
