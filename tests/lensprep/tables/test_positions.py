"""Positions as others write them: headings, units, and what is not on the sky."""

import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord

from lensprep.errors import ScoresError
from lensprep.tables.positions import (
    UNIT,
    nearest_on_sky,
    on_sky,
    position_columns,
    read_positions,
    separation_arcsec,
)

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
    assert position_columns(found, "c.csv") == names
    ra, dec = read_positions(found, "c.csv", names)
    assert (ra[0], dec[0]) == (10.0, 20.0)


@pytest.mark.parametrize(
    "names",
    [("RAB1950", "DEB1950"), ("RA (B1950)", "DEC (B1950)"), ("rad", "ded"), ("alpha", "delta"),
     ("e_RAJ2000", "e_DEJ2000"), ("RAh", "DEd"), ("ra_err", "dec_err"), ("flux_ra", "x")],
    ids="|".join,
)  # fmt: skip
def test_what_is_no_position_of_the_usual_equinox_is_not_guessed(names):
    with pytest.raises(ScoresError, match=r"c\.csv:? .*--catalog-column (ra|dec)=COLUMN"):
        position_columns(table(*names), "c.csv")


@pytest.mark.parametrize("unit", ["rad", "arcsec", "pix"])
def test_another_unit_is_refused(unit):
    message = rf"column RA .* is in {unit}, not in degrees or hours.*--catalog-column ra=COLUMN"
    named = table(f"RA [{unit}]", "DEC [deg]")
    with pytest.raises(ScoresError, match=message):
        position_columns(named, "c.csv")
    with pytest.raises(ScoresError, match=message):
        position_columns(named, "c.csv", {"ra": f"RA [{unit}]"})
    stated = pa.schema([pa.field("RA", pa.float64(), metadata={UNIT: unit}), ("DEC", pa.float64())])
    with pytest.raises(ScoresError, match=message.replace(" .*", "")):
        position_columns(table("RA", "DEC").cast(stated), "c.fits")


@pytest.mark.parametrize("unit", ["h", "hr", "hour", "hourangle"])
@pytest.mark.parametrize("stated", ["heading", "metadata"])
def test_numbers_are_hours_of_right_ascension_where_that_is_stated(unit, stated):
    name = f"RA [{unit}]" if stated == "heading" else "RA"
    field = pa.field(name, pa.float64(), metadata={UNIT: unit if stated == "metadata" else ""})
    found = table(name, "DEC", ra=12.5).cast(pa.schema([field, ("DEC", pa.float64())]))
    names = position_columns(found, "c")
    assert [each[0] for each in read_positions(found, "c", names)] == [187.5, 20.0]
    wrong = table("RA", f"DEC [{unit}]")
    with pytest.raises(ScoresError, match=rf"DEC \[{unit}\] is in {unit}, not in degrees\. "):
        position_columns(wrong, "c")


def test_numbers_under_a_unit_of_text_are_refused():
    with pytest.raises(ScoresError, match="is said to be in h:m:s, and holds numbers"):
        read_positions(table("RA [h:m:s]", "DEC"), "c", ("RA [h:m:s]", "DEC"))


def test_degrees_beside_hours_or_text_are_taken():
    for beside in ({"RA [h]": [0.667]}, {"RAJ2000": ["00 40 00"]}):
        found = table("RA [deg]", "DEC [deg]", **beside)
        assert position_columns(found, "c.csv")[0] == "RA [deg]"


def test_our_own_names_come_first_and_of_others_only_one_may_be_there():
    both = table("ra", "dec", RAJ2000=[1.0], DEJ2000=[2.0])
    assert position_columns(both, "c.csv") == ("ra", "dec")
    two = table("_RAJ2000", "_DEJ2000", RAJ2000=[10.0], DEJ2000=[20.0])
    message = r"several columns that may be ra: _RAJ2000, RAJ2000\. Name one with --catalog-column"
    with pytest.raises(ScoresError, match=message):
        position_columns(two, "c.csv")
    given = {"ra": "_RAJ2000", "dec": "_DEJ2000"}
    assert position_columns(two, "c.csv", given) == ("_RAJ2000", "_DEJ2000")
    with pytest.raises(ScoresError, match="several columns that may be ra: RA, ra"):
        position_columns(pa.table({"RA": [1.0], "DEC": [2.0], "ra": [1.0]}), "c.csv")
    with pytest.raises(ScoresError, match="has no column 'RAJ'"):
        position_columns(both, "c.csv", {"ra": "RAJ"})


SEXAGESIMAL = [
    ("12:30:00", "-00:30:00", 187.5, -0.5),
    ("12:30:49.4233", "+12:23:28.044", 187.70593042, 12.39112333),
    ("12h30m49.42s", "+12d23m28.04s", 187.70591667, 12.39112222),
    ("12 30 49.42", "12 23 28.04", 187.70591667, 12.39112222),
    ("12H30M", "-05°30′36″", 187.5, -5.51),
    ("12:30.5", "-5:30", 187.625, -5.5),
    ("187d42m21.3s", "12:23:28", 187.70591667, 12.39111111),
    ("00:00:00,6", "−12 23 28,04", 0.0025, -12.39112222),
    (" 23:59:60 ", " 90 00 00 ", 0.0, 90.0),
]


@pytest.mark.parametrize(("ra", "dec", "ra_deg", "dec_deg"), SEXAGESIMAL)
def test_sexagesimal_text_is_known_by_its_form(ra, dec, ra_deg, dec_deg):
    rows = table("RA", "DEC", ra=ra, dec=dec)
    found = [each[0] for each in read_positions(rows, "c", ("RA", "DEC"))]
    assert found == pytest.approx([ra_deg, dec_deg], abs=5e-9)


@pytest.mark.parametrize(
    "style",
    [{"style": "hmsdms"}, {"style": "hmsdms", "sep": ":"}, {"style": "hmsdms", "sep": " "},
     {"style": "dms"}],
    ids=str,
)  # fmt: skip
def test_what_astropy_writes_is_read(style):
    rng = np.random.default_rng(0)
    sky = SkyCoord(rng.uniform(0, 360, 500), rng.uniform(-90, 90, 500), unit="deg")
    if style.get("sep") == " ":
        texts = [[" ".join(text.split()[:3]), " ".join(text.split()[3:])]
                 for text in sky.to_string(precision=6, **style)]  # fmt: skip
    else:
        texts = [text.split() for text in sky.to_string(precision=6, **style)]
    rows = pa.table(dict(zip(("ra", "dec"), zip(*texts, strict=True), strict=True)))
    for found, true in zip(read_positions(rows, "c"), (sky.ra, sky.dec), strict=True):
        np.testing.assert_allclose(found, true.deg, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("ra", "dec", "column"),
    [
        ("00:40:00 x", "1", "RA"),
        ("187:42:21", "1:0:0", "RA"),  # degrees that do not say so
        ("10:60:00", "1:0:0", "RA"),
        ("10:00:61", "1:0:0", "RA"),
        ("10:00:00", "01h00m00s", "DEC"),
        ("2020-01-01", "1", "RA"),
        ("nan", "1:0:0", None),
    ],
)
def test_text_that_is_no_position_is_named(ra, dec, column):
    rows = pa.table({"RA": ["01:00:00", ra], "DEC": ["01:00:00", dec]})
    message = rf"column {column} holds string \('{ra if column == 'RA' else dec}'\) in 1 of 2 rows"
    if column is None:
        message = r"1 rows have no position \(null or NaN\) \(first: row 2"
    with pytest.raises(ScoresError, match=message):
        read_positions(rows, "c.csv", ("RA", "DEC"))


def test_what_is_stated_and_what_is_written_must_agree():
    for name, ra, column in (("RA [deg]", "12:30:00", "RA"), ("RA [h:m:s]", "12d30m00s", "")):
        rows = table(name, "DEC", ra=ra)
        if column:
            with pytest.raises(
                ScoresError, match=r"RA \[deg\] holds string \('12:30:00'\), not deg"
            ):
                read_positions(rows, "c", (name, "DEC"))
        else:
            assert read_positions(rows, "c", (name, "DEC"))[0] == 12.5


def test_degrees_that_are_text_are_degrees():
    assert read_positions(table("ra", "dec", ra="10.5"), "c")[0] == 10.5


@pytest.mark.parametrize(
    ("ra", "dec"),
    [(10.0, 90.001), (10.0, -95.0), (361.0, 0.0), (-181.0, 0.0), (np.inf, 0.0), (1.0, -np.inf)],
)
@pytest.mark.parametrize("unknown", [False, True])
def test_a_position_off_the_sky_names_file_row_and_key(ra, dec, unknown):
    rows = pa.table({"key": ["a", "b"], "ra": [1.0, ra], "dec": [2.0, dec]})
    with pytest.raises(ScoresError, match=r"s\.csv: 1 rows .*row 2, key b: ra .*, dec .*"):
        read_positions(rows, "s.csv", unknown=unknown)


def test_a_missing_position_is_nan_where_it_may_be_missing():
    rows = pa.table({"ra": [1.0, None, 3.0], "dec": [2.0, 5.0, np.nan]})
    ra, dec = read_positions(rows, "s.csv", unknown=True)
    np.testing.assert_array_equal(ra, [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(dec, [2.0, np.nan, np.nan])
    with pytest.raises(
        ScoresError, match=r"2 rows have no position \(null or NaN\) \(first: row 2: ra nan"
    ):
        read_positions(rows, "s.csv")


def test_right_ascension_west_of_zero_is_the_same_place():
    rows = pa.table({"ra": [-10.0, 360.0, -180.0, 12.3], "dec": [0.0, 90.0, -90.0, 0.0]})
    assert read_positions(rows, "s")[0].tolist() == [350.0, 0.0, 180.0, 12.3]
    assert on_sky(*(rows[name].to_numpy() for name in ("ra", "dec"))).all()


def test_separations_are_those_of_the_sphere_at_every_scale():
    ra, dec = (
        np.array([10.0, 10.0, 190.0, 370.0, np.nan]),
        np.array([20, 20 + 1 / 3600, -20, 20, 0]),
    )
    arcsec = separation_arcsec(ra, dec, 10.0, 20.0)
    np.testing.assert_allclose(arcsec[:4], [0, 1, 180 * 3600, 0], atol=1e-8)
    assert np.isnan(arcsec[4])


def test_the_nearest_position_is_found_across_the_zero_of_ra_and_at_the_pole():
    places = np.array([0.0, 10.0, 120.0]), np.array([0.0, 89.9999, -5.0])
    row, arcsec = nearest_on_sky(np.array([359.9999, 190.0]), np.array([0.0, 89.9999]), *places)
    assert row.tolist() == [0, 1]
    assert arcsec == pytest.approx([0.36, 0.72], rel=1e-6)
