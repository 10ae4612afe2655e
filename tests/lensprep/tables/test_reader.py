"""One reader for every table that a user names: whoever wrote it, it holds the same."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lensprep.errors import NotFoundError, ScoresError, StorageError
from lensprep.tables.columns import to_floats
from lensprep.tables.reader import read_table, read_vectors, require_columns
from tests.usertables import ROWS, write_all

TEXT = ["a1", "b", None, "a1"]
TEXT_TYPES = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(),
    pa.binary_view(), pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.uint32(), pa.large_string()), pa.dictionary(pa.int32(), pa.binary()),
]  # fmt: skip
"""Text as pandas, polars, deltalake, Spark and old writers of parquet leave it."""
NUMBERS = [1, 0, None, 1]
NUMBER_TYPES = [
    pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(),
    pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.decimal32(5, 1),
    pa.decimal64(9, 2), pa.decimal128(20, 0), pa.decimal256(40, 2), pa.string(),
    pa.dictionary(pa.int8(), pa.int64()), pa.dictionary(pa.int32(), pa.float64()),
]  # fmt: skip


def array(values, kind):
    """Values in a type that Arrow does not always convert to."""
    if pa.types.is_dictionary(kind):
        distinct = list(dict.fromkeys(v for v in values if v is not None))
        codes = [None if v is None else distinct.index(v) for v in values]
        return pa.DictionaryArray.from_arrays(
            pa.array(codes, kind.index_type), array(distinct, kind.value_type)
        )
    if pa.types.is_boolean(kind):
        values = [None if value is None else bool(value) for value in values]
    if pa.types.is_string(kind) and not isinstance(values[0], str):
        values = [None if value is None else str(value) for value in values]
    if "decimal" in str(kind):
        return pa.array(values, pa.int64()).cast(pa.decimal128(20, 0)).cast(kind)
    return pa.array(values, pa.string()).cast(kind) if values[0] == "a1" else pa.array(values, kind)


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
@pytest.mark.parametrize("asked", [["t"], None], ids=["asked", "all"])
def test_text_of_every_writer_is_the_same_text(tmp_path, kind, asked):
    pq.write_table(pa.table({"t": array(TEXT, kind)}), tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet", asked).table["t"]
    assert (found.type, found.to_pylist()) == (pa.string(), TEXT)
    pq.write_table(pa.table({"t": array(TEXT, kind).slice(0, 0)}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", asked).table["t"].type == pa.string()


@pytest.mark.parametrize("kind", NUMBER_TYPES, ids=str)
def test_numbers_of_every_writer_are_the_same_numbers(tmp_path, kind):
    pq.write_table(pa.table({"n": array(NUMBERS, kind)}), tmp_path / "n.parquet")
    found = read_table(tmp_path / "n.parquet", ["n"]).table["n"]
    assert not pa.types.is_dictionary(found.type)
    np.testing.assert_array_equal(to_floats(found, "n", "n"), [1, 0, np.nan, 1])


def test_fixed_bytes_and_extensions_that_hold_text_are_text(tmp_path):
    digest = pa.array([b"0123456789abcdef"], pa.binary(16))
    columns = {"fixed": digest, "uuid": pa.ExtensionArray.from_storage(pa.uuid(), digest)}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet", list(columns)).table
    assert found.to_pylist() == [dict.fromkeys(columns, "0123456789abcdef")]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(1)], ids=str)
def test_bytes_that_are_no_text_are_refused_by_name(tmp_path, kind):
    pq.write_table(pa.table({"key": pa.array([b"\xff"], kind)}), tmp_path / "t.parquet")
    with pytest.raises(ScoresError, match=r"column key holds .*binary.* that cannot be read"):
        read_table(tmp_path / "t.parquet", ["key"])


COUNTED = [*TEXT_TYPES, *NUMBER_TYPES, pa.null(), pa.date32(), pa.timestamp("us")]
OTHERS = [
    pa.time32("s"), pa.duration("us"), pa.list_(pa.int8()), pa.list_(pa.float32(), 2),
    pa.map_(pa.string(), pa.int8()), pa.struct([("a", pa.int8())]),
]  # fmt: skip


@pytest.mark.parametrize("kind", COUNTED, ids=str)
def test_what_is_asked_for_can_be_counted_and_ranked(tmp_path, kind):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": pa.nulls(3, kind), "b": pa.nulls(3, kind)}), path)
    (column,) = read_table(path, ["a"]).table.columns
    values = column.dictionary_encode().combine_chunks().dictionary
    assert len(pc.sort_indices(values)) == 0
    assert len(column.value_counts()) == 1


@pytest.mark.parametrize("kind", OTHERS, ids=str)
def test_what_can_not_is_refused_where_it_is_asked_for(tmp_path, kind):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": pa.nulls(3, kind), "b": [1, 2, 3]}), path)
    with pytest.raises(ScoresError, match=r"column a holds .*, not plain values"):
        read_table(path, ["a", "b"])
    assert read_table(path, ["b"]).table["b"].to_pylist() == [1, 2, 3]
    assert read_table(path).table.column_names == ["a", "b"]


def test_a_column_that_is_there_twice_is_one_line(tmp_path):
    pq.write_table(pa.table([[1], [2], [3]], ["a", "b", "a"]), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("a,b,a\n1,2,3\n")
    (tmp_path / "t.dat").write_text("a b a\n1 2 3\n")
    for name in ("t.parquet", "t.csv", "t.dat"):
        assert read_table(tmp_path / name, ["b"]).table["b"].to_pylist() == [2]
        for columns in (["a"], None):
            with pytest.raises(ScoresError, match=r"has the column 'a' more than once"):
                read_table(tmp_path / name, columns)


# --------------------------------------------------------------------------------- formats


def test_every_format_holds_the_same(tmp_path):
    write_all(tmp_path)
    seen = sorted(tmp_path.iterdir())
    assert len(seen) == 17
    for path in seen:
        found = read_table(path, text=["key"])
        rows = found.table.to_pydict()
        assert rows["key"] == ROWS["key"], path.name
        assert rows["n"] == ROWS["n"], path.name
        assert rows["x"] == pytest.approx(ROWS["x"]), path.name
        assert (found.names, found.metadata) == (["key", "n", "x"], {}), path.name
        renamed = read_table(path, ["id"], ["id"], rename={"id": "key"}).table
        assert renamed.to_pydict() == {"id": ROWS["key"]}, path.name


@pytest.mark.parametrize("name", ["t.vot.gz", "t.fits.gz", "t.csv.gz", "t.ecsv.gz"])
def test_one_bit_of_a_gzipped_table_is_noticed(tmp_path, name):
    write_all(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[-6] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ScoresError, match=r"no table that can be read .*CRC"):
        read_table(tmp_path / name)


def test_partition_columns_are_columns_and_the_digest_is_of_all_parts(tmp_path):
    for region, split in ((7, "test"), (8, "val")):
        folder = tmp_path / f"region_id={region}" / f"split={split}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"key": [f"k{region}"]}), folder / "part-0.parquet")
    first = read_table(tmp_path, ["key", "region_id", "split"])
    assert first.table.to_pydict() == {
        "key": ["k7", "k8"], "region_id": [7, 8], "split": ["test", "val"]
    }  # fmt: skip
    pq.write_table(pa.table({"key": ["other"]}), folder / "part-0.parquet")
    assert read_table(tmp_path).sha256 != first.sha256


def test_parts_that_differ_in_width_are_one_table_and_in_kind_one_line(tmp_path):
    pq.write_table(pa.table({"n": pa.array([1], pa.int32())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": pa.array([2**40], pa.int64())}), tmp_path / "b.parquet")
    assert read_table(tmp_path).table["n"].to_pylist() == [1, 2**40]
    pq.write_table(pa.table({"n": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(ScoresError, match="Unable to merge: Field n has incompatible types"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("_temporary/0/x.parquet", "the Spark job that wrote it did not finish"),
        ("_delta_log/0.json", "it is a Delta table, of which old files stay in the folder"),
        ("metadata/v1.metadata.json", "it is an Iceberg table"),
        ("readme.txt", "it is a folder without parquet files"),
    ],
)
def test_a_folder_that_is_no_table_says_what_it_is(tmp_path, name, message):
    if name != "readme.txt":
        pq.write_table(pa.table(ROWS), tmp_path / "part-0.parquet")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ScoresError, match=message):
        read_table(tmp_path)


def test_a_folder_of_parts_in_a_store_is_read(s3, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.server.http)
    from lensprep.store import open_store

    pq.write_table(pa.table(ROWS), tmp_path / "t.parquet")
    store = open_store(f"{s3.uri}/parts")
    for number in range(2):
        store.write(f"part-{number}.parquet", (tmp_path / "t.parquet").read_bytes())
    for uri in (f"{s3.uri}/parts", f"{s3.uri}/parts/"):
        assert read_table(uri, ["n"]).table["n"].to_pylist() == ROWS["n"] * 2
    with pytest.raises(NotFoundError, match=r"none\.parquet: no such file"):
        read_table(f"{s3.uri}/none.parquet")


def test_what_cannot_be_read_is_one_line_that_says_what_was_found(tmp_path):
    for name, data, message in (
        ("x.csv", b"PK\x03\x04 and so on", r"it is a zip archive, as spreadsheets \(.xlsx"),
        ("x.csv", b"", "it is empty"),
        ("x.csv", b"1,2\n3,4\n", "its first line holds numbers, not the names of columns"),
        ("x.parquet", b"key,logit\n", "no table that can be read"),
        ("x.vot", b"<VOTABLE><nothing/>", "no table that can be read"),
        ("x.fits", b"SIMPLE  =" + bytes(5000), "no table that can be read"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ScoresError, match=message) as caught:
            read_table(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises((NotFoundError, StorageError), match="no such file"):
        read_table(tmp_path / "gone.csv")


def test_vectors_are_read_from_a_folder_of_parts(tmp_path):
    flat = pa.array(np.arange(12, dtype=np.float32))
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(flat, 3)})
    for number in range(2):
        pq.write_table(table.slice(2 * number, 2), tmp_path / f"part-{number}.parquet")
    found = read_vectors(tmp_path, "embedding", np.array([1, 2]))
    assert found.tolist() == [[3, 4, 5], [6, 7, 8]]
    assert read_vectors(tmp_path, "other", np.array([1])) is None


# --------------------------------------------------------------------------------- columns


def test_positions_are_found_by_any_usual_heading_with_their_unit(tmp_path):
    from lensprep.tables.positions import read_positions

    for head in ("RA [h],DEJ2000", "_RAJ2000 [h],dec", "ra_icrs (hours),DE"):
        (tmp_path / "t.csv").write_text(f"key,{head},other\na,1.5,-2,9\n")
        table = read_table(tmp_path / "t.csv", ["key", "ra", "dec"]).table
        assert sorted(table.column_names) == ["dec", "key", "ra"]
        assert [each[0] for each in read_positions(table, "t")] == [22.5, -2]
    (tmp_path / "t.csv").write_text("key,RA_ICRS,RAJ2000,dec\na,1,2,3\n")
    assert read_table(tmp_path / "t.csv", ["ra", "dec"]).table.column_names == ["dec"]


def test_nothing_is_said_of_columns_without_a_unit(tmp_path):
    pq.write_table(pa.table(ROWS), tmp_path / "t.parquet")
    assert all(field.metadata is None for field in read_table(tmp_path / "t.parquet").table.schema)


def test_a_column_is_read_under_another_name(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("objid,key,score\n0012,x,1.5\n")
    rename = {"key": "objid", "logit": "score"}
    found = read_table(path, ["key", "logit"], ["key"], rename=rename)
    assert found.table.to_pydict() == {"key": ["0012"], "logit": [1.5]}
    assert read_table(path, None, ["key"], rename=rename).table.to_pydict() == {
        "key": ["0012"], "logit": [1.5]
    }  # fmt: skip
    message = r"has no column 'scor', which was named for logit; it has: score, objid, key\."
    with pytest.raises(ScoresError, match=message):
        read_table(path, ["logit"], rename={"logit": "scor"})
    other = read_table(path, ["key"], rename={"key": "id"}, if_there=True)
    assert other.table["key"].to_pylist() == ["x"]


def test_a_missing_column_lists_what_is_there_the_likeliest_first(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,REGIONID,probability\n1,2,3,0.5\n")
    found = read_table(tmp_path / "t.csv", ["region_id", "probability"])
    require_columns(found, ["logit or probability"], "t.csv", "")
    message = (
        r"^t lacks the column region_id, key; it has: REGIONID, a, b, probability. Add region_id!$"
    )
    with pytest.raises(ScoresError, match=message):
        require_columns(found, ["region_id", "key"], "t", "Add {}!")
