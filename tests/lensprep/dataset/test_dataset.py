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
from lensprep.dataset.layout import JSON_BYTES
from lensprep.dataset.record import encode_json, header_faults, payload_crc32, record_json
from lensprep.dataset.writer import write_dataset
from lensprep.errors import DatasetError, ShardError, StorageError
from lensprep.store import atomic_writer, member_path

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


def test_the_json_has_a_kind_where_there_is_one_and_keeps_its_size():
    kinds = [None, "unlensed", 'a "later" kind', "k" * 500]
    plain = encode_json({"label": [0] * 4, "task_id": ["a"] * 4})
    texts = encode_json({"label": [0] * 4, "task_id": ["a"] * 4, "counterfactual": kinds})
    assert texts[0] == plain[0]
    assert texts[3] is None  # too long
    for text, kind in zip(texts[1:3], kinds[1:3], strict=True):
        assert len(text) == JSON_BYTES
        assert json.loads(text) == {"label": 0, "task_id": "a", "counterfactual": kind}


def test_arrays_with_counterfactuals_are_a_dataset_that_counts_them(tmp_path):
    root, pixels, table = small(tmp_path)
    assert "counterfactual" not in (root / "manifest.json").read_text()
    kinds = pa.array([None, "lensed", "unlensed", None, "unlensed", None, None], pa.string())
    table = table.append_column("counterfactual", kinds)
    write_dataset(tmp_path / "b", {"train": (pixels, table)}, SPEC, shard_rows=3)
    split = Dataset.open(tmp_path / "b").split("train")
    assert split.counterfactuals == {"lensed": 1, "unlensed": 2}
    assert split.classes == {"0": 4, "1": 3}
    (record,) = Dataset.open(tmp_path / "b").map_records(split.shards[0])[1:2]
    assert record_json(record)["counterfactual"] == "lensed"


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
    with pytest.raises(ShardError, match=r"train-000001\.tar: no such file"):
        dataset.map_shard(shard)


def test_the_json_has_origin_and_kind_where_they_are_stated():
    columns = {"label": [1, 0], "origin": ["real", None], "kind": ["spiral \u03b1", None]}
    stated, plain = encode_json(columns)
    assert json.loads(stated) == {"label": 1, "origin": "real", "kind": "spiral \u03b1"}
    assert plain == encode_json({"label": [0]})[0]


def test_no_manifest_means_no_dataset(tmp_path):
    root, _, _ = small(tmp_path)
    (root / "manifest.json").unlink()
    with pytest.raises(DatasetError, match="did not finish"):
        Dataset.open(root)
    with pytest.raises(DatasetError, match="no such dataset"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="gs:// is not read"):
        Dataset.open("gs://bucket/x")


def test_an_unknown_split_or_column_names_the_known_ones(tmp_path):
    dataset = Dataset.open(small(tmp_path)[0])
    with pytest.raises(DatasetError, match="no split 'val'; it has: train"):
        dataset.split("val")
    with pytest.raises(DatasetError, match="no column 'nope'; it has: key"):
        dataset.read_sidecar("train", ["nope"])


def first_shard(**change):
    return lambda d: d["splits"]["train"]["shards"][0].update(change)


def split(**change):
    return lambda d: d["splits"]["train"].update(change)


def repeat_the_first_shard(d):
    train = d["splits"]["train"]
    train["shards"].append(train["shards"][0])
    train["rows"] += train["shards"][0]["rows"]
    train["classes"]["0"] += train["shards"][0]["rows"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=3), "dataset format 3; this version reads 1 and 2"),
        (lambda d: d.update(format_version=True), "dataset format True; this version reads 1"),
        (lambda d: d.pop("account"), "no entry 'account'"),
        (lambda d: d.update(bands=["g", "z", "r"]), "bands"),
        (lambda d: d["geometry"].update(stride=26624.0), "geometry"),
        (lambda d: d["geometry"].update(dtype=">f2"), "geometry"),
        (lambda d: d["label_map"].update(SIE=2), "'SIE' is 2, not a whole number from 0 to 1"),
        (lambda d: d["normalization"].update(clip=5), "altered"),
        (lambda d: d["normalization"].update(clip="10"), "clip is '10', not a finite number"),
        (lambda d: d["normalization"].update(clip=1 << 62), r"clip .* is not in \(0, 65504\]"),
        (lambda d: d["normalization"].update(mode=["mad_stamp"]), "mode is .*, not text"),
        (lambda d: d["normalization"].update(mode="asinh_survey"), "no entry 'softening_g'"),
        (lambda d: d["normalization"].update(parameters={"mode": 1}), "mode and clip are no"),
        (lambda d: d["normalization"].update(parameters={"inner_px": 1}), "are none, not"),
        (lambda d: d.update(splits=[]), r"splits is \[\], not an object"),
        (lambda d: d["splits"].update(dev=d["splits"].pop("train")), "no split 'dev'; known"),
        (lambda d: d["splits"].update(val=d["splits"]["train"]), "shard 0 of val is train/train"),
        (split(rows=8), "do not add up to 8 rows"),
        (split(rows=7.0), "rows is 7.0, not a whole number"),
        (split(classes={"0": 4, "1": 4}), "are not 7 rows"),
        (split(classes={"0": 4, "2": 3}), "are not 7 rows"),
        (split(classes={"0": True, "1": 6}), "'0' is True, not a whole number"),
        (split(counterfactuals=[]), r"counterfactuals is \[\], not an object"),
        (split(counterfactuals={"unlensed": 1.0}), "'unlensed' is 1.0, not a whole number"),
        (split(counterfactuals={"lensed": 4}), "are more than the rows of their classes"),
        (split(counterfactuals={"a": 4, "b": 1}), "are more than the rows of their classes"),
        (split(regions=8), "7 rows cannot lie in 8 regions"),
        (split(shards={}), "shards is {}, not a list"),
        (first_shard(rows=2), "do not add up to 7 rows"),
        (first_shard(rows=-1), "rows is -1, not a whole number"),
        (first_shard(rows=10**13, bytes=26624 * 10**13 + 1024), "bytes is .* not a whole number"),
        (first_shard(rows="3"), "rows is '3', not a whole number"),
        (first_shard(sha256="0" * 63 + "g"), "is not a SHA-256"),
        (first_shard(name="../x.tar"), "'../x.tar' is not a shard"),
        (first_shard(name="train/train-\u0660\u0660\u0660\u0660\u0660\u0660.tar"), "not a shard"),
        (first_shard(name=["train/train-000000.tar"]), "is not a shard"),
        (first_shard(sidecar="train/train-000001.parquet"), "shard 0 of train is"),
        (lambda d: d["splits"]["train"]["shards"].reverse(), "shard 0 of train is"),
        (lambda d: d["splits"]["train"]["shards"][0].pop("bytes"), "shard 0 has no entry 'bytes'"),
        (repeat_the_first_shard, "shard 3 of train is train/train-000000.tar"),
        (lambda d: d.update(account={"input_rows": 7}), "account has no entry 'accepted'"),
        (lambda d: d.update(config="none"), "config is 'none', not an object"),
    ],
)  # fmt: skip
def test_an_altered_manifest_is_refused(tmp_path, change, message):
    root, _, _ = small(tmp_path)
    data = json.loads((root / "manifest.json").read_text())
    change(data)
    (root / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(DatasetError, match=message) as caught:
        Dataset.open(root)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{root}/manifest.json")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"rows": 7', b'"rows": 7, "rows": 7', "the key 'rows' occurs twice"),
        (b'"clip": 10.0', b'"clip": NaN', "NaN is not a number"),
        (b'"clip": 10.0', b'"clip": 1e999', "1e999 is too large"),
        (b'"regions": 4', b'"regions": 4' + b"0" * 5000, "is too large"),
        (b'"config": {}', b'"config": {"a": "\\ud800"}', "surrogates not allowed"),
        (b'"config": {}', b'"config": {"a": "\xff"}', "invalid start byte"),
        (b'"config": {}', b'"config": {"a": ' + b"[" * 1500 + b"]" * 1500 + b"}", "deeper than 32"),
        (b'"config": {}', b'"config": {"a": ' + b"[" * 10**6 + b"}", "deeper than 32"),
        (b"}\n", b"}" + b" " * (32 << 20), "more than 32 MiB"),
        (b"{", b"[{", "not a manifest"),
    ],
)
def test_text_that_readers_would_read_differently_is_no_manifest(tmp_path, old, new, message):
    root, _, _ = small(tmp_path)
    path = root / "manifest.json"
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new, 1) if old != b"}\n" else text[:-2] + new)
    with pytest.raises(DatasetError, match=message) as caught:
        Dataset.open(root)
    assert "\n" not in str(caught.value)


def test_entries_that_a_later_version_adds_are_left_alone(tmp_path):
    root, _, _ = small(tmp_path)
    data = json.loads((root / "manifest.json").read_text())
    for entry in (data, data["splits"]["train"], data["splits"]["train"]["shards"][0]):
        entry["added"] = {"by": ["a later version"]}
    data["account"] = {"input_rows": 7, "accepted": 7, "filtered": {}, "rejected": {}, "read": [1]}
    (root / "manifest.json").write_text(json.dumps(data))
    assert Dataset.open(root).manifest.account["read"] == [1]


def test_the_dataset_id_follows_the_tars_and_not_the_sidecars(tmp_path):
    manifest = Dataset.open(small(tmp_path)[0]).manifest
    train = manifest.splits["train"]

    def with_first(**change):
        shards = (dataclasses.replace(train.shards[0], **change), *train.shards[1:])
        return dataclasses.replace(
            manifest, splits={"train": dataclasses.replace(train, shards=shards)}
        )

    assert with_first(sidecar_sha256="0" * 64).dataset_id == manifest.dataset_id
    assert with_first(sha256="0" * 64).dataset_id != manifest.dataset_id
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
