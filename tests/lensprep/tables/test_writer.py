"""Tables in four formats, here and in an object store, hold the same."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lensprep.errors import NotFoundError, ScoresError, StorageError
from lensprep.store import open_store
from lensprep.tables.reader import read_table
from lensprep.tables.writer import TABLE_SUFFIXES, check_table, table_writer

FACTS = {"checkpoint_sha256": "ab", "normalization": {"mode": "mad_stamp"}, "dataset": "Sérsic"}
TEXTS = ["=cmd|' /C calc'!A0", "0012", "é ✓", "back\\slash", "a\nb\t", "ends  ", None, "NA", "x,y"]


def make_table(rows=9):
    rng = np.random.default_rng(0)
    texts = (TEXTS * rows)[:rows]
    return pa.table(
        {
            "key": [f"{number:04d}" for number in range(rows)],
            "label": pa.array(np.arange(rows) % 2, pa.int8()),
            "logit": pa.array(rng.normal(size=rows) * 20, pa.float32()),
            "region_id": pa.array(rng.integers(0, 2**40, rows), pa.int64()),
            "theta": pa.array([None, *rng.normal(size=rows - 1)], pa.float64()),
            "count": pa.array([None, *range(rows - 1)], pa.int32()),
            "flag": pa.array([None, *[True] * (rows - 1)], pa.bool_()),
            "name": pa.array(texts, pa.string()),
            "kind": pa.array(texts, pa.string()).dictionary_encode(),
        }
    )


def write(uri, table, facts=FACTS):
    with table_writer(uri, table.schema, facts) as put:
        put(table.slice(0, 4))
        put(table.slice(4))


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
@pytest.mark.parametrize("where", ["local", "s3"])
def test_what_was_written_is_read(tmp_path, request, where, suffix):
    folder = str(tmp_path)
    if where == "s3":
        place = request.getfixturevalue("s3")
        folder = place.uri
        request.getfixturevalue("monkeypatch").setenv("AWS_ENDPOINT_URL_S3", place.server.http)
    table, uri = make_table(), f"{folder}/scores{suffix}"
    check_table(uri)
    write(uri, table)
    found = read_table(uri, text=("key", "name", "kind"))
    assert found.metadata == ({} if "csv" in suffix else FACTS)
    assert found.table.column_names == table.column_names
    logit = found.table["logit"].to_numpy().astype(np.float64)
    assert (logit == table["logit"].to_numpy().astype(np.float64)).all()
    for name in table.column_names:
        ours, theirs = found.table[name].to_pylist(), table[name].to_pylist()
        assert name == "logit" or ours == theirs, name
    assert [entry.name for entry in open_store(folder).entries()] == [f"scores{suffix}"]


@settings(max_examples=20)
@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=8))
@example(["  ", "\\x20"])
def test_any_text_survives_fits_and_but_for_nul_votables(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("text")
    for suffix in (".fits", ".vot"):
        kept = [text.replace("\0", "?") if suffix == ".vot" else text for text in texts]
        write(folder / f"x{suffix}", pa.table({"name": kept}))
        found = read_table(folder / f"x{suffix}").table["name"].to_pylist()
        assert found == [text or None for text in kept]


def test_a_fits_table_is_read_by_others_and_theirs_by_us(tmp_path):
    table = make_table()
    write(tmp_path / "x.fits", table)
    seen = Table.read(tmp_path / "x.fits", hdu=1)
    assert (np.asarray(seen["logit"]) == table["logit"].to_numpy()).all()
    assert bool(seen["count"].mask[0])
    Table({"key": ["a", "b"], "logit": [1.5, -2.0], "note": [r"\n", ""]}).write(tmp_path / "y.fits")
    found = read_table(tmp_path / "y.fits", ["note", "logit", "absent"])
    assert found.table.to_pydict() == {"note": [r"\n", None], "logit": [1.5, -2.0]}
    assert found.metadata == {}


def test_vectors_are_kept_where_the_format_has_them(tmp_path):
    flat = pa.array(np.arange(6, dtype=np.float32))
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(flat, 3)})
    for suffix in (".parquet", ".fits", ".vot"):
        write(tmp_path / f"x{suffix}", table)
        found = read_table(tmp_path / f"x{suffix}").table["embedding"].to_pylist()
        assert found == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(StorageError, match="vectors"):
        check_table(tmp_path / "x.csv", vectors=True)
    with pytest.raises(StorageError, match="cannot hold column embedding"):
        write(tmp_path / "x.csv", table)


@pytest.mark.parametrize("name", ["scores", "scores.txt", "scores.fits.gz", "scores.csv.bz2"])
def test_a_suffix_that_names_no_format_is_refused(tmp_path, name):
    for use in (check_table, lambda uri: write(uri, make_table())):
        with pytest.raises(StorageError, match=r"\.parquet, \.csv, \.csv\.gz, \.fits, \.vot"):
            use(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".parquet", ".csv.gz", ".fits", ".vot"])
def test_bytes_that_are_no_table_are_one_line(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(NotFoundError, match="no such file"):
        read_table(path)
    good = tmp_path / f"good{suffix}"
    write(good, make_table(500))
    data = good.read_bytes()
    for bytes_ in (b"", b"\x00" * 3000, data[: len(data) // 2], data[:2880]):
        path.write_bytes(bytes_)
        with pytest.raises(ScoresError, match="no table that can be read") as caught:
            read_table(path)
        assert "\n" not in str(caught.value)


def test_a_number_that_stands_for_null_is_refused(tmp_path):
    table = pa.table({"n": pa.array([None, -(2**31)], pa.int32())})
    with pytest.raises(StorageError, match="FITS cannot hold this table"):
        write(tmp_path / "x.fits", table)
    write(tmp_path / "x.parquet", table)
    assert pq.read_table(tmp_path / "x.parquet")["n"].to_pylist() == [None, -(2**31)]
