"""Positions as others write them: headings, units, and what is not on the sky."""

import numpy as np
import pyarrow as pa
import pytest

from lensprep.dataset.sky import UNIT, on_sky, position_columns, read_positions
from lensprep.errors import ScoresError

HEADINGS = [
    ("RA", "DEC"),
    ("ra", "dec"),
    ("RA [deg]", "DEC [deg]"),
    (" RA (deg)", "Dec(deg) "),
    ("RA_deg", "DEC_deg"),
    ("RAdeg", "DEdeg"),
    ("RAJ2000", "DEJ2000"),
    ("_RAJ2000", "_DEJ2000"),
    ("_RA", "_DE"),
    ("RA_ICRS", "DE_ICRS"),
    ("_RA.icrs", "_DE.icrs"),
    ("RA (J2000) [deg]", "Dec (J2000) [degrees]"),
    ("ra_j2000", "decl_j2000"),
    ("ALPHA_J2000", "DELTA_J2000"),
    ("ALPHAWIN_J2000", "DELTAWIN_J2000"),
    ("right_ascension", "declination"),
    ("Right Ascension (degrees)", "Declination (degrees)"),
]


def table(*names, ra=10.0, dec=20.0, **more):
    return pa.table(dict(zip(names, ([ra], [dec]), strict=True)) | more)


@pytest.mark.parametrize("names", HEADINGS, ids="|".join)
def test_headings_of_the_usual_catalogues_are_known(names):
    found = table(*names, other=[1.0])
    assert position_columns(found, "c.csv", ScoresError) == names
    ra, dec = read_positions(found, "c.csv", ScoresError, names)
    assert (ra[0], dec[0]) == (10.0, 20.0)


@pytest.mark.parametrize(
    "names",
    [("RAB1950", "DEB1950"), ("RA (B1950)", "DEC (B1950)"), ("rad", "ded"), ("alpha", "delta"),
     ("e_RAJ2000", "e_DEJ2000"), ("RAh", "DEd"), ("ra_err", "dec_err"), ("flux_ra", "x")],
    ids="|".join,
)  # fmt: skip
def test_what_is_no_position_of_the_usual_equinox_is_not_guessed(names):
    with pytest.raises(ScoresError, match=r"c\.csv:? .*--catalog-column (ra|dec)=COLUMN"):
        position_columns(table(*names), "c.csv", ScoresError)


@pytest.mark.parametrize("unit", ["h", "hour", "hourangle", "rad", "h:m:s", "arcsec"])
def test_another_unit_is_refused_and_never_converted(unit):
    message = rf"column RA .* is in {unit}, not in degrees.*--catalog-column ra=COLUMN"
    named = table(f"RA [{unit}]", "DEC [deg]")
    with pytest.raises(ScoresError, match=message):
        position_columns(named, "c.csv", ScoresError)
    with pytest.raises(ScoresError, match=message):
        position_columns(named, "c.csv", ScoresError, {"ra": f"RA [{unit}]"})
    stated = pa.schema([pa.field("RA", pa.float64(), metadata={UNIT: unit}), ("DEC", pa.float64())])
    with pytest.raises(ScoresError, match=message.replace(" .*", "")):
        position_columns(table("RA", "DEC").cast(stated), "c.fits", ScoresError)


def test_degrees_beside_hours_are_taken():
    found = table("RA [deg]", "DEC [deg]", **{"RA [h]": [0.667]})
    assert position_columns(found, "c.csv", ScoresError)[0] == "RA [deg]"


def test_our_own_names_come_first_and_of_others_only_one_may_be_there():
    both = table("ra", "dec", RAJ2000=[1.0], DEJ2000=[2.0])
    assert position_columns(both, "c.csv", ScoresError) == ("ra", "dec")
    two = table("_RAJ2000", "_DEJ2000", RAJ2000=["00 40 00"], DEJ2000=["+20 00 00"])
    message = r"several columns that may be ra: _RAJ2000, RAJ2000\. Name one with --catalog-column"
    with pytest.raises(ScoresError, match=message):
        position_columns(two, "c.csv", ScoresError)
    given = {"ra": "_RAJ2000", "dec": "_DEJ2000"}
    assert position_columns(two, "c.csv", ScoresError, given) == ("_RAJ2000", "_DEJ2000")
    with pytest.raises(ScoresError, match="several columns that may be ra: RA, ra"):
        position_columns(pa.table({"RA": [1.0], "DEC": [2.0], "ra": [1.0]}), "c.csv", ScoresError)
    with pytest.raises(ScoresError, match="has no column 'RAJ'"):
        position_columns(both, "c.csv", ScoresError, {"ra": "RAJ"})


def test_sexagesimal_text_is_refused_in_one_line():
    with pytest.raises(ScoresError, match=r"column RA holds string \('00:40:00'\), not degrees"):
        read_positions(table("RA", "DEC", ra="00:40:00"), "c.csv", ScoresError, ("RA", "DEC"))
    assert read_positions(table("ra", "dec", ra="10.5"), "c", ScoresError)[0] == 10.5


@pytest.mark.parametrize(
    ("ra", "dec"),
    [(10.0, 90.001), (10.0, -95.0), (361.0, 0.0), (-181.0, 0.0), (np.inf, 0.0), (1.0, -np.inf)],
)
@pytest.mark.parametrize("unknown", [False, True])
def test_a_position_off_the_sky_names_file_row_and_key(ra, dec, unknown):
    rows = pa.table({"key": ["a", "b"], "ra": [1.0, ra], "dec": [2.0, dec]})
    with pytest.raises(ScoresError, match=r"s\.csv: 1 rows .*row 2, key b: ra .*, dec .*"):
        read_positions(rows, "s.csv", ScoresError, unknown=unknown)


def test_a_missing_position_is_nan_where_it_may_be_missing():
    rows = pa.table({"ra": [1.0, None, 3.0], "dec": [2.0, 5.0, np.nan]})
    ra, dec = read_positions(rows, "s.csv", ScoresError, unknown=True)
    np.testing.assert_array_equal(ra, [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(dec, [2.0, np.nan, np.nan])
    with pytest.raises(ScoresError, match="2 rows have no position on the sky"):
        read_positions(rows, "s.csv", ScoresError)


def test_right_ascension_west_of_zero_is_the_same_place():
    rows = pa.table({"ra": [-10.0, 360.0, -180.0, 12.3], "dec": [0.0, 90.0, -90.0, 0.0]})
    assert read_positions(rows, "s", ScoresError)[0].tolist() == [350.0, 0.0, 180.0, 12.3]
    assert on_sky(*(rows[name].to_numpy() for name in ("ra", "dec"))).all()
