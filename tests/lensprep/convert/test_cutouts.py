"""Catalogues of cutouts beside trees: one dataset whose splits hold across all sources."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner

from lensprep.cli import main
from lensprep.convert import CutoutConfig, convert
from lensprep.convert.cutouts import join_catalogs
from lensprep.dataset import Dataset
from lensprep.decode.normalize import Normalizer
from lensprep.decode.prepare import Preparer
from lensprep.decode.rowgroup import prepare_row_groups
from lensprep.errors import (
    BudgetError,
    ConfigError,
    DatasetError,
    InputError,
    ProjectError,
    SchemaError,
)
from lensprep.inspection.verify import verify
from lensprep.source.catalog import CHUNK_ROWS
from lensprep.source.contract import FilterRules
from lensprep.source.regions import region_splits
from lensprep.store import S3Options
from tests.lensprep.convert.conversions import CONFIG, digests, rejects
from tests.phase4c import tiny_pixels, tiny_table, write_tree
from tests.surveytree import tiny_survey, write_survey_tree

ROWS = 24
PIXELS = tiny_pixels(ROWS)  # those of the tree


@pytest.fixture(scope="module")
def rows():
    return tiny_table(ROWS).drop_columns(["stamp_npz"]).to_pylist()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("src"), tiny_table(ROWS))


def write_catalog(folder, entries, name="found.csv", pixels=None):
    """Write a catalogue and its images; each row is a dict with at least ra and dec."""
    folder.mkdir(exist_ok=True)
    stem = name.split(".")[0]
    images = tiny_pixels(len(entries), seed=7) if pixels is None else pixels
    table = []
    for number, (entry, image) in enumerate(zip(entries, images, strict=True)):
        file = f"{stem}-{number}.fits"
        fits.writeto(folder / file, image)
        table.append({"key": f"c{number}", "file": file, "label": 1, **entry})
    with (folder / name).open("w", newline="") as text:
        writer = csv.DictWriter(text, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return str(folder / name)


@pytest.fixture
def catalog(tmp_path):
    """Writes a catalogue of this test."""
    return partial(write_catalog, tmp_path / "found")


def beside(row, arcsec=60.0, **more):
    """A position so far north of a row."""
    return {"ra": row["ra"], "dec": row["dec"] + arcsec / 3600, **more}


def in_split(rows, split):
    return next(row for row in rows if row["region_split"] == split)


def sidecar(root):
    dataset = Dataset.open(root)
    return [
        row
        for split in dataset.manifest.splits
        for row in dataset.read_sidecar(split).to_pylist()
    ]  # fmt: skip


def options(**settings):
    return replace(CONFIG, cutouts=CutoutConfig(**settings))


def test_cutouts_get_region_and_split_of_the_tree_around_them(tree, rows, catalog, tmp_path):
    found = catalog([
        beside(in_split(rows, "test"), label="Lens", grade="A", survey="SWELLS", mag=18.5),
        beside(in_split(rows, "train"), 5.0, label="no", grade="", survey="", mag=19),
        {"ra": 250.0, "dec": 40.0, "label": 0, "grade": "", "survey": "x", "mag": 20},
    ])  # fmt: skip
    report = convert([str(tree), found], str(tmp_path / "ds"), CONFIG, workers=1)
    own = {r["task_id"]: r for r in sidecar(tmp_path / "ds") if r["origin"] == "real"}
    near, close, far = (own[f"found:c{number}"] for number in range(3))
    for row, split in ((near, "test"), (close, "train")):
        assert row["region_split"] == split
        assert row["region_id"] == in_split(rows, split)["region_id"]
    assert far["region_id"] < 0
    assert far["region_split"] in ("train", "val", "test")
    assert (near["label"], near["lens_model"], near["kind"], near["grade"]) == (
        *(1, "LENS"), "lens", "A",
    )  # fmt: skip
    assert (close["label"], close["lens_model"], close["kind"]) == (0, "NONLENS", None)
    assert near["survey"] == "SWELLS"
    assert near["mag"] == 18.5
    assert near["source_file"] == "found.csv"
    assert near["theta_e_arcsec"] is None
    others = [r for r in sidecar(tmp_path / "ds") if r["origin"] == "simulated"]
    assert len(others) == ROWS
    assert {r["kind"] for r in others} == {None}
    assert report["sources"]["found.csv"]["real"]["lens"]["accepted"] == 1
    manifest = Dataset.open(tmp_path / "ds").manifest
    assert manifest.label_map["NONLENS"] == 0
    assert manifest.label_map["SIE"] == 1
    assert verify(str(tmp_path / "ds"), sample=None, workers=1)["ok"]


def test_order_of_sources_and_workers_do_not_change_the_bytes(tree, rows, catalog, tmp_path):
    found = catalog([beside(row) for row in rows[:6]])
    more = catalog([beside(row, -60.0) for row in rows[6:9]], "more.csv")
    convert([str(tree), found, more], str(tmp_path / "a"), CONFIG, workers=1)
    convert([more, found, str(tree)], str(tmp_path / "b"), CONFIG, workers=2)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_tree_alone_says_nothing_of_catalogues(tree, tmp_path):
    convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1)
    manifest = json.loads((tmp_path / "ds/manifest.json").read_text())
    assert "cutouts" not in manifest["config"]
    assert "sources" not in manifest["account"]
    assert "LENS" not in manifest["label_map"]
    assert "catalogs" not in manifest["source"]
    assert "origin" not in sidecar(tmp_path / "ds")[0]


def test_a_catalogue_alone_is_split_by_cells_of_the_sky(catalog, tmp_path):
    found = catalog([{"ra": 3.0 * i, "dec": 10.0 * (i % 5)} for i in range(60)])
    convert(found, str(tmp_path / "ds"), CONFIG, workers=1)
    got = sidecar(tmp_path / "ds")
    assert len(got) == 60
    assert {row["region_split"] for row in got} == {"train", "val", "test"}
    other = options(fractions=(0.0, 0.0, 1.0))
    convert(found, str(tmp_path / "all test"), other, workers=1)
    assert {row["region_split"] for row in sidecar(tmp_path / "all test")} == {"test"}


def test_sky_in_two_splits_is_an_error_or_left_out(tree, rows, catalog, tmp_path):
    near = in_split(rows, "test")
    found = catalog([
        beside(near, 20.0, region_id=999, region_split="train"),
        beside(near, 60.0, region_id="", region_split=""),
    ])  # fmt: skip
    with pytest.raises(InputError, match=r"1 cutouts share sky .* found:c0 in train is 20\.0 arc"):
        convert([str(tree), found], str(tmp_path / "ds"), CONFIG, workers=1)
    assert not (tmp_path / "ds").exists()
    report = convert(
        [str(tree), found], str(tmp_path / "ds"), options(drop_overlap=True), workers=1
    )
    assert report["filtered"] == {"overlap": 1}
    assert report["overlaps_dropped"] == 1
    assert [row["task_id"] for row in rejects(tmp_path / "ds")] == ["found:c0"]
    assert verify(str(tmp_path / "ds"), sample=None, workers=1)["ok"]


def test_of_two_cutouts_in_two_splits_the_one_for_training_goes(catalog, tmp_path):
    place = {"ra": 30.0, "dec": 5.0}
    found = catalog([
        {**place, "region_id": 1, "region_split": "test"},
        {**place, "dec": 5.001, "region_id": 2, "region_split": "train"},
    ])  # fmt: skip
    convert(found, str(tmp_path / "ds"), options(drop_overlap=True), workers=1)
    assert [row["task_id"] for row in sidecar(tmp_path / "ds")] == ["found:c0"]


def test_a_region_in_two_splits_is_an_error(tree, rows, catalog, tmp_path):
    region = in_split(rows, "train")["region_id"]
    found = catalog([{"ra": 200.0, "dec": 50.0, "region_id": region, "region_split": "val"}])
    with pytest.raises(InputError, match=f"its region {region} is in train and in val"):
        convert([str(tree), found], str(tmp_path / "ds"), CONFIG, workers=1)


def test_one_object_in_two_sources_is_listed(tree, rows, catalog, tmp_path, caplog):
    control = next(i for i, row in enumerate(rows) if row["lens_model"] == "CONTROL")
    lens = next(i for i, row in enumerate(rows) if row["lens_model"] != "CONTROL")
    pixels = [PIXELS[control], tiny_pixels(1, seed=9)[0]]
    found = catalog([beside(rows[control], 0.3), beside(rows[lens], 0.0)], pixels=pixels)
    report = convert([str(tree), found], str(tmp_path / "ds"), CONFIG, workers=1)
    same = report["same_objects"]
    assert (same["pairs"], same["identical_pixels"], same["contradicting_labels"]) == (2, 1, 1)
    first = same["listed"][0]
    assert (first["task_id"], first["other_task_id"]) == ("found:c0", rows[control]["task_id"])
    assert first["identical_pixels"]
    assert first["arcsec"] == pytest.approx(0.3, abs=0.01)
    assert "one object with two labels: found:c0 (1)" in caplog.text
    assert Dataset.open(tmp_path / "ds").manifest.source["same_objects"] == same


def test_every_row_that_is_left_out_has_a_reason_and_what_was_found(tree, catalog, tmp_path):
    sky = [{"ra": 40.0 + i, "dec": 60.0} for i in range(5)]
    pixels = list(tiny_pixels(5, seed=7))
    pixels[1], pixels[2] = pixels[1][:, :40], pixels[2].copy()
    pixels[2][0, 3, 3] = np.nan
    entries = [{**s, "label": label} for s, label in zip(sky, [1, 1, 1, "maybe", 0], strict=True)]
    found = catalog(entries, pixels=pixels)
    (tmp_path / "found/found-4.fits").unlink()
    report = convert([str(tree), found], str(tmp_path / "ds"), CONFIG, workers=1)
    assert report["rejected"] == {
        "no_cutout": 1, "nonfinite": 1, "unknown_label": 1, "wrong_shape": 1,
    }  # fmt: skip
    details = {row["task_id"]: row["detail"] for row in rejects(tmp_path / "ds")}
    assert "label 'maybe'" in details["found:c3"]
    assert "found-1.fits" in details["found:c1"]
    assert "found-4.fits" in details["found:c4"]
    of_it = report["sources"]["found.csv"]["real"]
    assert sum(counts["accepted"] for counts in of_it.values()) == 1
    strict = replace(CONFIG, max_reject_rate=0.01)
    with pytest.raises(BudgetError, match=r"4 of 29 rows are rejected .*found\.csv, row"):
        convert([str(tree), found], str(tmp_path / "strict"), strict, workers=1)


@pytest.mark.parametrize(("arcsec", "refused"), [(11.0, False), (12.5, True), (40_000.0, True)])
def test_a_file_of_another_piece_of_sky_is_refused(catalog, tmp_path, arcsec, refused):
    """Half the diagonal of a stamp is 11.86 arcsec: beyond, the object is not even in a corner."""
    places = [{"ra": 359.9999, "dec": 60.0, "label": 1}, {"ra": 10.0, "dec": -5.0, "label": 0}]
    for number, ra in enumerate((0.0001, 10.0)):
        dec = places[number]["dec"] + arcsec / 3600 * (number == 0)
        np.savez(tmp_path / f"{number}.npz", cutout=tiny_pixels(2, seed=3)[number], ra=ra, dec=dec)
        places[number]["file"] = f"{number}.npz"
    found = catalog(places, pixels=tiny_pixels(2))
    for number in range(2):
        (tmp_path / f"{number}.npz").rename(tmp_path / f"found/{number}.npz")
    report = convert(found, str(tmp_path / "ds"), CONFIG, workers=1)
    assert report["rejected"] == ({"wrong_position": 1} if refused else {})
    for row in rejects(tmp_path / "ds"):
        assert f"its own position is ra 0.00010, dec {60 + arcsec / 3600:.5f}" in row["detail"]


def test_copies_in_a_catalogue_are_kept_apart_by_their_keys(catalog, tmp_path):
    found = catalog([{"ra": 5.0, "dec": 5.0}] * 2, pixels=np.repeat(tiny_pixels(1), 2, 0))
    report = convert(found, str(tmp_path / "ds"), CONFIG, workers=1)
    assert report["accepted"] == 2
    assert report["same_objects"]["identical_pixels"] == 1


def test_grades_are_labels_only_if_the_user_says_so(catalog, tmp_path):
    sky = [{"ra": 5.0 + i, "dec": 5.0, "grade": grade} for i, grade in enumerate("ABC")]
    entries = [{**entry, "label": ""} for entry in sky]
    found = catalog(entries)
    text = (tmp_path / "found/found.csv").read_text().replace(",label", ",remark")
    (tmp_path / "found/found.csv").write_text(text)
    with pytest.raises(InputError, match=r"no label but a grade.*--grade-lens"):
        convert(found, str(tmp_path / "ds"), CONFIG, workers=1)
    report = convert(found, str(tmp_path / "ds"), options(grade_lens=("A", "B")), workers=1)
    assert report["accepted"] == 2
    assert report["filtered"] == {"grade": 1}


def test_a_column_of_another_type_is_a_clear_error(tree, rows, catalog, tmp_path):
    found = catalog([beside(rows[0], theta_e_arcsec="large")])
    with pytest.raises(SchemaError, match=r"column theta_e_arcsec holds string.*--drop-column"):
        convert([str(tree), found], str(tmp_path / "ds"), CONFIG, workers=1)
    without = replace(CONFIG, drop_columns=("theta_e_arcsec",), cutouts=None)
    with pytest.raises(ConfigError, match="theta_e_arcsec"):  # the tree needs it
        convert([str(tree), found], str(tmp_path / "ds"), without, workers=1)


def test_options_of_catalogues_need_one(tree, tmp_path):
    with pytest.raises(ConfigError, match=r"none of the sources is a table of cutouts \(one file"):
        convert(str(tree), str(tmp_path / "ds"), options(drop_overlap=True), workers=1)


@pytest.mark.parametrize("beside_tree", [False, True])
def test_a_catalogue_that_is_not_there_is_named(tree, tmp_path, beside_tree):
    missing = str(tmp_path / "lenses.csv")
    sources = [str(tree), missing] if beside_tree else [missing]
    with pytest.raises(ProjectError, match=r"lenses\.csv: no such"):
        convert(sources, str(tmp_path / "ds"), CONFIG, workers=1)


def test_the_remedy_for_an_unusual_name_is_an_option_of_convert(catalog, tmp_path):
    found = catalog([{"ra": 5.0, "dec": 5.0}])
    table = tmp_path / "found/found.csv"
    table.write_text(table.read_text().replace("ra,", "lon,", 1))
    arguments = ["convert", found, str(tmp_path / "ds"), "--workers", "1"]
    refused = CliRunner().invoke(main, arguments)
    assert "--catalog-column ra=COLUMN" in refused.output
    done = CliRunner().invoke(main, [*arguments, "--catalog-column", "ra=lon"])
    assert done.exit_code == 0, done.output


def test_a_conversion_resumes_only_with_the_same_catalogue(tree, rows, catalog, tmp_path):
    found = catalog([beside(row) for row in rows[:3]])
    sources, out = [str(tree), found], str(tmp_path / "ds")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(sources, out, CONFIG, workers=1, progress=stop)
    table = tmp_path / "found/found.csv"
    before = table.read_text()
    table.write_text(before.replace("c0,", "other,"))
    with pytest.raises(DatasetError, match="other source files"):
        convert(sources, out, CONFIG, workers=1, resume=True)
    table.write_text(before)
    convert(sources, out, CONFIG, workers=1, resume=True)
    convert(sources, str(tmp_path / "again"), CONFIG, workers=1)
    assert digests(tmp_path / "ds") == digests(tmp_path / "again")


def test_cutouts_of_another_survey_join_its_tree(tmp_path):
    survey = tiny_survey()
    tree = write_survey_tree(tmp_path / "src", survey, rows=12)
    shape = survey.geometry.shape
    folder = tmp_path / "found"
    folder.mkdir()
    for name, side in (("large", shape[1] + 10), ("small", shape[1] - 2)):
        image = np.random.default_rng(0).normal(size=(shape[0], side, side)).astype(np.float32)
        header = fits.Header({"BANDS": "".join(survey.geometry.bands)})
        fits.writeto(folder / f"{name}.fits", image, header)
    (folder / "found.csv").write_text("key,ra,dec,label\nlarge,200,1,1\nsmall,100,1,0\n")
    config = replace(CONFIG, survey=survey)
    report = convert(
        [str(tree), str(folder / "found.csv")], str(tmp_path / "ds"), config, workers=1
    )
    assert report["accepted"] == 13
    assert report["rejected"] == {"wrong_shape": 1}
    manifest = Dataset.open(tmp_path / "ds").manifest
    assert manifest.label_map == {"0": 0, "1": 1, "LENS": 1, "NONLENS": 0}
    (own,) = (row for row in sidecar(tmp_path / "ds") if row["origin"] == "real")
    assert own["task_id"] == "found:large"
    assert own["region_split"] == str(region_splits([own["region_id"]])[0])
    assert verify(str(tmp_path / "ds"), sample=None, workers=1)["ok"]


def test_the_command_prints_the_account_of_each_source(tree, rows, catalog, tmp_path):
    found = catalog([beside(row, 60.0, kind="ring", label=0) for row in rows[:2]])
    text = (tmp_path / "found/found.csv").read_text().replace("key,", "objid,")
    (tmp_path / "found/found.csv").write_text(text)
    arguments = ["convert", str(tree), found, str(tmp_path / "ds"), "--workers", "1"]
    arguments += ["--columns", "id=objid", "--cutouts", str(tmp_path / "found")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert re.search(r"^found\.csv +real +ring +2 +2 +0 +0$", done.output, re.M)
    again = CliRunner().invoke(main, [*arguments, "--resume", "--json"])
    assert json.loads(again.stdout)["sources"]["found.csv"]["real"]["ring"]["accepted"] == 2
    check = ["verify", str(tmp_path / "ds"), "--all", "--against", str(tree), "--against", found]
    against = CliRunner().invoke(main, [*check, "--cutouts", str(tmp_path / "found")])
    assert against.exit_code == 0, against.output
    assert f"{ROWS + 2} stamps, {ROWS + 2} compared with the source: ok" in against.output


@pytest.fixture(scope="module")
def converted(tree, rows, tmp_path_factory):
    """A dataset of a tree and a catalogue that is larger than a part."""
    folder = tmp_path_factory.mktemp("mixed")
    entries = [beside(rows[i % ROWS], 30.0 + i) for i in range(CHUNK_ROWS + 2)]
    found = write_catalog(folder / "found", entries)
    convert([str(tree), found], str(folder / "ds"), CONFIG, workers=1)
    return folder


@pytest.fixture
def mixed(converted, tree, tmp_path):
    """A copy of it, and its sources."""
    shutil.copytree(converted, tmp_path / "mixed")
    return tmp_path / "mixed/ds", [str(tree), str(tmp_path / "mixed/found/found.csv")]


def faults(mixed, **given):
    found = verify(str(mixed[0]), against=mixed[1], sample=None, workers=1, **given)
    return [(fault["file"], fault["what"]) for fault in found["faults"]]


def test_cutouts_are_compared_with_their_files(mixed):
    folder = mixed[0].parent / "found"
    assert faults(mixed) == []
    last = CHUNK_ROWS + 1
    fits.writeto(folder / f"found-{last}.fits", tiny_pixels(1, seed=9)[0], overwrite=True)
    (folder / "found-3.fits").write_bytes(bytes((folder / "found-3.fits").stat().st_size))
    table = folder / "found.csv"
    table.write_text(table.read_text().replace("c5,found-5.fits,1", "c5,found-5.fits,0"))
    whats = sorted(what for _, what in faults(mixed))
    assert len(whats) == 3
    for what, (row, reason) in zip(
        sorted(whats, key=lambda what: int(what.split(" row ")[1].split()[0])),
        [(3, r"its stamp cannot be decoded \(wrong_format: "), (5, "its label is 0 there, not 1"),
         (last, "the pixels differ")], strict=True,
    ):  # fmt: skip
        assert re.search(rf"found\.csv row {row} of the source: {reason}", what)


def test_other_catalogues_are_told_in_one_fault(mixed):
    root, (tree, _) = mixed
    with pytest.raises(ConfigError, match="name their tables with --against"):
        faults((root, [tree]), folders=["found"])
    ((file, what),) = faults((root, [tree]))
    assert file == "manifest.json"
    assert "files that are missing: 1 (found.csv)" in what
    table = root.parent / "found/found.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    ((file, what),) = faults(mixed)
    assert "files with other rows: 1 (found.csv)" in what


def test_rows_of_a_part_that_kills_its_process_keep_their_numbers(catalog):
    found = catalog([{"ra": 2.0 * number, "dec": 5.0} for number in range(CHUNK_ROWS + 2)])
    source, _ = join_catalogs(None, [found], found, CONFIG, S3Options())
    preparer = Preparer(0, FilterRules(), Normalizer(CONFIG.normalization))
    last = [(source.files[1], 0)]
    (prepared,) = prepare_row_groups(source, last, preparer, fatal=last)
    assert prepared.left_out["source_row"].to_pylist() == [CHUNK_ROWS, CHUNK_ROWS + 1]


@pytest.mark.parametrize("columns", [["label"], "label", [["label"]], [[1, 2]], [{"a": "b"}]])
def test_settings_of_a_foreign_manifest_are_checked(mixed, columns):
    path = mixed[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["cutouts"] = {"columns": columns}
    path.write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match="config: cutouts"):
        faults(mixed)


def test_sources_that_do_not_balance_are_found(mixed):
    path = mixed[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["account"]["sources"]["found.csv"]["real"]["lens"]["accepted"] -= 1
    path.write_text(json.dumps(manifest))
    found = verify(str(mixed[0]), workers=1)["faults"]
    rows = ROWS + CHUNK_ROWS + 2
    assert [fault["what"] for fault in found] == [
        f"its sources have {rows - 1} accepted, where the account has {rows}"
    ]
