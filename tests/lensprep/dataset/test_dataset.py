"""The contract on disk: what the writer leaves, every reader finds; what was altered is named."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from lensprep.dataset import (
    PAYLOAD_OFFSET,
    RECORD_STRIDE,
    Dataset,
    Manifest,
    NormalizationSpec,
)
from lensprep.dataset.record import header_faults, payload_crc32, record_json
from lensprep.dataset.storage import atomic_writer, member_path
from lensprep.dataset.writer import write_dataset
from lensprep.errors import DatasetError, ShardError, StorageError

SPEC = NormalizationSpec(mode="mad_stamp", clip=10.0)


def small(tmp_path, rows=7, shard_rows=3):
    rng = np.random.default_rng(5)
    pixels = rng.normal(size=(rows, 3, 64, 64)).astype("<f2")
    table = pa.table(
        {
            "key": [f"{i:032x}" for i in range(rows)],
            "label": pa.array([i % 2 for i in range(rows)], pa.int8()),
            "region_id": pa.array([i // 2 for i in range(rows)], pa.int32()),
            "task_id": [f"task{i}" for i in range(rows)],
            "lens_model": ["SIE" if i % 2 else "CONTROL" for i in range(rows)],
        }
    )
    root = tmp_path / "ds"
    write_dataset(root, {"train": (pixels, table)}, SPEC, shard_rows=shard_rows)
    return root, pixels, table


def test_the_mapped_shards_hold_the_pixels_that_were_written(tmp_path):
    root, pixels, table = small(tmp_path)
    dataset = Dataset.open(root)
    split = dataset.split("train")
    assert [s.rows for s in split.shards] == [3, 3, 1]
    assert split.classes == {"0": 4, "1": 3}
    assert split.regions == 4
    views = [dataset.map_shard(shard) for shard in split.shards]
    assert views[0].strides == (RECORD_STRIDE, 8192, 128, 2)
    assert not views[0].flags.writeable
    np.testing.assert_array_equal(np.concatenate(views), pixels)
    order = np.array([6, 0, 3, 3])
    np.testing.assert_array_equal(dataset.read_pixels("train", order), pixels[order])
    assert dataset.read_sidecar("train", ["key"])["key"].to_pylist() == table["key"].to_pylist()


def test_equal_content_gives_equal_bytes(tmp_path):
    first, _, _ = small(tmp_path / "a")
    second, _, _ = small(tmp_path / "b")
    for path in sorted(p for p in first.rglob("*") if p.is_file()):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_header_faults_point_at_the_altered_record(tmp_path):
    root, _, _ = small(tmp_path)
    dataset = Dataset.open(root)
    records = dataset.map_records(dataset.split("train").shards[0]).copy()
    assert header_faults(records).tolist() == []
    assert record_json(records[2])["task_id"] == "task2"
    records[1, 130] ^= 1
    records[2, 5] = 0xFF
    assert header_faults(records).tolist() == [1, 2]
    crc = payload_crc32(records)
    records[0, PAYLOAD_OFFSET + 9] ^= 4
    assert (payload_crc32(records) != crc).tolist() == [True, False, False]


def test_a_cut_or_missing_shard_is_named_with_its_offset(tmp_path):
    root, _, _ = small(tmp_path)
    dataset = Dataset.open(root)
    shard = dataset.split("train").shards[1]
    path = root / shard.name
    with path.open("r+b") as file:
        file.truncate(RECORD_STRIDE)  # exactly at a member boundary: stock readers see no error
    with pytest.raises(ShardError, match=rf"train-000001\.tar has {RECORD_STRIDE} bytes.*offset"):
        dataset.map_shard(shard)
    path.unlink()
    with pytest.raises(ShardError, match=r"train-000001\.tar cannot be read"):
        dataset.map_shard(shard)


def test_no_manifest_means_no_dataset(tmp_path):
    root, _, _ = small(tmp_path)
    (root / "manifest.json").unlink()
    with pytest.raises(DatasetError, match="did not finish"):
        Dataset.open(root)
    with pytest.raises(DatasetError, match="no such dataset"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="a local path is needed"):
        Dataset.open("gs://bucket/x")


def test_an_unknown_split_or_column_names_the_known_ones(tmp_path):
    dataset = Dataset.open(small(tmp_path)[0])
    with pytest.raises(DatasetError, match="no split 'val'; it has: train"):
        dataset.split("val")
    with pytest.raises(DatasetError, match="no column 'nope'; it has: key"):
        dataset.read_sidecar("train", ["nope"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=2), "dataset format 2; this version reads 1"),
        (lambda d: d["splits"]["train"]["shards"][0].update(rows=2), "altered"),
        (lambda d: d["splits"]["train"]["shards"][0].update(name="../x.tar"), "not a shard"),
        (lambda d: d["normalization"].update(clip=5), "altered"),
        (lambda d: d.pop("account"), "lacks or garbles"),
    ],
)
def test_an_altered_manifest_is_refused(tmp_path, change, message):
    root, _, _ = small(tmp_path)
    data = json.loads((root / "manifest.json").read_text())
    change(data)
    (root / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(DatasetError, match=message):
        Dataset.open(root)


def test_the_dataset_id_follows_the_tars_and_not_the_sidecars(tmp_path):
    manifest = Dataset.open(small(tmp_path)[0]).manifest
    train = manifest.splits["train"]

    def with_first(**change):
        shards = (dataclasses.replace(train.shards[0], **change), *train.shards[1:])
        return dataclasses.replace(
            manifest, splits={"train": dataclasses.replace(train, shards=shards)}
        )

    assert with_first(sidecar_sha256="0").dataset_id == manifest.dataset_id
    assert with_first(sha256="0").dataset_id != manifest.dataset_id
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("name", ["../up.tar", "/etc/passwd", "train/../../x", "a\\..\\b", ""])
def test_no_name_leaves_the_folder(tmp_path, name):
    with pytest.raises(StorageError, match="not a name inside"):
        member_path(tmp_path, name)


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    target = tmp_path / "sub" / "file"

    def fail_halfway():
        with atomic_writer(target) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert list(target.parent.iterdir()) == []


def test_mixed_row_counts_write_no_shard(tmp_path):
    from lensprep.dataset.record import new_records
    from lensprep.dataset.writer import write_shard

    with pytest.raises(DatasetError, match="2 records but 1 sidecar rows"):
        write_shard(tmp_path, "val", 0, [new_records(2)], pa.table({"key": ["a"]}))
    assert list((tmp_path / "val").iterdir()) == []
