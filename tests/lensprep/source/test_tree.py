"""Opening Phase 4c trees: what is listed, where the split comes from, what is refused."""

import pickle
import random
import re
import shutil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from lensprep.errors import ConfigError, InputError, ProjectError, SchemaError
from lensprep.source.listing import tell_apart
from lensprep.source.survey import COLUMNS, STAMP_COLUMN
from lensprep.source.tree import Source
from tests.phase4c import (
    set_columns,
    tiny_counterfactuals,
    tiny_table,
    tiny_tree,
    write_tree,
)

from .conftest import read_all


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


@pytest.fixture
def pair(tmp_path, tree, rows):
    """Two trees with the same names of files, and all their rows."""
    made = tiny_counterfactuals(rows, pairs=6)
    return tree, write_tree(tmp_path / "made", made, files_per_split=1)


def test_several_trees_are_one_source_whatever_their_order(pair, rows):
    source = Source.open(pair)
    paths = [file.path for file in source.files]
    assert paths == sorted(paths)
    assert {path.split("/")[0] for path in paths} == {"made", "stamps"}
    assert source.rows == 48 + 12
    assert source.schema.names[57:] == ["counterfactual", "host_task_id", "donor_task_id"]
    other = Source.open(pair[::-1])
    assert (other.files, other.schema, other.digest()) == (
        source.files, source.schema, source.digest(),
    )  # fmt: skip
    assert other.uri == f"{pair[1]} {pair[0]}"
    found = read_all(pickle.loads(pickle.dumps(source)))
    ordinary = found.filter(pc.field("counterfactual").is_null())
    assert ordinary.select(rows.column_names).sort_by("task_id").equals(rows.sort_by("task_id"))
    assert set(pc.drop_null(found["counterfactual"]).to_pylist()) == {"unlensed", "lensed"}


def test_a_sequence_of_one_tree_is_that_tree(tree):
    assert Source.open([tree]) == Source.open(tree)


def test_files_of_several_trees_are_named_by_what_tells_them_apart(tmp_path, tree, rows):
    other = write_tree(tmp_path / "b" / "stamps", rows, files_per_split=1, hive=False)
    (file,) = other.glob("*.parquet")
    source = Source.open([tree, file])
    assert source.files[0].path == file.name  # its own name is enough
    assert source.files[1].path.startswith("stamps/region_split=test/part-")
    assert read_all(source).num_rows == 2 * 48
    folder = tmp_path.name
    assert {f.path.rsplit("/", 1)[0] for f in Source.open([tree, other]).files} == {
        "b/stamps",
        *(f"{folder}/stamps/region_split={split}" for split in ("train", "val", "test")),
    }


@pytest.mark.parametrize(
    ("locations", "names"),
    [
        (["/a/phase4c"], [""]),
        (["/a/phase4c/", "/a/counterfactuals"], ["phase4c", "counterfactuals"]),
        (["/a/new", "s3://b/new"], ["a/new", "b/new"]),
        (["/a/new", "s3a://a/new"], ["a/new", "s3:/a/new"]),
        (["s3://a/1/x", "s3://b/2/x", "s3://b/1/x"], ["a/1/x", "b/2/x", "b/1/x"]),
        # with three folders each, files of the first could seem to be of the second
        (["/b/c", "/a/b/c/d", "/a/x/c/d"], ["b/c", "a/b/c/d", "a/x/c/d"]),
    ],
)
def test_the_fewest_folders_that_tell_locations_apart_name_them(locations, names):
    assert tell_apart(locations) == names
    assert tell_apart(locations[::-1]) == names[::-1]


@pytest.mark.parametrize(
    ("locations", "message"),
    [
        ([], "There is no source. Name at least one"),
        (["{0}", "{0}/"], "is named twice: its rows would come twice. Name it once"),
        (["{0}", "{0}/region_split=val"], "region_split=val lies in .*stamps: its rows"),
        (["s3://b/x/y", "s3a://b/x"], "s3://b/x/y lies in s3a://b/x: "),
    ],
)
def test_no_row_comes_twice_since_locations_overlap(tree, locations, message):
    with pytest.raises(ConfigError, match=message):
        Source.open([text.format(tree) for text in locations])


def test_a_fault_names_the_tree_that_it_is_in(pair, tmp_path):
    file = min((pair[1] / "region_split=val").iterdir())
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(InputError, match=r"^made/region_split=val/part-00000.* cannot be read"):
        Source.open(pair)
    source = Source.open(pair, skip_bad_files=True)
    assert [bad.path for bad in source.bad_files] == [f"made/region_split=val/{file.name}"]
    file.write_bytes(data)
    (pair[1] / "_temporary" / "0").mkdir(parents=True)
    with pytest.raises(InputError, match="made holds _temporary"):
        Source.open(pair)
    assert Source.open(pair, skip_bad_files=True).unfinished == "made/_temporary"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no \.parquet file"):
        Source.open([pair[0], tmp_path / "empty"])


def test_the_columns_that_tell_counterfactuals_are_text_and_stay(tmp_path, rows):
    made = tiny_counterfactuals(rows, pairs=4)
    tree = write_tree(tmp_path / "made", made)
    with pytest.raises(ConfigError, match="counterfactual tells counterfactuals from other rows"):
        Source.open(tree, drop_columns=["counterfactual"])
    column = made.schema.get_field_index("host_task_id")
    numbers = made.set_column(column, "host_task_id", pa.array(range(made.num_rows)))
    with pytest.raises(SchemaError, match="column host_task_id is int64, not string"):
        Source.open(write_tree(tmp_path / "numbers", numbers))


@pytest.mark.parametrize("name", ["origin", "kind", "grade"])
def test_numbers_where_a_dataset_has_text_are_refused_or_left_out(tmp_path, name):
    """Readers of a dataset take these columns for text, wherever they come from."""
    table = tiny_table(4).append_column(name, pa.array([1, 2, 3, 4]))
    tree = write_tree(tmp_path / "t", table)
    with pytest.raises(SchemaError, match=rf"column {name} is int64, not string \(leave it out w"):
        Source.open(tree)
    assert name not in Source.open(tree, drop_columns=[name]).schema.names
    stated = write_tree(tmp_path / f"s/{name}=7", tiny_table(4))
    assert Source.open(stated.parent).schema.field(name).type == pa.string()
