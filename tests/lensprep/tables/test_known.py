"""Units, UCDs and descriptions: by the standards, and one for every column of ours."""

from __future__ import annotations

import pytest
from astropy import units
from astropy.io.votable.ucd import parse_ucd

from lensprep.dataset.layout import MEASURED_COLUMNS
from lensprep.decode.prepare import CUTOUT_REJECT_SCHEMA
from lensprep.source.survey import COLUMN_BY_NAME, STAMP_COLUMN, TOLD_COLUMNS
from lensprep.tables.known import Known, known_column
from lenstrain.evaluation.operating import long_table
from lenstrain.scoretable import COLUMNS

OURS = sorted(
    {
        *COLUMN_BY_NAME.keys() - {STAMP_COLUMN},
        *(column.name for column in TOLD_COLUMNS),
        *MEASURED_COLUMNS,
        *CUTOUT_REJECT_SCHEMA.names,
        *COLUMNS,
        *long_table([]),
        *("logit_0", "embedding", "embedding_1", "weight", "rank", "supported"),
        *("population_share", "injection_weight", "psf_fwhm_used_i", "median_vis"),
    }
)


@pytest.mark.parametrize("name", OURS)
def test_a_column_of_ours_is_known_in_the_words_of_the_standards(name):
    known = known_column(name)
    assert known.description
    assert known.description.isascii()
    assert len(known.description) <= 67, "it shall fit one card"
    if name != "shear":  # UCD1+ has no word of lensing
        parse_ucd(known.ucd, check_controlled_vocabulary=True)
    for form in ("vounit", "fits"):
        units.Unit(known.unit, format=form, parse_strict="raise")


def test_what_is_not_known_is_left_out():
    for name in ("objid", "objid_lo", "src_foo", "ra_mid", "", "_lo", "logit_x"):
        assert known_column(name) == Known("", "", "")


def test_families_name_their_member_and_edges_their_axis():
    assert known_column("src_gr").description == "colour g - r of the source"
    assert known_column("hi95") == ("", "stat.probability;stat.max", "upper end at 95 %, by lenses")
    low = known_column("psfsize_r_lo")
    assert low == ("arcsec", "instr.obsty.seeing;stat.min", "lower edge of the cell in psfsize_r")


def test_a_survey_takes_units_and_meanings_from_here_unless_it_says_more():
    assert (COLUMN_BY_NAME["ra"].unit, COLUMN_BY_NAME["ra"].meaning) == ("deg", "right ascension")
    assert COLUMN_BY_NAME["total_injected_flux_r"].unit == "nanomaggies"
    assert COLUMN_BY_NAME["is_control"].meaning.endswith("must agree with the label")
