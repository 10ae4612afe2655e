"""Opening Phase 4c trees: what is listed, where the split comes from, what is refused."""

import pickle
import random
import re
import shutil
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from lensprep.errors import ConfigError, InputError, ProjectError, SchemaError
from lensprep.source.contract import plain_type
from lensprep.source.survey import COLUMNS, REQUIRED_COLUMNS, STAMP_COLUMN
from lensprep.source.tree import Source
from tests.phase4c import set_columns, tiny_table, tiny_tree, write_tree


@pytest.fixture(scope="module")
def rows():
    return tiny_table(48)


@pytest.fixture
def tree(tmp_path, rows):
    return write_tree(tmp_path / "stamps", rows)


def read_all(source, columns=None):
    return pa.concat_tables(
        source.read_row_group(file, index, columns)
        for file in source.files
        for index in range(len(file.row_groups))
    )


def test_every_row_comes_once_with_its_values(tree, rows):
    source = Source.open(tree)
    table = read_all(source).sort_by("task_id")
    assert source.rows == table.num_rows == 48
    assert table.column_names == [column.name for column in COLUMNS]
    assert table.equals(rows.sort_by("task_id"))


def test_hive_and_flat_trees_read_alike(tmp_path, tree, rows):
    flat = write_tree(tmp_path / "flat", rows, hive=False)
    hive_rows = read_all(Source.open(tree)).sort_by("task_id")
    assert read_all(Source.open(flat)).sort_by("task_id").equals(hive_rows)
    assert {file.split for file in Source.open(tree).files} == {"train", "val", "test"}
    assert {file.split for file in Source.open(flat).files} == {None}


def test_files_are_sorted_and_hidden_ones_passed_over(tree):
    for name in (
        ".part.crc",
        "._x.parquet",
        "_SUCCESS",
        "_metadata",
        "_delta_log/0/part-9.parquet",
        "notes.txt",
    ):
        path = tree / "region_split=train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not parquet")
    paths = [file.path for file in Source.open(tree).files]
    assert paths == sorted(paths)
    assert len(paths) == 6
    assert paths[0] == "region_split=test/part-00000-8d5c0c7e.c000.snappy.parquet"


def test_one_file_or_one_split_folder_is_a_source_too(tree):
    folder = tree / "region_split=val"
    assert {file.split for file in Source.open(folder).files} == {"val"}
    one = next(folder.iterdir())
    source = Source.open(one)
    assert [file.path for file in source.files] == [one.name]
    assert set(read_all(source, ["region_split"])["region_split"].to_pylist()) == {"val"}


def test_split_is_filled_in_even_when_nothing_else_is_read(tree):
    source = Source.open(tree)
    for file in source.files:
        table = source.read_row_group(file, 0, ["region_split"])
        assert table.column_names == ["region_split"]
        assert table["region_split"].to_pylist() == [file.split] * file.row_groups[0].rows


def test_columns_come_in_the_order_of_the_schema(tree):
    source = Source.open(tree)
    table = source.read_row_group(source.files[0], 0, ["dec", "task_id", "region_split"])
    assert table.column_names == ["task_id", "region_split", "dec"]


def test_pieces_of_a_row_group_add_up_to_it(tmp_path, rows):
    source = Source.open(write_tree(tmp_path / "t", rows, files_per_split=1, row_group_rows=20))
    file = max(source.files, key=lambda f: f.rows)
    pieces = list(source.iter_row_group(file, 0, batch_rows=7))
    assert [piece.num_rows for piece in pieces] == [7, 7, 6]
    assert pa.concat_tables(pieces).equals(source.read_row_group(file, 0))


def test_whole_file_comes_in_pieces_across_its_row_groups(tmp_path, rows):
    source = Source.open(write_tree(tmp_path / "t", rows, files_per_split=1, row_group_rows=5))
    file = max(source.files, key=lambda f: f.rows)
    pieces = list(source.iter_file(file, batch_rows=9))
    assert [piece.num_rows for piece in pieces] == [9, 9, 6]
    groups = [source.read_row_group(file, index) for index in range(len(file.row_groups))]
    assert pa.concat_tables(pieces).equals(pa.concat_tables(groups))


def test_physical_split_column_that_agrees_with_the_folder_is_accepted(tmp_path, rows):
    root = tmp_path / "both"
    for split in ("train", "val", "test"):
        part = rows.filter(pc.equal(rows["region_split"], split))
        folder = root / f"region_split={split}"
        folder.mkdir(parents=True)
        pq.write_table(part, folder / "part-0.parquet")
    assert read_all(Source.open(root)).sort_by("task_id").equals(rows.sort_by("task_id"))


@pytest.mark.parametrize("statistics", [True, False])
def test_split_in_conflict_with_the_folder_is_an_error(tmp_path, rows, statistics):
    folder = tmp_path / "t" / "region_split=val"
    folder.mkdir(parents=True)
    pq.write_table(rows, folder / "part-0.parquet", write_statistics=statistics)
    with pytest.raises(SchemaError, match=r"part-0.parquet: the folder states region_split=val"):
        Source.open(tmp_path / "t")


def test_split_known_from_neither_is_an_error(tmp_path, rows):
    path = tmp_path / "part-0.parquet"
    pq.write_table(rows.drop_columns(["region_split"]), path)
    with pytest.raises(SchemaError, match="region_split is missing and no folder"):
        Source.open(path)


def test_folder_of_an_unknown_split_is_an_error(tree):
    (tree / "region_split=val").rename(tree / "region_split=dev")
    with pytest.raises(SchemaError, match="region_split=dev; known are train, val, test"):
        Source.open(tree)


def test_constant_split_column_is_the_split_of_the_file(tmp_path, rows):
    train = rows.filter(pc.equal(rows["region_split"], "train"))
    for statistics in (True, False):
        pq.write_table(train, tmp_path / "a.parquet", write_statistics=statistics)
        assert Source.open(tmp_path / "a.parquet").files[0].split == "train"


def test_unknown_split_of_a_row_is_left_to_the_account(tmp_path):
    rows = tiny_table(4, region_split=["train", "dev", None, "val"])
    source = Source.open(write_tree(tmp_path / "t", rows, hive=False, files_per_split=1))
    values = read_all(source, ["region_split"])["region_split"].to_pylist()
    assert values == ["train", "dev", None, "val"]


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


# ------------------------------------------------------------------ what is no finished tree


@pytest.mark.parametrize(
    "left",
    [
        "_temporary/0/_temporary/attempt_1/region_split=val/part-7.parquet",
        "region_split=val/_temporary/0/task_2/part-7.parquet",
        ".spark-staging-4f/region_split=val/part-7.parquet",
        "region_split=val/_started_811",
    ],
)
def test_what_a_job_left_that_did_not_finish_is_refused_or_said(tree, left):
    (tree / left).parent.mkdir(parents=True, exist_ok=True)
    (tree / left).write_bytes(b"")
    with pytest.raises(InputError, match=r"did not finish, and rows may be missing.*--skip-bad"):
        Source.open(tree)
    source = Source.open(tree, skip_bad_files=True)
    assert source.unfinished
    assert len(source.files) == 6


@pytest.mark.parametrize("left", ["_temporary_$folder$", "_started_811", "_logs/1.json"])
def test_what_a_finished_job_leaves_is_in_nobodys_way(tree, left):
    (tree / left).parent.mkdir(exist_ok=True)
    (tree / left).touch()
    (tree / left.replace("started", "committed")).touch()
    source = Source.open(tree)
    assert (source.unfinished, source.is_marked) == (None, True)
    (tree / "_SUCCESS").unlink()
    assert not Source.open(tree).is_marked


def test_a_tree_without_rows_is_told(tmp_path, rows):
    root = write_tree(tmp_path / "t", rows, change=lambda table, _: table.slice(0, 0))
    with pytest.raises(InputError, match="has no rows: none of its 6 parquet files has any"):
        Source.open(root)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.tar", "b.tar"], "it is a folder of shards: one split"),
        (
            ["x/a.fits.gz", "b.npz", "list.csv"],
            "it is a folder of cutouts. `lenstrain infer CHECKPOINT",
        ),
        (["config.toml", "checkpoints/best.pt"], "the folder of a training run. `lenstrain mon"),
        (["notes.txt"], "(1 other files). Give the folder above"),
        (["_temporary/0/a.parquet"], "_temporary: the job that writes it is running, or did not f"),
    ],
)
def test_a_folder_of_other_things_is_named(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=re.escape(message)):
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


def test_file_that_is_no_parquet_is_named(tree):
    bad = tree / "region_split=val" / "part-00001-8d5c0c7e.c000.snappy.parquet"
    size = bad.stat().st_size
    with bad.open("r+b") as file:
        file.truncate(size // 2)
    (tree / "region_split=test" / "part-00009.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"part-00009.parquet \(0 bytes\).*2 of 7 files"):
        Source.open(tree)
    source = Source.open(tree, skip_bad_files=True)
    assert [file.path.split("/")[0] for file in source.bad_files] == [
        "region_split=test",
        "region_split=val",
    ]
    assert source.bad_files[1].bytes == size // 2
    assert len(source.files) == 5


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "it is empty"),
        (b"\x89PNG\r\n\x1a\n and more", "it does not begin as parquet does"),
        (b"PAR1 and no more", "it begins as parquet does but does not end so: it is cut"),
        (b"PAR1 and altered\0\1PAR1", "size reported by footer"),
    ],
)
def test_nothing_but_bad_files_is_an_error_even_when_they_may_be_skipped(tmp_path, data, what):
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(InputError, match=rf"a.parquet \(\d+ bytes\) cannot be read: .*{what}"):
        Source.open(tmp_path, skip_bad_files=True)


def test_a_file_that_is_no_parquet_is_named_as_it_was_given(tmp_path):
    path = tmp_path / "pic.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and more")
    with pytest.raises(InputError, match=f"{path} is no parquet file: it does not begin"):
        Source.open(path)


def test_the_columns_that_are_missing_are_all_named(tmp_path):
    pq.write_table(pa.table({"ra": [1.0], "x": [2]}), tmp_path / "a.parquet")
    with pytest.raises(SchemaError) as caught:
        Source.open(tmp_path)
    count = len(REQUIRED_COLUMNS) - 1  # all but ra
    assert f"a.parquet: {count} columns are missing" in str(caught.value)
    assert all(name in str(caught.value) for name in ("task_id", "dec", "region_split"))


def test_corrupt_row_group_is_named_and_the_others_still_read(tmp_path, rows):
    root = write_tree(tmp_path / "t", rows, files_per_split=1, row_group_rows=8)
    path = root / "region_split=train" / "part-00000-8d5c0c7e.c000.snappy.parquet"
    group = pq.ParquetFile(path).metadata.row_group(1)
    column = group.column(0)
    with path.open("r+b") as file:
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(b"\0" * column.total_compressed_size)
    source = Source.open(root)
    file = next(f for f in source.files if f.split == "train")
    assert source.read_row_group(file, 0).num_rows == 8
    with pytest.raises(InputError, match=r"part-00000.*, row group 1 cannot be read"):
        source.read_row_group(file, 1)


def test_empty_row_groups_and_files_hold_no_rows(tmp_path, rows):
    def empty(table, name):
        return table.slice(0, 0) if "part-00000" in name else table

    source = Source.open(write_tree(tmp_path / "t", rows, change=empty))
    file = next(f for f in source.files if not f.rows)
    for index in range(len(file.row_groups)):
        assert source.read_row_group(file, index).num_rows == 0
    assert source.rows == sum(f.rows for f in source.files)


def test_no_such_path_and_no_parquet_say_so(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        Source.open(tmp_path / "nowhere")
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds no .parquet file \(1 other files\)"):
        Source.open(tmp_path)
    with pytest.raises(ProjectError, match="s3"):
        Source.open("s3://bucket/stamps")


def test_any_filesystem_will_do(tmp_path, tree, rows):
    shared = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    source = Source.open("stamps", filesystem=shared)
    assert read_all(source).sort_by("task_id").equals(rows.sort_by("task_id"))
    assert source.digest() == Source.open(tree).digest()


def test_pickled_source_reads_the_same(tree):
    source = Source.open(tree)
    again = pickle.loads(pickle.dumps(source))
    assert read_all(again).equals(read_all(source))


def test_digest_knows_the_listing_and_nothing_else(tmp_path, tree, rows):
    digest = Source.open(tree).digest()
    moved = tmp_path / "elsewhere"
    shutil.copytree(tree, moved)
    assert Source.open(moved).digest() == digest
    next((moved / "region_split=val").iterdir()).unlink()
    assert Source.open(moved).digest() != digest
    other_groups = write_tree(tmp_path / "groups", rows, row_group_rows=4)
    assert Source.open(other_groups).digest() != digest


def test_progress_counts_every_file(tree):
    calls = []
    Source.open(tree, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 6) for n in range(1, 7)]


def test_light_columns_leave_the_blobs_on_disk(tree):
    source = Source.open(tree)
    table = read_all(source, [c.name for c in COLUMNS if c.name != STAMP_COLUMN])
    assert "stamp_npz" not in table.column_names
    assert table.num_columns == 56


def test_damaged_bytes_never_raise_anything_but_the_projects_errors(tmp_path):
    root = tiny_tree(
        tmp_path,
        8,
        files_per_split=1,
        change=lambda t, _: set_columns(t, {"stamp_npz": [b"blob" * 20] * t.num_rows}),
    )
    path = next((root / "region_split=train").iterdir())
    whole = path.read_bytes()
    rng = random.Random(7)
    outcomes = set()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 4, 64])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
        try:
            read_all(Source.open(path))
            outcomes.add("read")
        except ProjectError as error:
            outcomes.add(type(error).__name__)
    assert {"read", "InputError"} <= outcomes
