"""FITS and VOTables as others read them: astropy, and topcat's STILTS where it is installed."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.io.votable import parse, validate
from astropy.table import Table

from lensprep import __version__
from lensprep.errors import StorageError
from lensprep.tables.archive import ORIGIN_TERMS, QUERY_TERMS, data_origin
from lensprep.tables.reader import read_table
from lensprep.tables.writer import write_table

INF = float("inf")
FACTS = {"checkpoint_sha256": "ab" * 32, "dataset_id": "cd" * 32, "split": 'te"st <&> Sérsic'}
ORIGIN = {
    "creator": ["A. Müller", "B. Ōta <0000-0002-1825-0097>"],
    "publisher": "Archive & Co",
    "contact": "finder@example.org",
    "rights": "CC-BY-4.0",
    "rights_uri": "https://spdx.org/licenses/CC-BY-4.0.html",
    "citation": "doi:10.1000/" + "7" * 150,
    "reference_url": "https://doi.org/10.1000/1",
    "resource_version": "0.2.0",
    "publication_date": "2026-01-31",
    "is_derived_from": "ivo://example.org/decals",
    "article": "",
}
TABLE = pa.table(
    {
        "key": ["a", "bb", "é ✓ 𝒳", "ends  ", None, "0012"],
        "label": pa.array([0, 1, None, 1, 0, 1], pa.int8()),
        "logit": pa.array([0.1, -3.5, 1e-30, INF, -INF, 7.25], pa.float32()),
        "ra": [0.1, 359.999999999999, None, float("nan"), 5e-324, 1.0],
        "region_id": pa.array([2**40, -1, 0, None, 5, 6], pa.int64()),
        "task_seed64": pa.array([-(2**63), 2**63 - 1, 0, 3, 4, 5], pa.int64()),
        "payload_crc32": pa.array([2**32 - 1, 0, 1, 2, 3, 4], pa.uint32()),
        "theta_e_arcsec_hi": [0.45, INF, INF, 1.5, None, 2.0],
        "recovered": [True, False, None, True, True, False],
        "flag": [True, False, True, True, True, False],
        "split": pa.array(["test", "val", None, "test", "test", "a"]).dictionary_encode(),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(np.arange(12) / 3, pa.float32()), 2
        ),
    }
)


def same(found, stored):
    """Values without what no format tells apart: null, NaN and empty text."""
    plain = [None if v in ("", None) or v != v else v for v in stored]
    return [None if v in ("", None) or v != v else v for v in found] == plain


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    for suffix in (".fits", ".vot"):
        write_table(folder / f"x{suffix}", TABLE, FACTS, ORIGIN)
    return folder


@pytest.mark.parametrize("suffix", [".fits", ".vot"])
def test_all_types_come_back(written, suffix):
    found = read_table(written / f"x{suffix}")
    assert found.metadata == FACTS
    assert found.table.column_names == TABLE.column_names
    for name in TABLE.column_names:
        assert same(found.table[name].to_pylist(), TABLE[name].to_pylist()), name


@pytest.mark.parametrize("suffix", [".fits", ".vot"])
def test_astropy_reads_values_units_and_descriptions(written, suffix):
    seen = Table.read(written / f"x{suffix}", **({"hdu": 1} if suffix == ".fits" else {}))
    assert seen.colnames == TABLE.column_names
    for name in TABLE.column_names:
        if name in ("key", "embedding") or (name, suffix) == ("recovered", ".fits"):
            continue  # text is escaped in FITS, and its nulls make numbers of truths
        values = [None if value is np.ma.masked else value for value in seen[name]]
        assert same(values, TABLE[name].to_pylist()), name
    np.testing.assert_array_equal(seen["embedding"], TABLE["embedding"].to_pylist())
    assert str(seen["ra"].unit) == "deg"
    assert str(seen["theta_e_arcsec_hi"].unit) == "arcsec"
    assert seen["flag"].unit is None


def test_fits_states_ucds_and_descriptions(written):
    header = fits.getheader(written / "x.fits", 1)
    number = TABLE.column_names.index("ra") + 1
    assert header[f"TUNIT{number}"] == "deg"
    assert header[f"TUCD{number}"] == "pos.eq.ra;meta.main"
    assert header[f"TCOMM{number}"] == "right ascension"
    assert not any(f"{kind}{TABLE.column_names.index('flag') + 1}" in header
                   for kind in ("TUNIT", "TUCD", "TCOMM"))  # fmt: skip


def test_fits_has_a_card_for_every_term_of_the_origin(written):
    header = fits.getheader(written / "x.fits", 1)
    found = {card.comment: card.value for card in header.cards if card.comment in said()}
    assert found == {term: "; ".join(values).encode("unicode_escape").decode()
                     for term, values in said().items()}  # fmt: skip
    assert header["CITATION"] == ORIGIN["citation"]
    assert header["REFERENC"] == ORIGIN["reference_url"]
    terms = QUERY_TERMS + ORIGIN_TERMS
    assert len({term.replace("_", "")[:8] for term in terms}) == len(terms)


def said():
    return data_origin(FACTS, ORIGIN)


@pytest.mark.parametrize("term", ["publisher", "resource_version"])
@pytest.mark.parametrize("letter", ["x", "'"])
def test_a_card_keeps_its_text_and_its_comment_at_any_length(tmp_path, term, letter):
    for length in (*range(44, 72, 3), 300):
        write_table(tmp_path / "x.fits", pa.table({"n": [1]}), {}, {term: letter * length})
        header = fits.getheader(tmp_path / "x.fits", 1)
        keyword = term.replace("_", "")[:8].upper()
        assert (header[keyword], header.comments[keyword]) == (letter * length, term)


def test_a_votable_is_valid_and_states_ucds_descriptions_and_the_origin(written):
    report = io.StringIO()
    assert validate(written / "x.vot", output=report), report.getvalue()
    file = parse(written / "x.vot", verify="exception")
    fields = {field.name: field for field in file.get_first_table().fields}
    assert (fields["ra"].ucd, fields["ra"].description) == (
        "pos.eq.ra;meta.main",
        "right ascension",
    )
    assert (fields["flag"].ucd, fields["flag"].unit, fields["flag"].description) == (None,) * 3
    (resource,) = file.resources
    told = [(info.name, info.value) for info in (*file.infos, *resource.infos)]
    expected = [(term, value) for term, values in said().items() for value in values]
    assert sorted(told[1:]) == sorted(expected)
    assert {name for name, _ in told[1 : 1 + len(file.infos) - 1]} <= {*QUERY_TERMS}


def test_positions_name_their_frame(tmp_path):
    table = pa.table({"ra": [10.0], "dec": [-1.0], "n": [1]})
    for suffix in (".fits", ".vot"):
        write_table(tmp_path / f"x{suffix}", table, {})
    assert fits.getheader(tmp_path / "x.fits", 1)["RADESYS"] == "ICRS"
    file = parse(tmp_path / "x.vot")
    (system,) = file.iter_coosys()
    references = [field.ref for field in file.get_first_table().fields]
    assert (system.system, references) == ("ICRS", [system.ID, system.ID, None])
    write_table(tmp_path / "y.fits", table.select(["n"]), {})
    assert "RADESYS" not in fits.getheader(tmp_path / "y.fits", 1)


def test_astropy_extracts_the_origin(written):
    dataorigin = pytest.importorskip("astropy.io.votable.dataorigin", reason="astropy before 7.1")
    found = dataorigin.extract_data_origin(parse(written / "x.vot"))
    assert found.query.publisher == ORIGIN["publisher"]
    assert found.query.contact == ORIGIN["contact"]
    assert found.query.server_software == f"lenstrain {__version__}"
    (dataset,) = found.origin
    assert dataset.creator == ORIGIN["creator"]
    assert dataset.rights_uri == [ORIGIN["rights_uri"]]
    assert dataset.is_derived_from == said()["is_derived_from"]
    if hasattr(dataset, "data_ivoid"):  # of the note as astropy 8 has it
        assert dataorigin.DATAORIGIN_QUERY_INFO == QUERY_TERMS
        assert dataorigin.DATAORIGIN_INFO == ORIGIN_TERMS


def test_what_is_known_of_the_origin_needs_not_be_told():
    software = {"server_software": [f"lenstrain {__version__}"]}
    assert data_origin({}) == software
    derived = [f"dataset:{'cd' * 32}", f"checkpoint sha256:{'ab' * 32}"]
    assert data_origin(FACTS) == software | {"is_derived_from": derived}
    assert said()["is_derived_from"] == [ORIGIN["is_derived_from"], *derived]
    assert "article" not in said()
    assert data_origin({}, {"server_software": "mine 1"}) == {"server_software": ["mine 1"]}
    with pytest.raises(ValueError, match="'licence' is no term"):
        data_origin({}, {"licence": "MIT"})


@pytest.mark.parametrize("suffix", [".fits", ".vot", ".parquet", ".csv.gz"])
def test_the_same_table_gives_the_same_bytes(tmp_path, suffix):
    table = TABLE.drop("embedding")
    for name in ("one", "two"):
        write_table(tmp_path / f"{name}{suffix}", table, FACTS, ORIGIN)
    one, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("suffix", [".fits", ".vot"])
def test_a_table_without_rows_keeps_its_columns(tmp_path, suffix):
    write_table(tmp_path / f"x{suffix}", TABLE.slice(0, 0), FACTS)
    found = read_table(tmp_path / f"x{suffix}")
    assert found.table.num_rows == 0
    assert found.names == TABLE.column_names
    assert found.metadata == FACTS


def test_a_votable_keeps_names_that_are_no_identifiers(tmp_path):
    table = pa.table({"a b": [1], "a_b": [2], "é<µ>": ["x"], "1": [0.5]})
    write_table(tmp_path / "x.vot", table, {})
    assert read_table(tmp_path / "x.vot").table.to_pydict() == table.to_pydict()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a\0b"], "VOTable cannot hold this table: column x has text with the character NUL"),
        ([[1, 2], [3]], "VOTable cannot hold this table: column x holds list"),
        (pa.array([[1.0, None]], pa.list_(pa.float32(), 2)), "column x holds .*, or nulls"),
    ],
)
def test_what_a_votable_cannot_hold_is_one_line(tmp_path, column, message):
    with pytest.raises(StorageError, match=message):
        write_table(tmp_path / "x.vot", pa.table({"x": column}), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("stilts") is None, reason="STILTS is not installed")
def test_stilts_finds_no_fault_and_the_same_values_in_both(written):
    def stilts(*arguments):
        done = subprocess.run(["stilts", *arguments], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    assert stilts("votlint", f"votable={written / 'x.vot'}") == ""
    text = stilts(
        "tjoin", "nin=2", f"in1={written / 'x.fits'}", f"in2={written / 'x.vot'}", "fixcols=all",
        "icmd1=delcols embedding", "icmd2=delcols embedding", "ofmt=csv",
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(text)))
    numbers = ("logit", "ra", "region_id", "task_seed64", "theta_e_arcsec_hi", "payload_crc32")
    for name in numbers:
        for side in ("_1", "_2"):
            number = {"logit": np.float32, "ra": float, "theta_e_arcsec_hi": float}.get(name, int)
            cells = [number(row[name + side]) if row[name + side] else None for row in rows]
            stored = [None if v is None else number(v) for v in TABLE[name].to_pylist()]
            assert same(cells, stored), name
    assert [row["key_2"] for row in rows] == [key or "" for key in TABLE["key"].to_pylist()]
    assert [row["flag_2"] for row in rows] == ["true", "false", "true", "true", "true", "false"]
