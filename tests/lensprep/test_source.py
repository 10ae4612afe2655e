"""Opening Phase 4c trees: what is listed, where the split comes from, what is refused."""

import pickle
import random
import shutil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from lensprep.contract import COLUMNS, LIGHT_COLUMNS
from lensprep.errors import InputError, ProjectError, SchemaError
from lensprep.source import Source
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
        "_temporary/0/part-9.parquet",
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


def test_extra_columns_of_types_that_do_not_go_together_are_an_error(tmp_path, rows):
    def extra(table, name):
        values = [1.5] if "part-00000" in name else ["text"]
        return table.append_column("extra", pa.array(values * table.num_rows))

    with pytest.raises(SchemaError, match="an extra column has a type that does not go"):
        Source.open(write_tree(tmp_path / "t", rows, change=extra))


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


def test_nothing_but_bad_files_is_an_error_even_when_they_may_be_skipped(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a readable parquet file"):
        Source.open(tmp_path, skip_bad_files=True)


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
    table = read_all(source, LIGHT_COLUMNS)
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
