"""`lensprep check` of trees that are not of Phase 4c: held to their own contract and geometry."""

import numpy as np
import pytest

from lensprep.checks.check import check
from tests.surveytree import tiny_survey, write_survey_tree

ROWS = 24


def report_on(folder, survey=None, rows=ROWS, **given):
    survey = survey or tiny_survey(bands="gr", side=32)
    return check(write_survey_tree(folder, survey, rows, **given), survey=survey)


def finding(report, item):
    (found,) = (found for found in report.findings if found.item == item)
    return found


def failed(report):
    return {found.item for found in report.findings if found.passed is False}


def test_a_sound_tree_with_only_what_is_required_is_not_accused(tmp_path):
    bare = ("theta_e_arcsec", "psfsize_r", "psfdepth_r", "region_id")
    report = report_on(tmp_path, without=bare)
    assert failed(report) == {"regions_per_split"}
    for item in ("unresolved_share", "stamp_quality", "bricks_disjoint"):
        assert finding(report, item).detail.startswith("Not run: ")
    assert finding(report, "label_consistency").detail == "lens_model gives every row a label."
    assert finding(report, "schema").measured["missing"] == []


@pytest.mark.parametrize(("offset_arcsec", "shared"), [(7.0, True), (7.8, False)])
def test_the_diagonal_of_the_surveys_own_stamps_separates_splits(tmp_path, offset_arcsec, shared):
    survey = tiny_survey(bands="gr", side=32)
    assert survey.geometry.diagonal_arcsec == pytest.approx(7.60, abs=0.01)
    region = (np.arange(ROWS) // 2) % 12
    dec = np.zeros(ROWS)
    dec[4] = offset_arcsec / 3600  # the first row of val, beside the first of train
    ra = np.where(np.arange(ROWS) == 4, 10.0, 10.0 + 3.0 * region)
    report = report_on(tmp_path, survey, columns={"ra": ra, "dec": dec})
    assert finding(report, "sky_separation").passed is not shared


def test_columns_of_an_injection_and_of_a_catalogue_are_known_to_reveal_the_label(tmp_path):
    lens = np.arange(60) % 2 == 1
    known = {"psf_fwhm_used_r": lens * 1.0, "src_gr": lens * 1.0, "kind": ["spiral", "lens"] * 30}
    report = report_on(tmp_path, rows=60, columns={**known, "found_by": lens.astype(int)})
    assert {*known} < {*finding(report, "leaking_columns").measured}
    assert {*finding(report, "unlisted_leaks").measured} == {"found_by"}


def test_ranges_are_those_of_the_survey(tmp_path):
    space = tiny_survey("euclid", ("vis",), side=64, scale=0.1)
    columns = {"psfsize_r": np.full(ROWS, 0.16), "psfdepth_r": np.full(ROWS, 26.2)}
    assert "value_ranges" not in failed(report_on(tmp_path / "a", space, columns=columns))
    columns = {"theta_e_arcsec": np.where(np.arange(ROWS) % 2, 3.3, 0.0)}  # half a side is 3.2
    found = finding(report_on(tmp_path / "b", space, columns=columns), "value_ranges")
    assert found.measured == {"theta_e_arcsec": 12}
    assert found.threshold == {"theta_e_arcsec": [0, pytest.approx(3.2)]}


def test_labels_that_contradict_other_columns_are_a_blocker(tmp_path):
    report = report_on(tmp_path, columns={"is_control": [1] * ROWS})
    found = finding(report, "label_consistency")
    assert found.measured == {"label_conflict": 12}
    assert "lens_model, is_control and theta_e_arcsec" in found.detail
    assert report.verdict == "failed"
