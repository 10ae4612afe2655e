"""One schema for the files of a tree: columns missing, extra, of other types, and in folders."""

import re
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.errors import ConfigError, InputError, SchemaError
from lensprep.source.contract import plain_type
from lensprep.source.survey import COLUMNS, REQUIRED_COLUMNS
from lensprep.source.tree import Source
from tests.phase4c import write_tree

from .conftest import read_all


def test_missing_required_column_names_column_and_file(tmp_path, rows):
    def drop(table, name):
        return table.drop_columns(["psfsize_r"]) if "split=val/part-00001" in name else table

    with pytest.raises(SchemaError, match=r"split=val/part-00001.*: column psfsize_r is missing"):
        Source.open(write_tree(tmp_path / "t", rows, change=drop))


def test_wrong_type_names_column_file_and_both_types(tmp_path, rows):
    def text(table, name):
        index = table.column_names.index("ra")
        return table.set_column(index, "ra", table["ra"].cast(pa.string()))

    with pytest.raises(SchemaError, match=r"column ra is string, not double. \(and 5 more"):
        Source.open(write_tree(tmp_path / "t", rows, change=text))


def test_files_with_53_to_57_columns_read_as_one_schema(tmp_path, rows):
    newer = ["psf_source_g", "psf_source_r", "psf_source_z", "physics_warnings"]

    def older(table, name):
        return table.drop_columns(newer) if "part-00000" in name else table

    source = Source.open(write_tree(tmp_path / "t", rows, change=older))
    assert sorted({len(file.columns) for file in source.files}) == [52, 56]
    table = read_all(source)
    assert table.column_names == [column.name for column in COLUMNS]
    for file in source.files:
        part = source.read_row_group(file, 0, newer)
        expected = part.num_rows if "part-00000" in file.path else None
        if expected is not None:
            assert all(column.null_count == expected for column in part.columns)
    assert table["psf_source_r"].null_count < table.num_rows


def test_column_that_no_file_has_is_not_in_the_schema(tmp_path, rows):
    source = Source.open(
        write_tree(tmp_path / "t", rows, change=lambda table, _: table.drop_columns(["ebv"]))
    )
    assert "ebv" not in source.schema.names
    with pytest.raises(SchemaError, match="no column 'ebv'"):
        source.read_row_group(source.files[0], 0, ["ebv"])


def test_extra_columns_are_kept_after_those_of_the_contract(tmp_path, rows):
    def extra(table, name):
        if "part-00000" in name:
            return table.append_column("zeta", pa.array(range(table.num_rows), pa.int32()))
        return table.append_column("alpha", pa.array(["x"] * table.num_rows).dictionary_encode())

    source = Source.open(write_tree(tmp_path / "t", rows, change=extra))
    assert source.schema.names[-2:] == ["alpha", "zeta"]
    table = read_all(source, ["alpha", "zeta"])
    assert table["alpha"].null_count + table["zeta"].null_count == 48
    assert table["alpha"].type == pa.string()


def test_extra_column_named_like_one_of_conversion_is_kept_under_another_name(tmp_path, rows):
    def extra(table, name):
        return table.append_column("label", pa.array(["lens"] * table.num_rows))

    source = Source.open(write_tree(tmp_path / "t", rows, change=extra))
    assert "label" not in source.schema.names
    assert set(read_all(source)["phase4c_label"].to_pylist()) == {"lens"}


def with_extra(first, other):
    """A change of a tree: the column ``extra`` of one type in half of the files."""

    def change(table, name):
        array = first if "part-00000" in name else other
        return table.append_column("extra", pa.repeat(array[0], table.num_rows))

    return change


@pytest.mark.parametrize(
    ("first", "other", "common"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int32(), pa.float32(), pa.float64()),
        (pa.null(), pa.int8(), pa.int8()),
        (pa.null(), pa.list_(pa.int8()), pa.list_(pa.int8())),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.string(), pa.dictionary(pa.int8(), pa.string()), pa.string()),
        (pa.date32(), pa.string(), None),
        (pa.bool_(), pa.int8(), None),
        (pa.float64(), pa.string(), None),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("swap", [False, True], ids=["", "swapped"])
def test_extra_columns_get_a_type_that_holds_what_every_file_has(
    tmp_path, rows, first, other, common, swap
):
    arrays = [pa.nulls(1, kind) for kind in ((other, first) if swap else (first, other))]
    source = Source.open(write_tree(tmp_path / "t", rows, change=with_extra(*arrays)))
    if common is None:
        assert "extra" not in source.schema.names
        (what,) = source.left_out.values()
        assert re.fullmatch(r"is .+ in .*part-00000\S* and .+ in .*part-00001\S*", what)
    else:
        assert source.schema.field("extra").type == common
        assert not source.left_out
        assert read_all(source, ["extra"])["extra"].type == common


def test_values_survive_a_wider_type_and_what_does_not_fit_names_the_remedy(tmp_path, rows):
    root = write_tree(tmp_path / "t", rows, change=with_extra(pa.array([7]), pa.array([0.5])))
    assert sorted(set(read_all(Source.open(root))["extra"].to_pylist())) == [0.5, 7.0]
    root = write_tree(
        tmp_path / "u", rows, change=with_extra(pa.array([2**53 + 1]), pa.array([0.5]))
    )
    with pytest.raises(SchemaError, match=r"row group 0: column extra .* --drop-column extra"):
        read_all(Source.open(root))


VIEW = pa.string_view()


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array(["a"], VIEW), pa.string()),
        (pa.array([b"a"], pa.binary_view()), pa.binary()),
        (pa.array([["a"]], pa.list_(VIEW)), pa.list_(pa.string())),
        (pa.array([["a"]], pa.large_list(VIEW)), pa.large_list(pa.string())),
        (pa.array([["a"]], pa.list_(VIEW, 1)), pa.list_(pa.string(), 1)),
        (pa.array([{"x": "a"}], pa.struct([("x", VIEW)])), pa.struct([("x", pa.string())])),
        (pa.array([[("a", "b")]], pa.map_(pa.string(), VIEW)), pa.map_(pa.string(), pa.string())),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_views_become_plain_text_and_bytes_wherever_they_are(tmp_path, rows, array, kind):
    path = tmp_path / "part-0.parquet"
    some = rows.slice(0, 1).append_column("extra", array)
    pq.write_table(some, path)
    table = read_all(Source.open(path))
    assert plain_type(array.type) == table["extra"].type == kind
    assert table.take([0])["extra"].to_pylist() == array.to_pylist()


def test_text_of_the_contract_may_be_a_view(tmp_path, rows):
    path = tmp_path / "part-0.parquet"
    kinds = {pa.string(): VIEW, pa.binary(): pa.binary_view()}
    views = pa.schema([f.with_type(kinds.get(f.type, f.type)) for f in rows.schema])
    pq.write_table(rows.cast(views), path)
    assert read_all(Source.open(path)).equals(rows)


def test_a_column_that_a_file_has_twice_is_left_out_or_named(tmp_path, rows):
    path = tmp_path / "part-0.parquet"
    ones = pa.array([1] * 48)
    pq.write_table(rows.append_column("extra", ones).append_column("extra", ones), path)
    source = Source.open(path)
    assert source.left_out == {"extra": "occurs 2 times in part-0.parquet"}
    assert read_all(source).equals(rows)
    # Both would be phase4c_label.
    pq.write_table(rows.append_column("label", ones).append_column("phase4c_label", ones), path)
    assert "phase4c_label" in Source.open(path).left_out
    assert "phase4c_label" in Source.open(path, drop_columns=["label"]).schema.names
    pq.write_table(rows.append_column("ra", rows["ra"]), path)
    with pytest.raises(SchemaError, match=r"part-0.parquet: column ra occurs 2 times"):
        Source.open(path)


def test_a_dropped_column_is_not_read_and_must_be_there_and_not_be_needed(tmp_path, rows):
    change = with_extra(pa.array([1.5]), pa.array(["text"]))
    root = write_tree(tmp_path / "t", rows, change=change)
    source = Source.open(root, drop_columns=["extra", "ebv"])
    assert {"extra", "ebv"}.isdisjoint(source.schema.names)
    assert not source.left_out
    assert source.digest() == Source.open(root).digest()
    assert read_all(source).num_rows == 48
    with pytest.raises(ConfigError, match=r"has no column 'extr' to leave out; it has: .*extra"):
        Source.open(root, drop_columns=["extr"])
    with pytest.raises(ConfigError, match="must have the column ra"):
        Source.open(root, drop_columns=["extra", "ra"])


# ------------------------------------------------------------------------- columns in folders


def folders(root, rows, *names):
    """A tree as Spark partitions it by some columns, which the files then lack."""
    for row in range(rows.num_rows):
        part = rows.slice(row, 1)
        folder = root.joinpath(*(f"{name}={quote(str(part[name][0]))}" for name in names))
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(part.drop_columns(names), folder / f"part-{row}.parquet")
    return root


def test_columns_of_the_contract_are_read_from_folders_in_their_types(tmp_path, rows):
    names = ["region_split", "psf_bin", "theta_e_arcsec", "region_id", "config_id"]
    root = folders(tmp_path / "t", rows, *names)
    source = Source.open(root)
    assert read_all(source).sort_by("task_id").equals(rows.sort_by("task_id"))
    file = source.files[0]
    assert source.read_row_group(file, 0, ["region_id"]).num_rows == 1
    inner = next(root.rglob("*.parquet")).parent
    assert read_all(Source.open(inner)).num_columns == rows.num_columns


@pytest.mark.parametrize(
    ("texts", "kind", "values"),
    [
        (["2", "-10"], pa.int64(), [2, -10]),
        (["0.6", "1"], pa.float64(), [0.6, 1.0]),
        (["0.6", "1e-3", "__HIVE_DEFAULT_PARTITION__"], pa.float64(), [0.6, 0.001, None]),
        (["007", "8"], pa.string(), ["007", "8"]),
        (["nan", "1"], pa.string(), ["nan", "1"]),
        (["a b/c=d%", "ä"], pa.string(), ["a b/c=d%", "ä"]),
        (["99999999999999999999"], pa.float64(), [1e20]),
        (["__HIVE_DEFAULT_PARTITION__"], pa.string(), [None]),
    ],
)
def test_other_columns_in_folders_get_a_type_that_all_texts_have(
    tmp_path, rows, texts, kind, values
):
    for number, text in enumerate(texts):
        folder = tmp_path / "t" / f"bin%3D={quote(text, safe='')}"
        folder.mkdir(parents=True)
        pq.write_table(rows.slice(number, 1), folder / "part-0.parquet")
    source = Source.open(tmp_path / "t")
    assert source.schema.field("bin=").type == kind
    found = read_all(source).sort_by("task_id")
    expected = dict(zip(rows["task_id"].to_pylist(), values, strict=False))
    assert dict(zip(found["task_id"].to_pylist(), found["bin="].to_pylist(), strict=True)) == (
        expected
    )
    assert "bin=" not in Source.open(tmp_path / "t", drop_columns=["bin="]).schema.names
    # Above the folder that was given nothing but the contract's columns is meant.
    assert "bin=" not in Source.open(next((tmp_path / "t").iterdir())).schema.names


def test_a_folder_and_the_column_that_it_states_must_agree(tmp_path, rows):
    same = rows.slice(0, 1)
    stated = same["psf_bin"][0].as_py()
    for text in (str(stated), "7"):
        folder = tmp_path / text / f"psf_bin={text}"
        folder.mkdir(parents=True)
        pq.write_table(same.append_column("night", pa.array([1])), folder / "part-0.parquet")
    assert read_all(Source.open(tmp_path / str(stated)))["psf_bin"].to_pylist() == [stated]
    with pytest.raises(SchemaError, match=rf"states psf_bin=7 but the column holds '{stated}'"):
        Source.open(tmp_path / "7")
    (tmp_path / "7" / "psf_bin=7").rename(tmp_path / "7" / "night=2")
    with pytest.raises(SchemaError, match="states night=2 but the column holds '1'"):
        Source.open(tmp_path / "7")


def test_a_folder_that_states_no_value_of_its_columns_type_is_an_error(tmp_path, rows):
    (tmp_path / "psf_bin=wide").mkdir()
    pq.write_table(rows.drop_columns(["psf_bin"]), tmp_path / "psf_bin=wide" / "part-0.parquet")
    with pytest.raises(SchemaError, match=r"states psf_bin=wide, which is no int32"):
        Source.open(tmp_path)


def test_wider_types_read_as_those_of_the_contract(tmp_path, rows):
    wider = {
        "region_id": pa.int64(),
        "task_id": pa.large_string(),
        "brickname": pa.dictionary(pa.int32(), pa.string()),
        "stamp_npz": pa.large_binary(),
        "psfsize_r": pa.float64(),
    }

    def widen(table, name):
        for column, data_type in wider.items():
            index = table.column_names.index(column)
            table = table.set_column(index, column, table[column].cast(data_type))
        return table

    source = Source.open(write_tree(tmp_path / "t", rows, change=widen))
    assert read_all(source).sort_by("task_id").equals(rows.sort_by("task_id"))


def test_value_that_does_not_fit_the_contract_names_column_and_row_group(tmp_path, rows):
    def huge(table, name):
        index = table.column_names.index("region_id")
        return table.set_column(index, "region_id", pa.array([2**40] * table.num_rows, pa.int64()))

    source = Source.open(write_tree(tmp_path / "t", rows, change=huge))
    with pytest.raises(SchemaError, match=r"part-0.*, row group 0: column region_id is int64"):
        source.read_row_group(source.files[0], 0)


def test_text_that_is_not_utf8_is_an_error_and_not_a_crash_later(tmp_path, rows):
    def latin(table, name):
        index = table.column_names.index("brickname")
        raw = pa.array([b"\xff\xfe"] * table.num_rows, pa.binary())
        text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
        return table.set_column(index, "brickname", text)

    source = Source.open(write_tree(tmp_path / "t", rows, change=latin))
    with pytest.raises(InputError, match=r"row group 0 cannot be read.*UTF8"):
        source.read_row_group(source.files[0], 0)


def test_the_columns_that_are_missing_are_all_named(tmp_path):
    pq.write_table(pa.table({"ra": [1.0], "x": [2]}), tmp_path / "a.parquet")
    with pytest.raises(SchemaError) as caught:
        Source.open(tmp_path)
    count = len(REQUIRED_COLUMNS) - 1  # all but ra
    assert f"a.parquet: {count} columns are missing" in str(caught.value)
    assert all(name in str(caught.value) for name in ("task_id", "dec", "region_split"))
