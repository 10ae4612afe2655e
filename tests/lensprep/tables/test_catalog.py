"""Catalogues as others write them: headings, units, names and grades."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from lensprep.errors import ScoresError
from lensprep.tables.catalog import read_catalog

HEAD = "name,RA,DEC,zlens,type,grading,ref"


def catalog(path, *rows, head=HEAD):
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        (["a,1,2"], "name,RA,D", "has no column dec .*--catalog-column dec=COLUMN"),
        (["a,1,95"], "name,RA,DEC", "1 rows have a position that is not on the sky .first: row 1"),
        (["a,1h,2"], "name,RA,DEC", "column RA holds string .'1h'., not degrees"),
        ([], HEAD, "has no lenses"),
    ],
)
def test_a_bad_catalogue_is_one_clear_error(tmp_path, rows, head, message):
    with pytest.raises(ScoresError, match=message):
        read_catalog(catalog(tmp_path / "c.csv", *rows, head=head))
    with pytest.raises(ScoresError, match="no such catalogue"):
        read_catalog(tmp_path / "none.csv")


def test_a_catalogue_whose_names_are_lists_is_one_clear_error(tmp_path):
    table = pa.table({"name": [["a"]], "RA": [1.0], "DEC": [2.0], "footprint": [[1.0, 2.0]]})
    pq.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(ScoresError, match=r"column name holds list<.*>, not text"):
        read_catalog(tmp_path / "c.parquet")
    pq.write_table(table.drop_columns("name"), tmp_path / "c.parquet")
    assert read_catalog(tmp_path / "c.parquet").ra.tolist() == [1.0]


def test_columns_of_another_name_are_mapped(tmp_path):
    path = catalog(tmp_path / "c.csv", "A,1.5,2.5,B+", head="id,RAJ,DEJ,q")
    columns = {"ra": "RAJ", "dec": "DEJ", "grade": "q"}
    known = read_catalog(path, columns)
    assert (known.ra[0], known.dec[0], known.grade, known.name) == (1.5, 2.5, ["B+"], ["A"])
    bare = read_catalog(catalog(tmp_path / "d.csv", "1.5,2.5", head="ra,dec"))
    assert (bare.grade, bare.name) == (["ungraded"], ["1"])


def test_headings_with_units_and_of_vizier_are_known(tmp_path):
    rows = ["A,1.5,-2.5"]
    for number, head in enumerate(("name,RA [deg],DEC [deg]", "name,_RA.icrs,_DE.icrs")):
        known = read_catalog(catalog(tmp_path / f"{number}.csv", *rows, head=head))
        assert (known.ra[0], known.dec[0]) == (1.5, -2.5)
    known = read_catalog(catalog(tmp_path / "h.csv", *rows, head="name,RA [hourangle],DEC"))
    assert (known.ra[0], known.dec[0]) == (22.5, -2.5)


def test_a_fits_catalogue_in_hours_is_converted_and_in_radians_refused(tmp_path):
    for unit in ("h", "deg", "rad"):
        columns = [fits.Column("RA", "D", unit=unit, array=[1.5]),
                   fits.Column("DEC", "D", unit="deg", array=[2.5])]  # fmt: skip
        fits.BinTableHDU.from_columns(columns).writeto(tmp_path / f"{unit}.fits")
    assert read_catalog(tmp_path / "h.fits").ra[0] == 22.5
    assert read_catalog(tmp_path / "deg.fits").ra[0] == 1.5
    with pytest.raises(ScoresError, match="column RA is in rad, not in degrees or hours"):
        read_catalog(tmp_path / "rad.fits")


@pytest.mark.parametrize(
    ("text", "number"),
    [(pa.large_string(), pa.float32()), (pa.string_view(), pa.decimal128(12, 3)),
     (pa.binary(), pa.string()), (pa.dictionary(pa.int32(), pa.string()), pa.float64()),
     (pa.binary_view(), pa.int16())],
    ids=str,
)  # fmt: skip
def test_a_catalogue_of_any_writer_is_read_alike(tmp_path, text, number):
    table = {"name": ["A", "B", "B"], "grading": ["confident", "probable", None]}
    for name, values in table.items():
        column = pa.array(values)
        is_dictionary = pa.types.is_dictionary(text)
        table[name] = column.dictionary_encode() if is_dictionary else column.cast(text)
    table |= {name: pa.array([1.0, 2.0, 3.0]).cast(number) for name in ("RA", "DEC")}
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    known = read_catalog(tmp_path / "c.parquet")
    assert (known.name, known.grade) == (["A", "B", "B"], ["confident", "probable", "ungraded"])
    assert (known.ra.tolist(), known.dec.tolist()) == ([1, 2, 3], [1, 2, 3])
