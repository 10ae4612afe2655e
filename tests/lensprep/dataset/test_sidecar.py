"""What a sidecar must be: the schema at the door, and no more memory than its tar has bytes."""

from __future__ import annotations

import resource
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.dataset import Dataset
from lensprep.dataset.sidecar import read_origins, read_statistics
from lensprep.errors import DatasetError, ShardError
from lensprep.inspection.inspect import inspect_dataset
from lensprep.inspection.verify import verify
from tests.datasets import PAIR, replace_sidecar, tiny_dataset, tiny_table
from tests.faults.altered import deep_schema

ROWS = 5
NAME = "train/train-000000.parquet"
NOT_UTF8 = pa.Array.from_buffers(
    pa.string(),
    ROWS,
    [None, pa.py_buffer(np.arange(ROWS + 1, dtype=np.int32)), pa.py_buffer(b"\xff" * ROWS)],
)


@pytest.fixture
def root(tmp_path):
    return tiny_dataset(tmp_path, ROWS)


def put(root, content):
    replace_sidecar(root, NAME, content)
    return Dataset.open(root)


def replaced(name, values):
    return lambda t: t.set_column(t.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["label"]), "has no column 'label'"),
        (lambda t: t.append_column("ebv", t["median_g"]).append_column("ebv", t["median_g"]),
         "has the column 'ebv' twice"),
        (lambda t: t.slice(1), "has 4 rows where the manifest states 5"),
        (lambda t: pa.concat_tables([t, t]), "has 10 rows where the manifest states 5"),
        (replaced("label", [0.0, 1.0, 0.0, 1.0, 0.0]), "has double in column 'label', not whole"),
        (replaced("label", [0, 1, 2, 1, 0]), "has 0 to 2 in column 'label', not 0 to 1"),
        (replaced("label", [0, 256, 0, 1, 0]), "has 0 to 256 in column 'label'"),
        (replaced("label", pa.array([0, None, 0, 1, 0], pa.int8())), "has nulls in column 'label'"),
        (replaced("payload_crc32", [-1] * ROWS), "has -1 to -1 in column 'payload_crc32'"),
        (replaced("theta_e_arcsec", [[1.0]] * ROWS), "has list.* in column 'theta_e_arcsec', not"),
        (replaced("psfsize_r", [Decimal("1.5")] * ROWS), "has decimal.* in column 'psfsize_r'"),
        (replaced("task_id", [1, 2, 3, 4, 5]), "has int64 in column 'task_id', not text"),
        (replaced("task_id", NOT_UTF8), "cannot be read: .*Invalid UTF8"),
    ],
)  # fmt: skip
def test_what_is_no_sidecar_is_a_line_and_a_fault(root, change, message):
    dataset = put(root, change(pq.read_table(root / NAME)))
    with pytest.raises(ShardError, match=message) as caught:
        dataset.read_sidecar("train")
    assert "\n" not in str(caught.value)
    assert any(message.split()[0] in fault["what"] for fault in verify(str(root))["faults"])


@pytest.mark.parametrize("column", ["median_nir", "psf_fwhm_used_Y", "src_nirY"])
def test_columns_of_any_surveys_bands_hold_numbers(tmp_path, column):
    root = tiny_dataset(tmp_path, ROWS, geometry=PAIR)
    table = pq.read_table(root / NAME)
    if column in table.column_names:
        table = table.drop_columns([column])
    dataset = put(root, table.append_column(column, pa.array(["a"] * ROWS)))
    with pytest.raises(ShardError, match=f"has string in column '{column}', not numbers"):
        dataset.read_sidecar("train", ["key"])
    dataset = put(root, table.append_column("src_gr", pa.array(["a"] * ROWS)))
    assert dataset.read_sidecar("train", ["src_gr"]).num_rows == ROWS  # none of its columns


def test_statistics_are_those_of_the_surveys_bands():
    table = tiny_table(ROWS, geometry=PAIR)
    place = table.column_names.index("scale_Y")
    table = table.set_column(place, "scale_Y", pa.array([1.0, 2.0, None, 4.0, 5.0]))
    median, scale = read_statistics(table, PAIR)
    assert median.shape == scale.shape == (ROWS, 2)
    np.testing.assert_array_equal(scale[:, 1], np.float32([1, 2, np.nan, 4, 5]))
    with pytest.raises(DatasetError, match="no median_"):
        read_statistics(table)


def test_rows_are_simulated_unless_they_say_otherwise():
    table = tiny_table(ROWS)
    assert read_origins(table).to_pylist() == ["simulated"] * ROWS
    stated = ["real", None, "", "elsewhere", "simulated"]
    for kind in (pa.string(), pa.dictionary(pa.int8(), pa.string())):
        found = read_origins(table.append_column("origin", pa.array(stated).cast(kind)))
        assert found.to_pylist() == ["real", "simulated", "simulated", "elsewhere", "simulated"]
    empty = table.append_column("origin", pa.nulls(ROWS))
    assert read_origins(empty).to_pylist() == ["simulated"] * ROWS
    assert len(read_origins(empty.slice(0, 0))) == 0


def test_columns_of_other_types_are_read_and_nested_ones_left(root):
    table = pq.read_table(root / NAME)
    table = table.append_column("price", pa.array([Decimal("1.5")] * ROWS))
    table = table.append_column("members", pa.array([[1.0]] * ROWS))
    table = table.append_column("label.x", pa.array(["a"] * ROWS))
    dataset = put(root, table)
    assert "price" in dataset.read_sidecar("train").column_names
    assert "members" not in dataset.read_sidecar("train").column_names
    assert dataset.read_sidecar("train", ["members"])["members"].to_pylist() == [[1.0]] * ROWS
    assert dataset.read_sidecar("train", ["label"]).column_names == ["label"]
    assert verify(str(root))["ok"]


def test_views_of_text_are_text(root):
    """Some writers prefer them; Arrow can neither take rows of a view nor count its values."""
    table = pq.read_table(root / NAME)
    place = table.column_names.index("key")
    table = table.set_column(place, "key", table["key"].cast(pa.string_view()))
    table = table.append_column("survey", pa.array(["a"] * ROWS, pa.string_view()))
    table = table.append_column("mark", pa.array([b"a"] * ROWS, pa.binary_view()))
    found = put(root, table).read_sidecar("train")
    assert [found[name].type for name in ("key", "survey", "mark")] == [
        pa.string(), pa.string(), pa.binary()
    ]  # fmt: skip
    assert found["key"].to_pylist() == table["key"].to_pylist()
    assert inspect_dataset(root).splits["train"]["rows"] == ROWS
    assert verify(str(root))["ok"]


def test_sidecars_that_do_not_agree_name_the_column(tmp_path):
    root = tiny_dataset(tmp_path, 2 * ROWS, shard_rows=ROWS)
    table = pq.read_table(root / NAME)
    dataset = put(root, table.append_column("ebv", pa.array([0.1] * ROWS)))
    with pytest.raises(DatasetError, match="'ebv' is double in one and None in another"):
        dataset.read_sidecar("train")


@pytest.mark.parametrize("as_view", [False, True])
@pytest.mark.parametrize("column", ["task_id", "extra"])
def test_text_that_stands_once_for_all_rows_is_counted_for_each(tmp_path, column, as_view):
    """A file of some kilobytes that unpacks to a megabyte a row, 1 GB in all."""
    rows = 1000
    root = tiny_dataset(tmp_path, rows, shard_rows=rows)
    table = pq.read_table(root / NAME)
    if column == "extra":
        table = table.append_column("extra", table["task_id"])
    text = b"x" * 1_000_000
    if as_view:  # a length, a prefix, a buffer and a place in it
        views = np.tile(np.array([len(text), 0x78787878, 0, 0], np.int32), rows)
        large = pa.Array.from_buffers(
            pa.string_view(), rows, [None, pa.py_buffer(views), pa.py_buffer(text)]
        )
    else:
        large = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(rows, np.int32)), pa.array([text.decode()])
        )
    place = table.column_names.index(column)
    dataset = put(root, table.set_column(place, column, large))
    assert (root / NAME).stat().st_size < 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ShardError, match="would unpack to more bytes than the tar"):
        dataset.read_sidecar("train", [column])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_footer_that_states_more_than_the_tar_has_is_refused_unread(root):
    table = pq.read_table(root / NAME)
    dataset = put(root, table.append_column("extra", pa.array(["x" * 2_000_000] * ROWS)))
    with pytest.raises(ShardError, match="would unpack to more bytes than the tar"):
        dataset.read_sidecar("train", ["label"])


def test_a_sidecar_may_be_as_large_as_the_tar_of_its_own_stamps(tmp_path):
    """A text that the records of DECaLS would have room for."""
    rows = 200
    root = tiny_dataset(tmp_path, rows, rows, geometry=PAIR)
    table = pq.read_table(root / NAME)
    dataset = put(root, table.append_column("extra", pa.array(["x" * 20_000] * rows)))
    with pytest.raises(ShardError, match="would unpack to more bytes than the tar"):
        dataset.read_sidecar("train", ["extra"])


def test_a_schema_nested_beyond_a_parsers_stack_is_refused(root):
    for depth in (9_000, 1_000_000):
        with pytest.raises(ShardError, match=r"cannot be read|has 0 rows"):
            put(root, deep_schema(depth)).read_sidecar("train")


def test_another_size_than_the_manifests_is_told_before_anything_is_read(root):
    with (root / NAME).open("ab") as file:
        file.truncate(1 << 40)  # a hole: nobody could read it
    with pytest.raises(ShardError, match=f"has {1 << 40} bytes where the manifest states"):
        Dataset.open(root).read_sidecar("train")
    faults = {fault["file"]: fault["what"] for fault in verify(str(root))["faults"]}
    assert f"has {1 << 40} bytes" in faults[NAME]
