"""Conversion: the bytes depend on rows and seed alone."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lensprep.convert import ConvertConfig, convert, shards
from lensprep.dataset import Dataset
from lensprep.dataset.layout import SKY_NOISE_NMGY
from lensprep.decode import rowgroup
from lensprep.errors import DatasetError, InputError, NotFoundError, SchemaError
from lensprep.inspection.verify import verify
from lensprep.source.contract import plain_type
from tests.lensprep.convert.conversions import CONFIG, digests
from tests.phase4c import set_columns, tiny_pixels, tiny_table, write_tree


def test_every_row_of_a_clean_tree_is_in_the_dataset(tree, table, tmp_path):
    report = convert(str(tree), str(tmp_path / "ds"), CONFIG, workers=1)
    assert report["input_rows"] == report["accepted"] == 120
    assert report["filtered"] == report["rejected"] == {}
    dataset = Dataset.open(tmp_path / "ds")
    found = [dataset.read_sidecar(split) for split in ("train", "val", "test")]
    by_id = {row["task_id"]: row for part in found for row in part.to_pylist()}
    assert len(by_id) == 120
    for row in table.drop_columns(["stamp_npz"]).to_pylist():
        got = by_id[row["task_id"]]
        assert {name: got[name] for name in row} == row
        assert got["label"] == (row["lens_model"] != "CONTROL")
    again = verify(str(tmp_path / "ds"), against=str(tree), sample=None, workers=2)
    assert again["compared"] == 120
    assert not (tmp_path / "ds" / ".work").exists()


@pytest.mark.parametrize("mode", ["asinh_survey", "mad_stamp"])
def test_the_stored_pixels_are_what_numpy_gives(tree, table, tmp_path, mode):
    convert(str(tree), str(tmp_path / "ds"), replace(CONFIG, normalize=mode), workers=1)
    dataset = Dataset.open(tmp_path / "ds")
    side = dataset.read_sidecar("val")
    stored = dataset.read_pixels("val", np.arange(side.num_rows))
    raw = dict(zip(table["task_id"].to_pylist(), tiny_pixels(120), strict=True))
    for row, (task_id, pixels) in enumerate(zip(side["task_id"].to_pylist(), stored, strict=True)):
        x = raw[task_id].reshape(3, -1)
        median = np.median(x, axis=1, keepdims=True)
        scale = np.float32(1.4826) * np.median(np.abs(x - median), axis=1, keepdims=True)
        if mode == "mad_stamp":
            expected = (x - median) / scale
        else:
            softening = np.array([*SKY_NOISE_NMGY.values()])[:, None]
            expected = np.arcsinh(x / softening).astype(np.float32)
        expected = np.clip(expected, -10, 10).astype(np.float16)
        np.testing.assert_array_equal(pixels.reshape(3, -1), expected)
        assert side["median_r"][row].as_py() == median[1, 0]
        assert side["scale_z"][row].as_py() == scale[2, 0]


@pytest.mark.parametrize(
    ("hive", "files", "groups", "workers"), [(True, 5, 3, 1), (False, 1, 1000, 1), (True, 2, 8, 2)]
)
def test_files_row_groups_order_and_workers_do_not_change_the_bytes(
    table, tree, tmp_path, hive, files, groups, workers
):
    convert(str(tree), str(tmp_path / "a"), CONFIG, workers=1)
    order = np.random.default_rng(3).permutation(table.num_rows)
    other = write_tree(
        tmp_path / "src", table.take(order), hive=hive, files_per_split=files, row_group_rows=groups
    )
    convert(str(other), str(tmp_path / "b"), CONFIG, workers=workers)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    first, second = Dataset.open(tmp_path / "a"), Dataset.open(tmp_path / "b")
    assert first.dataset_id == second.dataset_id
    names = [n for n in first.read_sidecar("train").column_names if not n.startswith("source_")]
    assert first.read_sidecar("train", names).equals(second.read_sidecar("train", names))


def with_empty_groups(path):
    """The same rows, with row groups without rows before, between and after them."""
    part = pq.ParquetFile(path).read()
    with pq.ParquetWriter(path, part.schema) as writer:
        for rows in (part.slice(0, 0), part.slice(0, 5), part.slice(0, 0), part.slice(5)):
            writer.write_table(rows)
        writer.write_table(part.slice(0, 0))


def test_row_groups_and_files_without_rows_change_no_byte(tree, dataset, tmp_path):
    source = tmp_path / "src"
    shutil.copytree(tree, source)
    for path in list(source.rglob("*.parquet")):
        with_empty_groups(path)
        empty = pq.ParquetFile(path).schema_arrow.empty_table()
        pq.write_table(empty, path.with_name(f"a-{path.name}"))  # the first, and all of a task
        pq.ParquetWriter(path.with_name(f"z-{path.name}"), empty.schema).close()  # no row group
    report = convert(str(source), str(tmp_path / "b"), CONFIG, workers=1)
    assert report["input_rows"] == report["accepted"] == 120
    assert digests(dataset) == digests(tmp_path / "b")
    assert verify(str(tmp_path / "b"), against=str(source), sample=None, workers=1)["ok"]


@pytest.mark.parametrize(
    ("rows", "splits"),
    [
        ({"region_split": "test"}, {"test": {"0": 10, "1": 10}}),
        ({"region_split": ["train"] * 10 + ["val"] * 10, "cutout_ok": [1] * 10 + [0] * 10},
         {"train": {"0": 5, "1": 5}}),
        ({"lens_model": "SIE", "is_control": 0, "theta_e_arcsec": 1.0, "region_split": "val"},
         {"val": {"0": 0, "1": 20}}),
    ],
    ids=["one split", "a split that is all filtered", "one class"],
)  # fmt: skip
def test_a_split_or_class_without_rows_is_simply_not_there(tmp_path, rows, splits):
    table = set_columns(tiny_table(20), {n: v if isinstance(v, list) else [v] * 20
                                         for n, v in rows.items()})  # fmt: skip
    source = write_tree(tmp_path / "src", table)
    report = convert(str(source), str(tmp_path / "ds"), CONFIG, workers=1)
    assert {name: split["classes"] for name, split in report["splits"].items()} == splits
    assert verify(str(tmp_path / "ds"), against=str(source), workers=1)["ok"]


NUMBERS = (
    pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.date32(), pa.time32("ms"),
    pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.duration("us"), pa.decimal128(10, 2),
    pa.dictionary(pa.int8(), pa.int64()), pa.dictionary(pa.int8(), pa.float64()), pa.null(),
)  # fmt: skip


TEXTS = (
    pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.uint32(), pa.string()),
    pa.binary(), pa.binary_view(), pa.binary(1),
)  # fmt: skip


EXTRA = {
    **{str(kind): pa.array([None if pa.types.is_null(kind) else 1, None], kind)
       for kind in NUMBERS},
    **{str(kind): pa.array(["a", None], kind) for kind in TEXTS},
    "bool": pa.array([True, None]),
    "list": pa.array([["a"], None], pa.list_(pa.string_view())),
    "struct": pa.array([{"x": "a"}, None], pa.struct([("x", pa.string_view())])),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, None], pa.binary(16))),
}  # fmt: skip


def test_extra_columns_of_every_type_come_back_from_the_sidecar(tmp_path):
    """All at once, each column with a value and a null, beside each other in every row."""
    table = tiny_table(2, region_split="val")
    for name, array in EXTRA.items():
        table = table.append_column(f"extra {name}", array)
    (tmp_path / "src").mkdir()
    pq.write_table(table, tmp_path / "src" / "part-0.parquet")
    convert(str(tmp_path / "src"), str(tmp_path / "ds"), CONFIG, workers=1)
    (shard,) = Dataset.open(tmp_path / "ds").split("val").shards
    side = pq.read_table(tmp_path / "ds" / shard.sidecar)
    order = [side["task_id"].to_pylist().index(task_id) for task_id in table["task_id"].to_pylist()]
    for name, array in EXTRA.items():
        plain = array.cast(plain_type(array.type))
        assert side[f"extra {name}"].take(order).to_pylist() == plain.to_pylist(), name
    read = Dataset.open(tmp_path / "ds").read_sidecar("val")
    nested = {f"extra {name}" for name in ("list", "struct", "map")}
    assert {*side.column_names} - {*read.column_names} == nested
    assert verify(str(tmp_path / "ds"), against=str(tmp_path / "src"), workers=1)["ok"]


def test_a_column_without_one_type_is_left_out_only_if_the_user_says_so(table, tmp_path):
    def change(part, name):
        first = "part-00000" in name
        return part.append_column("night", pa.array([1 if first else "1"] * part.num_rows))

    source, out = write_tree(tmp_path / "src", table, change=change), tmp_path / "ds"
    with pytest.raises(SchemaError, match=r"is int64 in .*part-00000.* and string in .*--drop-col"):
        convert(str(source), str(out), CONFIG, workers=1)
    assert not out.exists()
    dropping = ConvertConfig(shard_rows=20, drop_columns=["night"])
    convert(str(source), str(out), dropping, workers=1)
    dataset = Dataset.open(out)
    assert "night" not in dataset.read_sidecar("val").column_names
    assert dataset.manifest.config["drop_columns"] == ["night"]
    assert verify(str(out), against=str(source), workers=1)["ok"]
    again = ConvertConfig(shard_rows=20, drop_columns=("night", "night"))
    convert(str(source), str(out), again, workers=1, resume=True)
    other = ConvertConfig(shard_rows=20, drop_columns=("night", "ebv"))
    with pytest.raises(DatasetError, match=r"was made with drop_columns = \['night'\], not"):
        convert(str(source), str(out), other, workers=1, resume=True)


def test_what_a_job_did_not_finish_is_converted_only_if_asked_to_and_said(tree, tmp_path, caplog):
    source, out = tmp_path / "src", str(tmp_path / "ds")
    shutil.copytree(tree, source)
    (source / "_temporary" / "0").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds _temporary: the job .*did not finish"):
        convert(str(source), out, CONFIG, workers=1)
    convert(str(source), out, ConvertConfig(skip_bad_files=True), workers=1)
    assert "did not finish, and rows may be missing" in caplog.text
    assert Dataset.open(out).manifest.source["unfinished"] == "_temporary"


def test_small_runs_and_batches_do_not_change_the_bytes(tree, tmp_path, monkeypatch):
    convert(str(tree), str(tmp_path / "a"), CONFIG, workers=1)
    monkeypatch.setattr(shards, "BLOCK_ROWS", 7)
    monkeypatch.setattr(rowgroup, "BATCH_ROWS", 6)
    monkeypatch.setattr(rowgroup, "READ_ROWS", 3)
    monkeypatch.setattr(rowgroup, "BLOB_ROWS", 2)
    monkeypatch.setattr("lensprep.convert.runs.RUN_ROWS", 7)
    convert(str(tree), str(tmp_path / "b"), CONFIG, workers=1)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_another_seed_is_another_shuffle_of_the_same_rows(tree, tmp_path):
    for seed in (0, 1):
        config = ConvertConfig(seed=seed, shard_rows=20)
        convert(str(tree), str(tmp_path / str(seed)), config, workers=1)
    keys = [
        Dataset.open(tmp_path / str(s)).read_sidecar("train", ["key"])["key"].to_pylist()
        for s in (0, 1)
    ]
    assert keys[0] != keys[1]
    assert sorted(keys[0]) == sorted(keys[1])


def test_a_shard_is_a_random_sample_of_its_split(tmp_path):
    from scipy.stats import chi2_contingency

    table = tiny_table(600, regions=8)
    convert(
        str(write_tree(tmp_path / "src", table, files_per_split=3, row_group_rows=20)),
        str(tmp_path / "ds"),
        ConvertConfig(shard_rows=75),
        workers=1,
    )
    dataset = Dataset.open(tmp_path / "ds")
    parts = [dataset.read_shard_sidecar(shard) for shard in dataset.split("train").shards]
    assert len(parts) == 4
    for column in ("region_id", "source_file", "label"):
        values = sorted({v for part in parts for v in part[column].to_pylist()})
        counts = [[part[column].to_pylist().count(v) for v in values] for part in parts]
        assert chi2_contingency(counts).pvalue > 1e-3, column
    first = parts[0].slice(0, parts[0].num_rows // 2)["source_row"].to_numpy()
    second = parts[0].slice(parts[0].num_rows // 2)["source_row"].to_numpy()
    assert abs(first.mean() - second.mean()) < 4 * first.std() / np.sqrt(len(first) / 2)


def test_an_error_in_a_worker_keeps_its_words(tree, tmp_path):
    source = tmp_path / "src"
    shutil.copytree(tree, source)
    victim = sorted(source.rglob("*.parquet"))[0]
    with pytest.raises(NotFoundError, match=rf"{victim}, row group 0: no such file"):
        convert(
            str(source),
            str(tmp_path / "ds"),
            CONFIG,
            workers=2,
            announce=lambda *_: victim.unlink(),
        )
    assert not (tmp_path / "ds" / "manifest.json").exists()
